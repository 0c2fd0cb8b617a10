"""Records of outcomes, and what is kept of them while nobody takes them."""

import asyncio
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import cast

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET, Raw

from pushsse import outcomes
from pushsse.errors import KafkaUnavailable
from pushsse.event import Publication, encode, is_id, is_user
from pushsse.kafka.producer import Outgoing, Packed, Producer, RecordRefused
from pushsse.outcomes import EXPIRED, OFFLINE, SWITCHED_OFF, WRITTEN, Outcome, Outcomes
from tests.waiting import eventually

pytestmark = pytest.mark.anyio


class Silent:
    """A Kafka that doesn't answer, or does so after a while."""

    def __init__(self) -> None:
        self.answers = asyncio.Event()
        self.calls = 0
        self.taken: list[Packed] = []

    async def send_packed(self, topic: str, records: Sequence[Packed]) -> None:
        self.calls += 1
        await self.answers.wait()
        self.taken += records


def made(kafka: Silent) -> Outcomes:
    return Outcomes(cast(Producer, kafka), topic="t", node="here", now_ms=lambda: 5)


def published(number: int) -> Publication:
    data = {"id": f"e{number}", "message": "x"}
    return encode("news", data, users=("ann",), switchable=True)


async def test_a_kafka_that_does_not_answer_keeps_no_publication_and_few_records(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(outcomes, "MOST_BYTES", 10_000)
    kafka = Silent()
    noting = made(kafka)
    running = asyncio.create_task(noting.run())
    try:
        first = published(0)
        references = sys.getrefcount(first)
        noting.note(first, "ann", WRITTEN, 5)
        await eventually(lambda: kafka.calls)
        # From here on a call is under way, and records are made all the same.
        for number in range(1, 1200):
            noting.note(published(number), "ann", WRITTEN, 5)
        assert noting.lost
        assert sys.getrefcount(first) == references
        kafka.answers.set()
        await eventually(lambda: noting.sent + noting.lost >= 1200)
        assert noting.sent < 300
        assert b'"event":"e1199"' in kafka.taken[-1][1]
        await eventually(lambda: "the oldest records for t are lost: works again" in caplog.text)
        assert "the oldest records for t are lost: over" in caplog.text
    finally:
        running.cancel()
        await asyncio.wait((running,))


names = st.text(min_size=1, max_size=8).filter(is_id)
people = st.text(min_size=1, max_size=8).filter(is_user)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)


noted = st.tuples(
    st.tuples(names, texts, texts),
    people,
    st.sampled_from([WRITTEN, SWITCHED_OFF, EXPIRED, OFFLINE]),
    st.integers(0, 4_102_444_800_000),
)


@given(st.lists(noted, max_size=6))
async def test_a_record_is_what_its_description_would_be_encoded_as(
    given: list[tuple[tuple[str, str, str], str, str, int]],
) -> None:
    kafka = Silent()
    kafka.answers.set()
    noting = Outcomes(cast(Producer, kafka), topic="t", node='no"de', now_ms=lambda: 5)
    expected = []
    for (name, campaign, trace), user, outcome, at_ms in given:
        data = {"id": name, "type": "news", "message": [name], "desc": campaign}
        event = encode("news", data, users=(user,), switchable=True, campaign=campaign, trace=trace)
        # More than one person, and time, for one event.
        for at in (at_ms, at_ms, at_ms + 1):
            if outcome == OFFLINE:
                await noting.send([(event, user, outcome)], at)
            else:
                noting.note(event, user, outcome, at)
                await noting._send()
            record = Outcome(
                outcome, 'no"de', datetime.fromtimestamp(at / 1000, UTC), event=name, type="news", user=user,
                campaign=campaign, traceparent=trace,
                data=Raw(event.data) if outcome == OFFLINE else UNSET,
            )  # fmt: skip
            expected.append((user.encode(), msgspec.json.encode(record)))
    assert kafka.taken == expected


def test_the_id_of_an_event_is_found_wherever_it_stands() -> None:
    for data in (
        {"id": "a", "type": "news"},
        {"id": 'a",","type":', "type": "news"},
        {"id": "a,", "type": "news"},
        {"id": "a", "ts": 1, "type": "news"},
        {"type": "news", "id": "a"},
        {"id": "a"},
        {"id": "a", "nested": {"id": "b", "type": "c"}},
    ):
        event = encode("news", data, users=("ann",))
        assert event.event_id_json == msgspec.json.encode(data["id"]) == msgspec.json.encode(event.event_id)
    assert encode("ready", {}, users=()).event_id_json == b'""'


async def test_the_newest_of_the_records_that_were_made_together_are_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(outcomes, "MOST_BYTES", 3_000)
    kafka = Silent()
    kafka.answers.set()
    noting = made(kafka)
    for number in range(50):
        noting.note(published(number), "ann", WRITTEN, 5)
    running = asyncio.create_task(noting.run())
    await eventually(lambda: noting.sent)
    running.cancel()
    await asyncio.wait((running,))
    kept = [number for number in range(50) if any(b'"e%d"' % number in value for _, value in kafka.taken)]
    assert kept == list(range(50 - len(kept), 50))
    assert 5 < len(kept) == noting.sent == 50 - noting.lost


async def test_an_ack_comes_after_what_was_noted_before_it() -> None:
    kafka = Silent()
    kafka.answers.set()
    noting = made(kafka)
    noting.note(published(1), "ann", WRITTEN, 5)
    noting.acked("ann", ["e1"], "read")
    noting.note(published(2), "ann", WRITTEN, 5)
    await noting._send()
    told = [msgspec.json.decode(value, type=Outcome) for _, value in kafka.taken]
    assert [(each.event, each.outcome) for each in told] == [("e1", WRITTEN), ("e1", "read"), ("e2", WRITTEN)]


async def test_few_notes_hold_no_publication_while_kafka_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outcomes, "_TOTALS_S", 0.01)
    kafka = Silent()
    noting = made(kafka)
    running = asyncio.create_task(noting.run())
    noting.note(published(0), "ann", WRITTEN, 5)
    await eventually(lambda: kafka.calls)
    later = published(1)
    references = sys.getrefcount(later)
    noting.note(later, "ann", WRITTEN, 5)
    await eventually(lambda: sys.getrefcount(later) == references)
    running.cancel()
    await asyncio.wait((running,))


async def test_a_node_that_stops_does_not_wait_for_a_silent_kafka() -> None:
    kafka = Silent()
    noting = made(kafka)
    running = asyncio.create_task(noting.run())
    noting.note(published(1), "ann", WRITTEN, 5)
    await eventually(lambda: kafka.calls)
    running.cancel()
    await asyncio.wait((running,), timeout=30)
    assert running.cancelled()


async def test_an_outage_is_waited_for_and_nothing_is_lost(caplog: pytest.LogCaptureFixture) -> None:
    class Refusing(Silent):
        async def send_packed(self, topic: str, records: Sequence[Packed]) -> None:
            self.calls += 1
            if self.calls < 3:
                raise KafkaUnavailable("away")
            self.taken += records

    kafka = Refusing()
    noting = made(kafka)
    running = asyncio.create_task(noting.run())
    noting.note(published(1), "ann", WRITTEN, 5)
    await eventually(lambda: noting.sent == 1)
    assert (len(kafka.taken), noting.lost) == (1, 0)
    assert "away" in caplog.text
    running.cancel()
    await asyncio.wait((running,))


async def test_a_topic_that_takes_no_records_is_no_line_at_each_flush(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Refusing(Silent):
        async def send_packed(self, topic: str, records: Sequence[Packed]) -> None:
            raise RecordRefused("compacted")

        async def send_each(self, topic: str, records: Sequence[Outgoing]) -> Mapping[int, RecordRefused]:
            return dict.fromkeys(range(len(records)), RecordRefused("compacted"))

    noting = made(Refusing())
    for number in range(20):
        noting.note(published(number), "ann", WRITTEN, 5)
        await noting._send()
    assert (noting.sent, noting.lost) == (0, 20)
    [line] = [record.getMessage() for record in caplog.records]
    assert "compacted" in line
    assert "cleanup.policy" in line
