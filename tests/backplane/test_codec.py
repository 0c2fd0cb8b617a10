"""What travels through Redis, and what becomes of it on a node of another release."""

import logging

import msgspec
import pytest

from pushsse.backplane import codec
from pushsse.backplane.answers import LiveDelta
from pushsse.event import Change, Publication

# With every member, so that what follows one is new to this release.
TEXTS = ("autumn", "00-1-2-01", "order-7", "push.events/0/5")
FULL = Publication(
    "note", b"data: {}\n", ("ann", "b\u00f6"), True, 2**42, "q", Change("ann", 1, (), ("news",)), 2, *TEXTS
)


def of_version(version: int, *items: object) -> bytes:
    return bytes((version,)) + msgspec.msgpack.encode(items)


@pytest.mark.parametrize("publication", [FULL, Publication("ping", b"data: {}\n", None)])
def test_a_publication_comes_back_as_it_was(publication: Publication) -> None:
    assert codec.Decoder().entry(codec.encode(publication)) == publication


def test_a_delta_comes_back_as_it_was_and_other_releases_read_it() -> None:
    delta = LiveDelta("answer.delta", b"data: {}\n", ("ann",), subject="q", attempt=3)
    assert codec.Decoder().message(codec.encode_live(delta)) == delta
    # One release earlier has no attempts.
    without = of_version(codec.VERSION, "answer.delta", b"data: {}\n", ["ann"], False, 0, "q", None)
    assert codec.Decoder().message(b"0\n" + without) == msgspec.structs.replace(delta, attempt=0)


def test_a_change_comes_back_as_it_was() -> None:
    change = Change("ann", 3, ("news",), (), 7, '{"zone":"UTC"}')
    assert codec.Decoder().change(codec.encode_change(change)) == change
    longer = msgspec.msgpack.encode(["ann", 3, ["news"], [], 7, '{"zone":"UTC"}', "newer"])
    assert codec.Decoder().change(longer) == change
    # One release earlier has no catalogue and no quiet hours.
    assert codec.Decoder().change(msgspec.msgpack.encode(["ann", 3, ["news"], []])) == Change(
        "ann", 3, ("news",), (), 0, None
    )


@pytest.mark.parametrize("version", [codec.VERSION - 1, codec.VERSION, codec.VERSION + 1])
def test_the_versions_next_to_ours_are_read_with_items_that_we_do_not_know(version: int) -> None:
    change = ["ann", 1, [], ["news"], 0, None, "newer"]
    entry = of_version(
        version, "note", b"data: {}\n", ["ann", "b\u00f6"], True, 2**42, "q", change, 2, *TEXTS, "newer"
    )
    assert len(Publication.__struct_fields__) == len(msgspec.msgpack.decode(entry[1:])) - 1
    assert codec.Decoder().entry(entry) == FULL


def test_an_entry_with_fewer_items_is_read(caplog: pytest.LogCaptureFixture) -> None:
    assert codec.Decoder().entry(of_version(1, "note", b"data: {}\n", None)) == Publication(
        "note", b"data: {}\n", None
    )
    assert not caplog.records


@pytest.mark.parametrize(
    "entry",
    [b"", b"\x01", b"\x01\xc1", of_version(9, "note", b"x", None), of_version(1, 5), codec.encode(FULL)[:-3]],
)
def test_an_entry_that_cannot_be_read_is_for_nobody_and_logged(
    entry: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert codec.Decoder().entry(entry).users == ()
    assert len(caplog.records) == 1


def test_a_message_has_the_entries_of_one_call() -> None:
    one, two = codec.encode(FULL), b"\x01\nwith a line end"
    message = codec.Decoder().message(
        b"1 abcd1234 7 90 1700000000000 %d %d\n" % (len(one), len(two)) + one + two
    )
    assert message == codec.Appended("abcd1234", 7, 90, 1_700_000_000_000, (one, two))
    assert isinstance(message, codec.Appended)
    assert message.last == 8


@pytest.mark.parametrize("payload", [b"", b"7 a\nb", b"1 \n", b"1 a b c d 1\nx"])
def test_a_message_that_cannot_be_read_is_skipped_and_logged(
    payload: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert codec.Decoder().message(payload) is None
    assert len(caplog.records) == 1
