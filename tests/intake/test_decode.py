import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from pushsse.backplane import Draft, Receipt, Source
from pushsse.errors import InvalidInput, NotJson
from pushsse.intake import Decode, EventHandler, Made, PushsseFormat
from pushsse.kafka import Record
from pushsse.kafka.consumer import Handler, decode_all
from pushsse.kafka.dead_letters import Refused
from pushsse.metrics import Metrics
from tests.intake.kit import drafter


@dataclass(frozen=True)
class Given:
    value: bytes | None
    offset: int = 5
    timestamp: int = 1_700_000_000_000
    topic: str = "orders"
    partition: int = 2
    key: bytes | None = None
    headers: Sequence[tuple[str, bytes]] = ()


def event(**more: object) -> bytes:
    return json.dumps({"type": "alarm", "message": 1, "to": "all"} | more).encode()


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def decode(metrics: Metrics) -> PushsseFormat:
    return PushsseFormat(metrics=metrics, drafter=drafter(refused="refused", max_age_s=60))


class Nowhere:
    async def dispatch(self, drafts: Sequence[Draft]) -> Receipt:
        raise AssertionError("only decoded")


async def decoded(decode: Decode, records: Sequence[Given]) -> tuple[Sequence[Made], Sequence[Refused]]:
    handler: Handler[Made] = EventHandler(decode, Nowhere())
    return await decode_all(handler, records, "owner")


def body(draft: Draft | None) -> dict[str, object]:
    assert draft is not None
    found: dict[str, object] = json.loads(draft.publication.body.removeprefix(b"data: "))
    return found


def test_a_record_without_an_id_is_named_by_its_place_and_left_to_the_fence(decode: PushsseFormat) -> None:
    draft = decode(Given(event()), "owner")
    assert body(draft)["id"] == "orders-2-5"
    assert body(draft)["ts"] == "2023-11-14T22:13:20Z"
    assert draft is not None
    assert draft.source == Source("orders", 2, 5, 1_700_000_000_000, "owner")
    assert draft.once == ""
    assert draft.publication.expires_ms == 1_700_000_060_000


def test_a_producers_own_id_is_kept_and_remembered_with_its_type(decode: PushsseFormat) -> None:
    draft = decode(Given(event(id="order-1")), "owner")
    assert draft is not None
    assert body(draft)["id"] == "order-1"
    assert draft.once == "alarm|order-1"


def test_a_byte_order_mark_before_a_record_is_borne(decode: PushsseFormat) -> None:
    assert body(decode(Given(b"\xef\xbb\xbf" + event()), "owner"))["type"] == "alarm"


def test_a_tombstone_is_skipped(decode: PushsseFormat) -> None:
    assert decode(Given(None), "owner") is None


def test_unknown_members_are_ignored_and_counted(decode: PushsseFormat, metrics: Metrics) -> None:
    assert "later" not in body(decode(Given(event(later=1, even_later=2, key="k")), "owner"))
    assert metrics.unknown_members == 2


@pytest.mark.parametrize(
    ("value", "at"),
    [
        (b"", "$"),
        (b"{", "$"),
        (b"[]", "$"),
        (b"\xff", "$"),
        (event(type="refused"), "$.type"),
        (event(type="ready"), "$.type"),
        (event(to={"users": []}), "$.to.users"),
        (event(message="\x00"), "$.message"),
        (b"[" * 100_000, "$"),
    ],
)
def test_what_cant_be_used_is_refused_with_its_place(decode: PushsseFormat, value: bytes, at: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        decode(Given(value), "owner")
    assert refused.value.violations[0].at == at


def test_what_isnt_json_is_told_apart(decode: PushsseFormat) -> None:
    with pytest.raises(NotJson):
        decode(Given(b"{"), "owner")


@pytest.mark.parametrize("timestamp", [10**18, 10**30])
def test_a_timestamp_that_is_no_date_is_refused(decode: PushsseFormat, timestamp: int) -> None:
    with pytest.raises(InvalidInput, match="isn't in ms"):
        decode(Given(event(), timestamp=timestamp), "owner")


def test_a_record_without_a_timestamp_is_of_now(decode: PushsseFormat) -> None:
    assert str(body(decode(Given(event(), timestamp=-1), "owner"))["ts"]) > "2026"


@pytest.mark.anyio
async def test_one_bad_record_doesnt_stop_the_others(decode: PushsseFormat) -> None:
    records = [Given(event(), 0), Given(b"{", 1), Given(None, 2), Given(event(), 3)]
    drafts, refused = await decoded(decode, records)
    assert [each.source.offset for each in drafts if isinstance(each, Draft) and each.source] == [0, 3]
    assert [each.record.offset for each in refused] == [1]


@pytest.mark.anyio
async def test_a_decoder_that_fails_costs_one_record() -> None:
    def decode(record: Record, owner: str) -> Draft | None:
        raise ZeroDivisionError("oh")

    _, refused = await decoded(decode, [Given(b"1")])
    assert refused[0].error == "the decoder failed: ZeroDivisionError: oh"


@pytest.mark.anyio
async def test_a_time_beyond_the_calendar_costs_one_record(decode: PushsseFormat) -> None:
    drafts, refused = await decoded(decode, [Given(event(ts="0001-01-01T00:00:00+05:00")), Given(event())])
    assert (len(drafts), len(refused)) == (1, 1)


@pytest.mark.anyio
async def test_a_run_of_large_records_gives_way_to_others(decode: PushsseFormat) -> None:
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    people = {"users": [f"{number:x}" for number in range(10_000)]}
    records = [Given(event(to=people), offset) for offset in range(40)]
    ticking = asyncio.create_task(other())
    drafts, _ = await decoded(decode, records)
    assert len(drafts) == 40
    ticking.cancel()
    assert turns >= 2
