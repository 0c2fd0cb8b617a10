"""Whose question is answered next: people take turns, so that nobody's questions keep another's waiting.

Used by the service. All plain functions: nothing can come between a look and a step.
"""

from collections import Counter, deque
from dataclasses import dataclass, field


@dataclass(slots=True)
class Turns:
    """Questions that wait, by person, and how many of each person are being answered. Bounded."""

    most_running: int = 64
    most_of_one: int = 4
    most_waiting: int = 1_000
    waiting: int = 0
    _lines: dict[str, deque[str]] = field(default_factory=dict)
    _running: Counter[str] = field(default_factory=Counter)

    @property
    def room(self) -> int:
        """How many more questions may wait."""
        return max(0, self.most_waiting - self.waiting)

    def put(self, user: str, question_id: str) -> bool:
        """Lets a question wait; False if there is no room."""
        if not self.room:
            return False
        self._lines.setdefault(user, deque()).append(question_id)
        self.waiting += 1
        return True

    def next(self) -> tuple[str, str] | None:
        """The next person and question, which count as running until `done`; None if nobody may begin."""
        if self._running.total() >= self.most_running:
            return None
        user = next((user for user in self._lines if self._running[user] < self.most_of_one), None)
        if user is None:
            return None
        line = self._lines.pop(user)
        question_id = line.popleft()
        if line:
            self._lines[user] = line
        self.waiting -= 1
        self._running[user] += 1
        return user, question_id

    def done(self, user: str) -> None:
        """A question of this person isn't being answered any more."""
        self._running[user] -= 1
        if not self._running[user]:
            del self._running[user]
