"""The answers that grow for people of this node, as far as it has heard them, and how much each listener has.

Delivery hands it each delta, and asks it what a stream gets of one; the opening and followers hand it answers
so far that were read. Listeners are streams, and the taps of `Hub.publications`. Whoever lacks something gets
it in one delta, out of what is here; where something is missing here, `people.Refresh` reads it for `wanted`.
Deliberate: nothing here awaits, so what was sent to a listener and what is noted of it are one step.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence

import msgspec
from msgspec import UNSET, Struct

from pushsse.backplane.answers import DeltaData, LiveDelta, Place, SoFar, deltas_since
from pushsse.event import Publication

# Together, in characters: where there are more, the one that grew least lately is forgotten, and is read when
# it grows.
MOST_CHARACTERS = 64_000_000
# Deltas of an answer that wait for what comes before them.
_MOST_EARLY = 1_000
# Questions whose end is remembered: a reading that began before it may still bring their text.
_MOST_ENDED = 2_000
_data = msgspec.json.Decoder(DeltaData)


class _Kind(Struct):
    """What kind of part a delta has."""

    type: str


_kind = msgspec.json.Decoder(_Kind)


class GrowingAnswer:
    """One answer as this node has heard it, up to `place`; `early` are deltas that came after a hole."""

    __slots__ = ("_parts", "_status", "_text", "early", "place", "question", "sent", "user")

    def __init__(self, question: str, user: str) -> None:
        self.question = question
        self.user = user
        self.place = Place()
        self.early: list[LiveDelta] = []
        self.sent: dict[object, Place] = {}
        self._text: list[str] = []
        self._parts: list[bytes] = []
        self._status = b""

    @property
    def latest(self) -> int:
        """The latest attempt that was heard of."""
        return max(self.place.attempt, max((delta.attempt for delta in self.early), default=0))

    @property
    def so_far(self) -> SoFar:
        """All of it."""
        if len(self._text) > 1:
            self._text = ["".join(self._text)]
        text = self._text[0] if self._text else ""
        return SoFar(self.place.attempt, self.place.seq, text, tuple(self._parts), self._status)

    def take(self, delta: LiveDelta, data: DeltaData) -> Place | None:
        """Grows by the delta that comes next; the place before it, None if it isn't next."""
        before = self.place
        if delta.attempt > before.attempt and data.seq == 1:
            # Another attempt, from its beginning: all that was there is void.
            before = Place(delta.attempt)
            self._text, self._parts = [], []
        elif (delta.attempt, data.seq) != (before.attempt, before.seq + 1):
            return None
        self._status = b""
        kept = False
        if data.part is not UNSET:
            part = bytes(data.part)
            kept = _kind.decode(part).type != "status"
            if kept:
                self._parts.append(part)
            else:
                self._status = part
        if data.text:
            self._text.append(data.text)
        self.place = before.after(data, kept=kept)
        return before

    def become(self, so_far: SoFar) -> None:
        """Takes what was read of it, if that is more than what is here, and the early deltas that follow."""
        if (so_far.attempt, so_far.seq) > (self.place.attempt, self.place.seq):
            self._text, self._parts, self._status = [so_far.text], list(so_far.parts), so_far.status
            whole = DeltaData(self.question, so_far.seq, 0, so_far.text)
            self.place = Place(so_far.attempt, parts=len(so_far.parts)).after(whole, kept=False)
        early, self.early = self.early, []
        for delta in early:
            data = _data.decode(delta.data)
            if self.is_news(delta, data) and self.take(delta, data) is None:
                self.early.append(delta)

    def is_news(self, delta: LiveDelta, data: DeltaData) -> bool:
        """Whether a delta comes after what is here."""
        return (delta.attempt, data.seq) > (self.place.attempt, self.place.seq)

    def lacking(self, listener: object) -> Sequence[LiveDelta]:
        """What a listener lacks of it, which it is sent now."""
        sent = self.sent.get(listener, Place())
        if (sent.attempt, sent.seq) >= (self.place.attempt, self.place.seq):
            return ()
        self.sent[listener] = self.place
        return tuple(deltas_since(sent, self.so_far, question=self.question, user=self.user))


class PlacedDelta(Publication, frozen=True, array_like=True, gc=True):
    """A delta on its way to the listeners: of which answer, and what they need to have before it."""

    answer: GrowingAnswer | None = None
    before: Place = Place()
    after: Place = Place()

    def for_listener(self, listener: object) -> Sequence[Publication]:
        """What a listener gets: this delta, all that it lacks instead, or nothing if it has it."""
        answer = self.answer
        assert answer is not None
        sent = answer.sent.get(listener, Place())
        if sent == self.before or (self.before.seq == 0 and sent.attempt < self.before.attempt):
            answer.sent[listener] = self.after
            return (self,)
        return answer.lacking(listener)


class GrowingAnswers:
    """The answers that grow for the people of this node.

    `wanted` are questions whose answers have to be read; whoever serves it waits for `asked`.
    """

    def __init__(self) -> None:
        self.wanted: dict[str, str] = {}
        self.asked = asyncio.Event()
        # Whose they are. Empty where nothing grows, which is all that a stream's opening looks at.
        self.people: dict[str, set[str]] = {}
        # That which grew least lately first.
        self._answers: OrderedDict[str, GrowingAnswer] = OrderedDict()
        self._ended: OrderedDict[str, tuple[float, int]] = OrderedDict()
        self._characters = 0

    def hear(self, delta: LiveDelta) -> Publication | None:
        """What is to be delivered of a delta that was heard for somebody who is here; None for nothing."""
        if delta.attempt == 0 or not delta.users:
            # Of a release without attempts, whose deltas reach back: any client can take them as they are.
            return delta
        data = _data.decode(delta.data)
        if delta.attempt <= self._ended.get(delta.subject, (0.0, -1))[1]:
            return None
        answer = self._answer(delta.subject, delta.users[0])
        if not answer.is_news(delta, data):
            return None
        characters = answer.place.characters
        before = answer.take(delta, data)
        if before is None:
            answer.early.append(delta)
            del answer.early[:-_MOST_EARLY]
            self.want(delta.subject, answer.user)
            return None
        # Deltas are heard in their order: what waited is of an earlier attempt.
        answer.early.clear()
        self._characters += answer.place.characters - characters
        self._forget_some()
        name, body, users, subject = delta.name, delta.body, delta.users, delta.subject
        return PlacedDelta(
            name, body, users, subject=subject, answer=answer, before=before, after=answer.place
        )

    def want(self, question: str, user: str) -> None:
        """An answer of somebody here has to be read."""
        self.wanted[question] = user
        self.asked.set()

    def learn(self, question: str, user: str, so_far: SoFar | None, *, since: float) -> None:
        """Takes an answer that was read from a time on (monotonic); None: there is none."""
        ended_at, ended = self._ended.get(question, (-1.0, 0))
        # What was read of a later attempt isn't what has ended.
        if since <= ended_at and (so_far is None or ended < 0 or so_far.attempt <= ended):
            return
        if so_far is None:
            # What is heard of it later has to be read again.
            if (answer := self._answers.get(question)) is not None and answer.early:
                self.forget(question)
            return
        answer = self._answer(question, user)
        before = answer.place.characters
        answer.become(so_far)
        self._characters += answer.place.characters - before
        if answer.early:
            self.want(question, user)
        self._forget_some()

    def end(self, question: str, attempt: int) -> None:
        """An answer has ended with this attempt: what comes of it later is late. 0: with that which grows."""
        answer = self._answers.get(question)
        grows = -1 if answer is None else answer.latest
        attempt = attempt or grows
        self._ended[question] = (time.monotonic(), max(attempt, self._ended.get(question, (0.0, -1))[1]))
        self._ended.move_to_end(question)
        if len(self._ended) > _MOST_ENDED:
            self._ended.popitem(last=False)
        # The end may be late itself: the question was asked anew meanwhile.
        if grows <= attempt:
            self.forget(question)

    def forget(self, question: str) -> None:
        """Forgets an answer; who still gets something of it gets it from its beginning."""
        self.wanted.pop(question, None)
        if (answer := self._answers.pop(question, None)) is None:
            return
        self._characters -= answer.place.characters
        own = self.people[answer.user]
        own.discard(question)
        if not own:
            del self.people[answer.user]

    def forget_person(self, user: str) -> None:
        """Somebody has left, or may have missed how an answer ended."""
        for question in tuple(self.people.get(user, ())):
            self.forget(question)

    def of(self, user: str) -> Iterator[GrowingAnswer]:
        """A person's answers that grow."""
        return (self._answers[question] for question in tuple(self.people.get(user, ())))

    def answer(self, question: str) -> GrowingAnswer | None:
        """One answer, if it is here."""
        return self._answers.get(question)

    def leave(self, listener: object, user: str) -> None:
        """A listener of somebody's has gone."""
        for answer in self.of(user):
            answer.sent.pop(listener, None)

    def _answer(self, question: str, user: str) -> GrowingAnswer:
        answer = self._answers.get(question)
        if answer is None:
            answer = self._answers[question] = GrowingAnswer(question, user)
            self.people.setdefault(user, set()).add(question)
        self._answers.move_to_end(question)
        return answer

    def _forget_some(self) -> None:
        while self._characters > MOST_CHARACTERS and len(self._answers) > 1:
            self.forget(next(iter(self._answers)))
