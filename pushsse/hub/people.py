"""What the hub reads of people: the contract, and reading it again where something was lost.

The opening reads a person's state for each stream. `Refresh`, a service, reads switches again when the node
has lost changes of them or the catalogue has changed, and the answers that grow, for somebody with a new
stream and wherever deltas are missing. `people` implements the contract, `kicks` that of revocations.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Protocol

from msgspec import Struct

from pushsse.backplane import Backplane
from pushsse.backplane.answers import SoFar
from pushsse.errors import BackplaneUnavailable, Unavailable
from pushsse.hub.hub import Hub
from pushsse.position import Mark
from pushsse.retry import Backoff
from pushsse.stream.subscriber import Person

# Streams that open within this time have their people's switches read together.
GATHER_S = 0.005
# One statement has at most so many people: more would keep the event loop with their streams for too long.
OPENED_AT_ONCE = 64
_READ_AT_ONCE = 16
_READ_PAUSE_S = 0.05
_REFRESH_PAUSE_S = 0.005


class PersonState(Struct, frozen=True):
    """What the database says of a person when one of their streams opens.

    `version` numbers the last change of a switch, 0 for none; `off` is every type that is off; `pending` says
    that a committed change isn't known to be in the log; `logged` is where in the person's shard log the last
    one is that is known to be there; `open_question` says that a question of theirs has no end yet;
    `revision` is the catalogue's that `off` follows from; `quiet` are the quiet hours as JSON, "" for none.
    """

    version: int
    off: frozenset[str]
    pending: bool
    logged: Mark | None
    open_question: bool
    revision: int = 0
    quiet: str = ""


class People(Protocol):
    """What the opening needs to know about people. The preferences and the questions answer it together.

    Order: `state` must read what was committed before it was called, because what is committed later reaches
    the node through the person's shard log, which it follows by then (guarantee 3). One call is one round
    trip to the database at most: every stream that opens waits for it.
    """

    async def state(self, user: str) -> PersonState:
        """The person's switches, and whether a question is open. Raises DatabaseUnavailable."""
        ...

    def state_nowait(self, user: str) -> PersonState | None:
        """As `state`, without waiting; None where that can't be."""
        ...

    async def states(self, users: Sequence[str]) -> Mapping[str, PersonState]:
        """As `state`, of several people by one statement. Raises DatabaseUnavailable."""
        ...

    async def settle(self, user: str) -> None:
        """Publishes the person's changes that aren't known to be in the log. Raises Unavailable."""
        ...

    async def growing(self, user: str) -> Mapping[str, SoFar]:
        """Each answer that is growing, as far as it has, by question. Raises Unavailable.

        Called after the stream has begun, so that no delta is missed between this and what is heard live.
        """
        ...


class Revocations(Protocol):
    """Which tokens were revoked, as far as this node knows by now. Asked for each stream, without waiting."""

    @property
    def loaded(self) -> bool:
        """Whether it knows what was revoked before the node started. Until then no token is good."""
        ...

    def refuses(self, user: str, issued_at: float | None) -> bool:
        """Whether what was issued to a person at a time (None: unknown) was revoked."""
        ...


class NothingRevoked:
    """No token was."""

    loaded = True

    def refuses(self, user: str, issued_at: float | None) -> bool:
        """Never."""
        return False


def learn(person: Person, state: PersonState) -> None:
    """Takes a state that was read."""
    person.learn(state.version, state.off, revision=state.revision, quiet=state.quiet)


class Refresh:
    """Reads again what this node lacks: people's switches, and answers so far."""

    def __init__(self, hub: Hub, backplane: Backplane, people: People) -> None:
        self._hub = hub
        self._backplane = backplane
        self._people = people
        self._tasks: asyncio.TaskGroup | None = None

    async def run(self) -> None:
        """Reads answers of which the node lacks something, for ever; its other tasks run as long."""
        async with asyncio.TaskGroup() as self._tasks:
            await self._read_answers()

    def switches(self, people: Sequence[Person]) -> None:
        """Reads the switches of people again: changes of them were lost, or the catalogue has changed."""
        assert self._tasks is not None
        self._tasks.create_task(self._read_switches(people), name="refresh switches")

    def answers(self, user: str) -> None:
        """Reads the answers that are growing for somebody with a new stream."""
        assert self._tasks is not None
        self._tasks.create_task(self._offer_growing(user), name="growing answers")

    async def _read_switches(self, people: Sequence[Person]) -> None:
        backoff, start = Backoff(), 0
        while start < len(people):
            # Also for somebody whose stream is only opening, and may have read them before the loss.
            batch = {one.name: one for one in people[start : start + OPENED_AT_ONCE] if one.holds}
            try:
                states = await self._people.states(list(batch)) if batch else {}
            except Unavailable:
                await asyncio.sleep(backoff.next_s())
                continue
            backoff.reset()
            for name, person in batch.items():
                learn(person, states[name])
            start += OPENED_AT_ONCE
            if start < len(people):
                # Others open streams meanwhile, also where a state is read without waiting.
                await asyncio.sleep(_REFRESH_PAUSE_S)

    async def _offer_growing(self, user: str) -> None:
        since = time.monotonic()
        try:
            answers = await self._people.growing(user)
        except Unavailable:
            # The next delta shows that something is missing, and the whole answer comes at the end.
            return
        for question, so_far in answers.items():
            self._hub.learn(question, user, so_far, since=since)

    async def _read_answers(self) -> None:
        """Those of which the node lacks something: where deltas were lost."""
        growing, backoff = self._hub.growing, Backoff()
        while True:
            await growing.asked.wait()
            growing.asked.clear()
            wanted = dict(islice(growing.wanted.items(), _READ_AT_ONCE))
            since = time.monotonic()
            try:
                found = await self._backplane.so_far(list(wanted))
            except BackplaneUnavailable:
                growing.asked.set()
                await asyncio.sleep(backoff.next_s())
                continue
            backoff.reset()
            for question, user in wanted.items():
                # Before: what is learned may show that something is missing still.
                growing.wanted.pop(question, None)
                self._hub.learn(question, user, found.get(question), since=since)
            if growing.wanted:
                growing.asked.set()
                await asyncio.sleep(_READ_PAUSE_S)
