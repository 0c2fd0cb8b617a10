"""The search for people who were away: of how many logs at a time, and whom it finds."""

import asyncio
from collections.abc import Collection, Mapping, Sequence
from types import SimpleNamespace
from typing import cast

import pytest

from pushsse import presence
from pushsse.backplane import Append, Draft, Search, Stay, log_of
from pushsse.backplane.memory import MemoryBackplane
from pushsse.dispatcher import KnowsSwitches
from pushsse.event import Publication, encode
from pushsse.metrics import Metrics
from pushsse.outcomes import OFFLINE, Outcomes
from pushsse.position import Mark
from pushsse.presence import Offline, Presence
from tests.waiting import eventually

pytestmark = pytest.mark.anyio
SHARDS = 20


class Log(MemoryBackplane):
    """Counts how many logs each search asks about."""

    def __init__(self) -> None:
        super().__init__(shards=SHARDS, keep_s=600, keep_bytes=1 << 22, metrics=Metrics())
        self.searched: list[int] = []

    async def missed(self, after: Mapping[str, Mark], *, before_ms: int, away_ms: int, limit: int) -> Search:
        self.searched.append(len(after))
        return await super().missed(after, before_ms=before_ms, away_ms=away_ms, limit=limit)


class Told:
    """Takes the outcomes."""

    def __init__(self) -> None:
        self.people: list[str] = []

    async def send(self, noted: Sequence[tuple[Publication, str, str]], at_ms: int) -> None:
        assert {outcome for _, _, outcome in noted} <= {OFFLINE}
        self.people += [user for _, user, _ in noted]


class AllOn:
    async def off_among(self, users: Collection[str], types: Collection[str]) -> frozenset[tuple[str, str]]:
        return frozenset()


@pytest.fixture
async def log(anyio_backend: str) -> Log:
    return Log()


async def found(log: Log, monkeypatch: pytest.MonkeyPatch, wanted: int) -> list[str]:
    """Whom the search tells of, once they are so many and it has come to its end."""
    monkeypatch.setattr(presence, "BEHIND_MS", -1_000)
    told = Told()
    there = cast(Presence, SimpleNamespace(known_since=-1_000_000.0))
    offline = Offline(log, there, cast(KnowsSwitches, AllOn()), cast(Outcomes, told), node="one")
    running = asyncio.create_task(offline.run())
    try:
        await eventually(lambda: len(told.people) >= wanted)
        searches = len(log.searched)
        await eventually(lambda: len(log.searched) > searches + 1)
    finally:
        running.cancel()
        await asyncio.wait((running,))
    return told.people


async def fill(log: Log, people: Sequence[str]) -> None:
    appends: dict[str, list[Draft]] = {}
    for number, user in enumerate(people):
        event = encode("news", {"id": f"e{number}", "message": 1}, users=(user,), switchable=True)
        appends.setdefault(log_of(user, SHARDS), []).append(Draft(event))
    await log.publish([Append(name, tuple(drafts)) for name, drafts in appends.items()])


async def test_each_of_many_who_were_away_is_told_of_once_and_few_logs_are_asked_about_at_a_time(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    people = [f"p{number}" for number in range(3_000)]
    await log.tell_presence("here", {user: Stay(1, 1) for user in people[::500]}, anew=True)
    await fill(log, people)
    away = [user for number, user in enumerate(people) if number % 500]
    assert sorted(await found(log, monkeypatch, len(away))) == sorted(away)
    # The first asks about all of them, which have more than fits; then come a few logs at a time.
    first, *others = log.searched[: log.searched.index(SHARDS, 1)]
    assert first == SHARDS
    assert len(others) >= 5
    assert max(others) <= 8


async def test_a_little_is_found_with_one_search(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    await fill(log, ["ann", "bo", "cy"])
    assert sorted(await found(log, monkeypatch, 3)) == ["ann", "bo", "cy"]
    assert set(log.searched) == {SHARDS}
