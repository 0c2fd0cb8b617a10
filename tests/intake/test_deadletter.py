import pytest

from pushsse.kafka.dead_letters import CUT_BYTES, MAX_LETTER_BYTES, Refused, letter

from .test_decode import Given


def test_a_letter_has_the_records_bytes_and_says_where_it_comes_from_and_why() -> None:
    found = letter(Refused(Given(b"\xff{", key=b"k", headers=[("a", b"1")]), "$", "isn't UTF-8"))
    assert (found.key, found.value) == (b"k", b"\xff{")
    assert found.headers == (
        ("a", b"1"),
        ("error", b"isn't UTF-8"),
        ("topic", b"orders"),
        ("partition", b"2"),
        ("offset", b"5"),
    )


@pytest.mark.parametrize("size", [MAX_LETTER_BYTES, 5 * 1024 * 1024])
def test_a_record_that_is_too_large_is_cut_and_says_so(size: int) -> None:
    found = letter(Refused(Given(b"x" * size, headers=[("a", b"1")]), "$", "no"))
    assert found.value == b"x" * CUT_BYTES
    assert dict(found.headers)["truncated"] == b"true"


def test_headers_without_room_are_left_out_and_that_is_said() -> None:
    found = letter(Refused(Given(b"x", headers=[("a", b"1" * 100_000)]), "$", "no"))
    assert found.value == b"x"
    assert "a" not in dict(found.headers)
    assert dict(found.headers)["truncated"] == b"true"


def test_a_header_of_the_record_doesnt_hide_ours() -> None:
    found = letter(Refused(Given(b"x", headers=[("offset", b"forged")]), "$", "no"))
    assert dict(found.headers)["offset"] == b"5"


def test_an_error_of_any_length_and_with_surrogates_fits() -> None:
    found = letter(Refused(Given(b"x"), "$", "\ud800" + "é" * 5000))
    assert len(dict(found.headers)["error"]) <= 2048
