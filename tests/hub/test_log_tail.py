"""The tail of a log that a node keeps in memory."""

import tracemalloc
from datetime import UTC, datetime

import pytest
from msgspec.structs import replace

from pushsse import event
from pushsse.backplane import Entry, Head, codec
from pushsse.hub.log_tail import LogTail

_KEEP_BYTES = 512 * 1024


@pytest.mark.parametrize(
    "texts",
    [
        {},
        {"campaign": "spring", "trace": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"},
        {"campaign": "c" * 128, "trace": "t" * 55, "collapse": "k" * 128, "origin": "push.events-12-3456789"},
    ],
    ids=["none", "some", "all"],
)
def test_a_tail_of_small_events_takes_no_more_memory_than_it_is_allowed_to_keep(
    texts: dict[str, str],
) -> None:
    small = event.decode(b'{"type": "alarm", "message": {"text": "fire"}, "to": {"users": ["person12"]}}')
    made = event.publication(small, event_id="order-981", at=datetime.now(UTC), max_age_s=60)
    blob = codec.encode(replace(made, **texts))
    log = LogTail("12", keep_bytes=_KEEP_BYTES)
    log.begin(Head("epoch", 0, 1, 0), ())
    tracemalloc.start()
    try:
        for number in range(1, 10_001):
            at_ms = 1_790_000_000_000 + number
            log.append(Entry("12", number, 10_000 + number, at_ms, codec.Decoder().entry(bytes(blob))))
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # A fifth: the list's front is cut off now and then only.
    assert _KEEP_BYTES / 2 < held < _KEEP_BYTES * 1.2


def test_what_is_older_than_a_minute_is_forgotten_and_the_place_stays() -> None:
    made = event.encode("news", 1, users=("ann",))
    log = LogTail("12", keep_bytes=_KEEP_BYTES)
    log.begin(Head("epoch", 0, 1, 0), ())
    for number in range(1, 301):
        log.append(Entry("12", number, number, 1_790_000_000_000 + number * 1000, made))
    assert log.first == 300 - 60
    assert [entry.number for entry in log.after(290, 100)] == list(range(291, 301))
    assert not log.reaches(200)
    log.forget(1_790_000_000_000 + 400_000)
    assert (log.first, log.mark.number) == (301, 300)
    assert log.reaches(300)
    assert log.after(300, 10) == []
    assert not log.reaches(299)
