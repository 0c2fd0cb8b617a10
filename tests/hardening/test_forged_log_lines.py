"""Text from elsewhere in the log: none of it looks like a line that this program wrote."""

import io
import logging
import re
from collections.abc import Iterator

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
