"""Text from elsewhere in the log: none of it looks like a line that this program wrote."""

import io
import logging
import re
import unicodedata
from collections.abc import Iterator
from typing import Literal

import pytest

from pushsse import logs

FORGED = "2026-11-27 07:00:00,000 ERROR   pushsse.node: forged"
ENDS = ["\n", "\r\n", "\r", "\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\u2029"]


@pytest.fixture
def log() -> Iterator[tuple[logging.Logger, io.StringIO]]:
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    logs.configure("info")
    written = io.StringIO()
    [handler] = root.handlers
    assert isinstance(handler, logging.StreamHandler)
    handler.setStream(written)
    try:
        yield logging.getLogger("uvicorn.error"), written
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


@pytest.mark.parametrize("end", ENDS, ids=ascii)
def test_a_record_key_or_an_error_forges_no_line(log: tuple[logging.Logger, io.StringIO], end: str) -> None:
    logger, written = log
    evil = f"key{end}{FORGED}"
    logging.getLogger("pushsse.kafka").warning("%s: the record can't be used", evil)
    logger.error("%s", evil)
    # As uvicorn passes one.
    logger.error("Traceback (most recent call last):\nValueError: %s\n", evil)
    # A text of somebody else that looks like one.
    logging.getLogger("pushsse.kafka").warning("%s", f"Traceback{end}{FORGED}")
    try:
        raise ValueError(evil)
    except ValueError:
        logger.exception("failed")
    lines = written.getvalue().splitlines()
    entries = [line for line in lines if re.match(r"\d{4}-", line)]
    assert len(entries) == 5, written.getvalue()
    assert not any(line.startswith(FORGED) for line in lines)


UNSEEN = [chr(code) for code in range(0x110000) if unicodedata.category(chr(code)) in ("Cf", "Cc", "Cs")]
# A traceback has it, as it has line ends.
UNSEEN.remove("\t")
UNSEEN += ["\u034f", "\u115f", "\u3164", "\u2800", "\ufe0f", "\U000e0100", "\U000e0fff"]


@pytest.mark.parametrize("form", ["console", "json"])
def test_a_name_with_what_nobody_sees_looks_like_no_other(
    log: tuple[logging.Logger, io.StringIO], form: Literal["console", "json"]
) -> None:
    _, written = log
    logs.configure("info", form)
    [handler] = logging.getLogger().handlers
    assert isinstance(handler, logging.StreamHandler)
    handler.setStream(written)
    for start in range(0, len(UNSEEN), 50):
        name = "".join(f"{character}a" for character in UNSEEN[start : start + 50])
        logs.audit.info("%s", name, extra={"user": name})
        try:
            raise ValueError(name)
        except ValueError:
            logs.audit.exception("failed")
    said = written.getvalue().replace("\n", "")
    assert not [character for character in UNSEEN if character in said]
    for escaped in (r"\u200b", r"\U000e0041"):
        assert (escaped if form == "console" else escaped.replace("\\", "\\\\")) in said


def test_an_entry_is_cut(log: tuple[logging.Logger, io.StringIO]) -> None:
    _, written = log
    logging.getLogger("pushsse.kafka").warning("%s: bad", "x" * 1_000_000)
    assert len(written.getvalue()) < 2_200


def test_each_value_from_elsewhere_is_cut_and_the_rest_of_the_entry_stays(
    log: tuple[logging.Logger, io.StringIO],
) -> None:
    _, written = log
    logging.getLogger("pushsse.kafka").warning(
        "%s: refused, at offset %d of %r", "x" * 1_000_000, 7, "y" * 300
    )
    [line] = written.getvalue().splitlines()
    assert re.search(r": x{200}…: refused, at offset 7 of 'y{200}…'$", line)
