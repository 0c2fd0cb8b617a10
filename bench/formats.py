"""Formats of Kafka sources: how many records a second become drafts, beside those of format `pushsse`.

The same order in each format, with the same audience and an id, decoded by the format alone: no Kafka, no
log. CPU time of one thread, the formats by turns; the median of many short turns.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.fanout import median
from pushsse.intake import AllTypes, Drafter, Made, sources_of
from pushsse.kafka import Record
from pushsse.metrics import Metrics
from pushsse.settings import KafkaMap, KafkaSource, Settings

_TURNS = 80
_RECORDS = 200
_MESSAGE = {
    "orderNo": "A-981",
    "status": "paid",
    "buyerId": "ann",
    "notify": True,
    "lines": [{"sku": "TEA-EARL-250", "n": 2, "price": 8.9}, {"sku": "CUP-BLUE", "n": 1, "price": 12.0}],
    "total": 29.8,
}
_AT = "2026-11-23T08:00:00Z"
_MAP = KafkaMap(
    when="value.notify",
    type="join('.', ['order', value.status])",
    to="value.buyerId",
    id="join('-', [value.orderNo, value.status])",
    message="value",
)


@dataclass(frozen=True, slots=True)
class _Given:
    """A record, as a consumer hands it out."""

    topic: str
    value: bytes
    headers: Sequence[tuple[str, bytes]] = ()
    partition: int = 0
    offset: int = 7
    timestamp: int = 1_795_420_800_000
    key: bytes | None = b"A-981"


@dataclass(frozen=True, slots=True)
class FormatRates:
    """Records a second in each turn, by the format."""

    turns: dict[str, list[float]]

    def per_s(self, name: str) -> float:
        """Records a second."""
        return median(self.turns[name])

    def ratio(self, name: str) -> float:
        """That of a format, of format `pushsse`'s in the same turn: the processor is as fast for both."""
        return median([one / own for one, own in zip(self.turns[name], self.turns["pushsse"], strict=True)])


def measure(turns: int = _TURNS) -> FormatRates:
    """Each format, by turns."""
    tables = (
        KafkaSource(topics=("structured", "binary"), format="cloudevents"),
        KafkaSource(topics=("mapped",), format="mapped", map=_MAP),
    )
    settings = Settings(kafka_bootstrap="nowhere:1", kafka_topic="pushsse", kafka=tables)
    drafter = Drafter(types=AllTypes(), max_age_s=86_400)
    decode = sources_of(settings, metrics=Metrics(), drafter=drafter, now_ms=lambda: int(time.time() * 1000))
    records = _records()
    seen: dict[str, list[float]] = {name: [] for name in records}
    for _ in range(turns):
        for name, record in records.items():
            seen[name].append(_per_s(decode, record))
    return FormatRates(seen)


def _per_s(decode: Callable[[Record, str], Made | None], record: Record) -> float:
    began = time.thread_time()
    for _ in range(_RECORDS):
        decode(record, "owner")
    return _RECORDS / max(time.thread_time() - began, 1e-9)


def _records() -> dict[str, Record]:
    """The same order in each format."""
    data = json.dumps(_MESSAGE).encode()
    attributes = {
        "specversion": "1.0",
        "type": "order.paid",
        "source": "/shop/orders",
        "id": "A-981-paid",
        "time": _AT,
        "pushsseto": "ann",
    }
    own = {"id": "A-981-paid", "type": "order.paid", "to": {"users": ["ann"]}, "ts": _AT, "message": _MESSAGE}
    structured = attributes | {"datacontenttype": "application/json", "data": _MESSAGE}
    fields = [("content-type", b"application/json")]
    fields += [(f"ce_{name}", text.encode()) for name, text in attributes.items()]
    return {
        "pushsse": _Given("pushsse", json.dumps(own).encode()),
        "structured": _Given(
            "structured", json.dumps(structured).encode(), [("content-type", b"application/cloudevents+json")]
        ),
        "binary": _Given("binary", data, fields),
        "mapped": _Given("mapped", data),
    }
