"""Functions that read records, as operators write them, for `python:tests.intake.decoders:NAME`."""

import json
from collections.abc import Iterator
from typing import Any

from pushsse.kafka import Record


def one(record: Record) -> dict[str, Any]:
    return {"type": "order", "message": json.loads(record.value or b"null"), "to": "all"}


def several(record: Record) -> list[dict[str, Any]]:
    """Back and forth between people and everybody."""
    audiences: list[Any] = [{"users": ["ann"]}, "all", {"users": ["ann", "bo"]}, "all", {"users": ["ann"]}]
    return [{"type": "order", "message": {"n": number}, "to": to} for number, to in enumerate(audiences)]


def as_told(record: Record) -> Any:
    """Whatever the record's value says, as Python."""
    return eval(record.value or b"None", {"record": record})


def failing(record: Record) -> None:
    raise KeyError("no such schema")


async def asynchronous(record: Record) -> None: ...


def generating(record: Record) -> Iterator[None]:
    yield


def without_a_record() -> None: ...


NO_FUNCTION = 7
