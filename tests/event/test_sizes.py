"""What a publication counts, for its log and for whoever pays, is about what the log keeps of it."""

import re
import tracemalloc
from datetime import UTC, datetime

import pytest
from msgspec.structs import replace

from pushsse.backplane import Entry, codec
from pushsse.backplane.memory.logs import MemoryLog
from pushsse.errors import InvalidInput
from pushsse.event import MAX_FRAME_BYTES, Change, Publication, encode
from pushsse.hub.log_tail import LogTail
from pushsse.questions import By, Link, Question, asked_size, drafts_of, said_size

NUMBERS = {"version", "revision"}
TYPES = tuple(f"{number:04}".ljust(64, "x") for number in range(1_000))
# Each at its largest, and what it is otherwise.
OF_A_CHANGE: dict[str, object] = {
    "user": "n" * 128,
    "before": TYPES,
    "after": TYPES,
    "quiet": '{"from":"22:00","to":"07:00"}' * 20,
}
SMALL = Change("ann", 1, ("news",), (), 1, None)


TEXTS = {"name", "subject", "campaign", "trace", "collapse", "origin"}
# Those with tests of their own, and those of a few bytes.
OTHERS = {"body", "users", "change", "switchable", "expires_ms", "attempt"}


def stored(publication: Publication) -> int:
    """The bytes of its entry."""
    return len(codec.encode(publication))


def of_change(**members: object) -> Publication:
    change = Change(**{name: getattr(SMALL, name) for name in Change.__struct_fields__} | members)
    return Publication("preferences", b"data: {}\n", ("ann",), change=change)


@pytest.mark.parametrize("member", OF_A_CHANGE)
def test_a_change_counts_what_the_log_keeps_of_each_member(member: str) -> None:
    plain, large = of_change(), of_change(**{member: OF_A_CHANGE[member]})
    assert large.size - plain.size == pytest.approx(stored(large) - stored(plain), rel=0.05)
    assert large.size >= stored(large) * 0.95


def test_every_member_of_a_change_is_looked_at() -> None:
    assert OF_A_CHANGE.keys() | NUMBERS == set(Change.__struct_fields__)


@pytest.mark.parametrize("letter", ["n", "漢", "𝄞"])
@pytest.mark.parametrize("member", sorted(TEXTS))
def test_a_publication_counts_what_the_log_keeps_of_each_text(member: str, letter: str) -> None:
    plain = Publication("news", b"data: 1\n", ("ann",))
    large = replace(plain, **{member: letter * 128})
    assert large.size - plain.size == pytest.approx(stored(large) - stored(plain), rel=0.05)


def test_every_member_of_a_publication_is_looked_at() -> None:
    assert set(Publication.__struct_fields__) == TEXTS | OTHERS


@pytest.mark.parametrize("letter", ["n", "é", "漢", "𝄞", '"'])
@pytest.mark.parametrize("people", [1, 2, 10_000])
def test_names_count_as_bytes(letter: str, people: int) -> None:
    names = tuple(f"{number:05}".ljust(128, letter) for number in range(people))
    made = Publication("news", b"data: 1\n", names)
    assert made.size == pytest.approx(stored(made), rel=0.05, abs=32)
    # What waits for the disk, and what the log holds by then, too.
    log = MemoryLog("3", "e", keep_ms=60_000, keep_bytes=stored(made) * 3)
    for order in range(1, 9):
        log.append(order, order, made)
    assert log.appended_bytes == made.size * 8
    assert 2 <= len(log.entries()) <= 3


def test_the_memory_of_a_node_holds_as_much_of_long_names_as_of_short_ones() -> None:
    ascii_tail, wide_tail = held("n" * 512), held("𝄞" * 128)
    assert 0 < ascii_tail == wide_tail < 100


@pytest.mark.parametrize("kind", ["log", "tail"])
def test_what_is_no_longer_held_takes_no_memory(kind: str) -> None:
    keep_bytes, size = 1024**2, 32_000
    log = MemoryLog("3", "e", keep_ms=60_000, keep_bytes=keep_bytes)
    tail = LogTail("3", keep_bytes=keep_bytes)
    most = 0
    tracemalloc.start()
    try:
        for number in range(1, 1_500):
            made = Publication("news", number.to_bytes(2, "big") * (size // 2), ("ann",))
            if kind == "log":
                log.append(number, number, made)
                log.take_dropped()
            else:
                tail.append(Entry("3", number, number, number, made))
            most = max(most, tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert keep_bytes - size < most < keep_bytes * 1.2


def held(name: str) -> int:
    """How many publications for many such people a node keeps in 10 MiB."""
    made = Publication("news", b"data: 1\n", (name,) * 1_000)
    tail = LogTail("3", keep_bytes=10 * 1024**2)
    for number in range(1, 101):
        tail.append(Entry("3", number, number, number, made))
    return len(tail.after(tail.first - 1, 1_000))


@pytest.mark.parametrize("letter", ["n", "漢", "𝄞", '"'])
def test_a_question_costs_what_its_events_take_however_long_the_names_are(letter: str) -> None:
    user, conversation, name = letter * 128, letter * 127 + "c", letter * 64
    now, links = datetime.now(UTC), (Link("Refunds", "https://example.org/refunds"),)
    question = Question(
        id="01JD0000000000000000000000",
        user=user,
        conversation=conversation,
        text="How?",
        status="pending",
        asked_at=now,
        updated_at=now,
        deadline_at=now,
    )
    asked = sum(stored(draft.publication) for draft in drafts_of(question)) * 3
    assert asked * 0.95 <= asked_size("How?", user=user, conversation=conversation) <= asked * 1.5 + 400
    message = replace(question, text="", status="answered", answer="So.", by=By("staff", name), links=links)
    said = sum(stored(draft.publication) for draft in drafts_of(message))
    cost = said_size("So.", links, name=name, user=user, conversation=conversation)
    assert said * 0.95 <= cost <= said * 1.5 + 400


def test_a_frame_of_one_byte_too_many_says_so() -> None:
    def encoded(size: int) -> bytes:
        return encode("news", "x" * size, users=None).body

    longest = MAX_FRAME_BYTES
    with pytest.raises(InvalidInput) as refused:
        encoded(longest)
    found = re.search(r"has (\d+) bytes, over (\d+)", refused.value.violations[0].detail)
    assert found is not None
    around = int(found[1]) - longest
    assert encoded(longest - around)
    with pytest.raises(InvalidInput, match=f"has {longest + 1} bytes, over {longest}"):
        encoded(longest - around + 1)
