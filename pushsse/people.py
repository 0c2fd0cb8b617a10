"""What a stream needs to know of its person when it opens: the switches, and whether a question is open.

Asked by `hub.opening` for each stream; a service. The facts are the stores' of preferences and questions; one
statement reads both, for all people whose streams open at about the same time.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Protocol

from pushsse.backplane.answers import SoFar
from pushsse.database import Database, Statement
from pushsse.errors import DatabaseUnavailable
from pushsse.hub.people import GATHER_S, OPENED_AT_ONCE, PersonState
from pushsse.preferences import Preferences
from pushsse.preferences.store import SWITCHES, SwitchRow, switches_of
from pushsse.questions.service import Questions
from pushsse.questions.store import OPEN_USERS

# Both are our own text, without anybody's values.
_STATES = Statement(f"""{SWITCHES}
    UNION ALL
    SELECT 'question', q."user", '', false, 0, 0, '', 0, '' FROM ({OPEN_USERS}) q""")  # nosec B608


class States(Protocol):
    """Where people's states are read: from the database at each call, never from a cache (guarantee 3)."""

    async def read(self, users: Sequence[str]) -> dict[str, PersonState]:
        """The states of all of `users`. Raises DatabaseUnavailable."""
        ...

    def read_nowait(self, user: str) -> PersonState | None:
        """One person's without waiting; None where that can't be: then `read` is asked."""
        ...


class StateTable:
    """People's states in the tables of preferences and questions."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def read(self, users: Sequence[str]) -> dict[str, PersonState]:
        """The states of all of `users`. Raises DatabaseUnavailable."""
        return _states(users, await self._database.read(SwitchRow, _STATES, list(users)))

    def read_nowait(self, user: str) -> PersonState | None:
        """One person's without waiting; None where that can't be."""
        rows = self._database.read_nowait(SwitchRow, _STATES, [user])
        return None if rows is None else _states((user,), rows)[user]


class StoredPeople:
    """People as their opening streams need them. See `hub.people.People` for the contract."""

    def __init__(self, states: States, preferences: Preferences, questions: Questions) -> None:
        self._states = states
        self._preferences = preferences
        self._questions = questions
        self._answered_at = -GATHER_S
        self._waiting: dict[str, list[asyncio.Future[PersonState]]] = {}
        self._asked = asyncio.Event()

    async def state(self, user: str) -> PersonState:
        """A person's state: all that was committed before this call. Raises DatabaseUnavailable."""
        clock = time.monotonic()
        if clock - self._answered_at >= GATHER_S and (found := self._states.read_nowait(user)) is not None:
            self._answered_at = clock
            return found
        # Guarantee 3: this waits for the next statement, never for the one under way. That one may have read
        # the tables already, and a change committed since then would be missed: the log told of it before
        # this stream began to follow it.
        answer: asyncio.Future[PersonState] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(user, []).append(answer)
        self._asked.set()
        return await answer

    def state_nowait(self, user: str) -> PersonState | None:
        """The same without waiting; None where that can't be."""
        return self._states.read_nowait(user)

    async def states(self, users: Sequence[str]) -> Mapping[str, PersonState]:
        """Several people's, by one statement. Raises DatabaseUnavailable."""
        return await self._states.read(users)

    async def settle(self, user: str) -> None:
        """Publishes a person's changes that aren't known to be in the log. Raises Unavailable."""
        await self._preferences.settle(user)

    async def growing(self, user: str) -> Mapping[str, SoFar]:
        """Each answer that is growing for a person, as far as it has. Raises DatabaseUnavailable."""
        return await self._questions.growing(user)

    async def run(self) -> None:
        """Reads for whoever waits, for ever."""
        while True:
            await self._asked.wait()
            # A statement waits for further people where one was answered a moment before.
            if time.monotonic() - self._answered_at < GATHER_S and len(self._waiting) < OPENED_AT_ONCE:
                await asyncio.sleep(GATHER_S)
            # Guarantee 3: taken off the list before the statement begins, so that who asks meanwhile is in
            # the next one.
            batch = dict(islice(self._waiting.items(), OPENED_AT_ONCE))
            for user in batch:
                del self._waiting[user]
            if not self._waiting:
                self._asked.clear()
            await self._answer(batch)
            self._answered_at = time.monotonic()

    async def _answer(self, batch: dict[str, list[asyncio.Future[PersonState]]]) -> None:
        found: dict[str, PersonState] = {}
        failure: DatabaseUnavailable | None = None
        try:
            found = await self._states.read(list(batch))
        except DatabaseUnavailable as error:
            failure = error
        for user, answers in batch.items():
            for answer in answers:
                # The stream that asked may have gone.
                if answer.done():
                    continue
                if failure is None:
                    answer.set_result(found[user])
                else:
                    answer.set_exception(failure)


def _states(users: Sequence[str], rows: Sequence[SwitchRow]) -> dict[str, PersonState]:
    asking = {row.user for row in rows if row.kind == "question"}
    return {
        user: PersonState(
            switches.version,
            switches.off,
            switches.pending,
            switches.logged,
            open_question=user in asking,
            revision=switches.revision,
            quiet=switches.quiet,
        )
        for user, switches in switches_of(users, rows).items()
    }
