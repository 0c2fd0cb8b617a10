"""Events for many thousands of people leave the event loop to others on their way into the log."""

import asyncio
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

import pytest

from pushsse import event
from pushsse.backplane import Draft
from pushsse.backplane.memory import MemoryBackplane
from pushsse.dispatcher import Dispatcher, SwitchedOff
from pushsse.metrics import Metrics

pytestmark = pytest.mark.anyio
_EVENTS = 8


class Unlisted:
    """A catalogue that takes no notice of types."""

    def notice(self, names: Iterable[str]) -> None:
        pass


class AllOn:
    """Switches of people who have switched nothing off."""

    async def off_among(self, users: Sequence[str], types: Sequence[str]) -> SwitchedOff:
        return frozenset()

    def off_among_nowait(self, users: Sequence[str], name: str) -> SwitchedOff:
        return frozenset()


async def test_others_have_their_turn_between_events_for_many_people() -> None:
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    metrics = Metrics()
    backplane = MemoryBackplane(shards=4, keep_s=600, keep_bytes=4 * 1024**2, metrics=metrics)
    dispatcher = Dispatcher(backplane=backplane, switches=AllOn(), types=Unlisted(), metrics=metrics)
    people = [f"{number:x}" for number in range(10_000)]
    made = event.from_json({"type": "a", "message": 1, "to": {"users": people}, "id": "x"})
    publications = [
        event.publication(made, event_id=str(number), at=datetime.now(UTC), max_age_s=60)
        for number in range(_EVENTS)
    ]
    ticking = asyncio.create_task(other())
    drafts = [Draft(publication, None, f"a|{number}") for number, publication in enumerate(publications)]
    receipt = await dispatcher.dispatch(drafts)
    ticking.cancel()
    assert receipt.appended == 4 * _EVENTS
    # However the calls were divided, each log has the events in order.
    for log in "0123":
        entries = (await backplane.read({log: 0}, limit=100)).entries
        assert [entry.publication.body for entry in entries] == [one.body for one in publications]
    # Between two events, and between two logs.
    assert turns >= 3 * _EVENTS
