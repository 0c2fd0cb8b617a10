"""The steps of a question's life: the store writes each, then the person's log gets its events.

Called by the service, by `answering` and by answerers whose answers come from elsewhere; hands publications
to the backplane. Where a step's events didn't reach the log, some node's sweep publishes them again; `once`
keeps them from being there twice. While an answer grows the backplane has it, and the store now and then.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType

import msgspec

from pushsse.backplane import Append, Backplane, Draft, NoticeTopic, log_of
from pushsse.backplane.answers import Grew, Growth, SoFar
from pushsse.backplane.limits import LogAllowance
from pushsse.errors import BackplaneUnavailable, DatabaseUnavailable, Unavailable
from pushsse.event import encode
from pushsse.metrics import Metrics
from pushsse.questions import (
    DESK,
    EXPIRED,
    HANDED_OVER,
    MAX_ANSWER_CHARACTERS,
    MAX_PARTS,
    NOBODY,
    STALLED,
    STOPS,
    TOO_LONG,
    Answered,
    DeskEvent,
    Ending,
    KeptPart,
    Lost,
    Part,
    Question,
    Status,
    Unanswered,
    clean,
    drafts_of,
    fit,
    late_size,
    once_of,
)
from pushsse.questions.answerers import Delta
from pushsse.questions.conversations import ConversationStore, HandedOverBy
from pushsse.questions.pieces import Growing, Pieces
from pushsse.questions.store import ANY_NUMBER, QuestionStore, Unended

logger = logging.getLogger(__name__)
_PUBLISH_S = 5.0
_MOST_ANNOUNCED = 500
MAX_REASON = 500
_json = msgspec.json.Encoder()


@dataclass(frozen=True, slots=True)
class QuestionPace:
    """How often things happen, in seconds.

    A delta at most every `delta_s`; the answer so far stored every `store_s`. A node renews its leases of
    `lease_s` every `sweep_s`, so that what a dead node had is taken over within both and a quarter of the
    second. What isn't in the log after `announce_s`, a sweep publishes. An answer that has begun and doesn't
    grow for `stall_s` is ended, and so is one that a node has been answering for `longest_s`. People have a
    conversation that was handed over to them for `keep_s`; 0: nothing is handed over.
    """

    delta_s: float = 0.05
    store_s: float = 3.0
    sweep_s: float = 2.0
    lease_s: float = 11.0
    announce_s: float = 10.0
    keep_s: float = 3 * 86_400.0
    stall_s: float = 60.0
    longest_s: float = 3600.0

    @property
    def overdue_s(self) -> float:
        """After how long without a stored growth anybody ends an answer: its own node does so before."""
        return self.stall_s + 2 * self.store_s


class Life:
    """Writes what happens to questions, and publishes it to their people.

    Whoever only reads asks `store` directly. Every method but `grow` raises DatabaseUnavailable.
    """

    def __init__(
        self,
        store: QuestionStore,
        backplane: Backplane,
        metrics: Metrics,
        pace: QuestionPace,
        allowance: LogAllowance | None = None,
    ) -> None:
        self.pace = pace
        # Whoever asks, or says something, pays for what that puts into the log.
        self.allowance = allowance or LogAllowance(backplane)
        self.store = store
        self.conversations = ConversationStore(store.database)
        self._backplane = backplane
        # The statuses that the log has, by question, as far as that isn't stored yet.
        self._announced: dict[str, Status] = {}
        # Those that have ended, by question: their answers so far are to be dropped up to this attempt.
        self._over: dict[str, int] = {}
        self._metrics = metrics
        self._stopped: Callable[[Question, str], None] = _nobody_hears

    def hear_stops(self, listener: Callable[[Question, str], None]) -> None:
        """`listener` is called with each question that ends here without its answerer knowing, and why.

        It gets the question as it stood before, or as it is now.
        """
        self._stopped = listener

    async def ask(
        self,
        question: Question,
        *,
        key: str | None,
        node: str,
        leased: bool,
        digest: str = "",
        most: Unended = ANY_NUMBER,
    ) -> Question:
        """Writes a new question, publishes it, and returns it: handed over, if its conversation is.

        One that is `answering` already, since this node has a turn for it, is told as `pending` first, in the
        same append. Without a lease another node takes the question at its next sweep. Raises NoRoom;
        KeyTaken, of two that ask together for one; UnknownConversation.
        """
        lease_s = self.pace.lease_s if leased else 0
        asked = await self.store.create(
            question,
            key=key,
            digest=digest,
            owner=node,
            lease_s=lease_s,
            announce_s=self.pace.announce_s,
            most=most,
        )
        before: tuple[Question, ...] = ()
        if asked.status == "answering":
            before = (msgspec.structs.replace(asked, status="pending"),)
        self._metrics.questions["handed_over" if asked.status == "handed_over" else "pending"] += 1
        await self.announce(asked, *before)
        return asked

    async def ask_again(
        self, question: Question, *, node: str, leased: bool, timeout_s: float
    ) -> Question | None:
        """Asks an ended question anew, and publishes that. None if it is gone. Raises NotNow."""
        again = await self.store.regenerate(
            question,
            owner=node,
            lease_s=self.pace.lease_s if leased else 0,
            timeout_s=timeout_s,
            announce_s=self.pace.announce_s,
        )
        if again is not None:
            self._metrics.questions[again.status] += 1
            await self.announce(again)
        return again

    async def hand_over(self, question: Question, reason: str) -> bool:
        """People answer in this question's conversation from now on, as its answerer wants it.

        False if it has ended or is another attempt's by now. Where nothing is handed over, it fails.
        """
        if not self.pace.keep_s:
            return await self.end(question.id, NOBODY, attempt=question.attempt)
        try:
            await self.hand_over_conversation(
                question.conversation, by="answerer", reason=reason, question=question
            )
        except Lost:
            return False
        return True

    async def hand_over_conversation(
        self, conversation: str, *, by: HandedOverBy, reason: str, question: Question | None = None
    ) -> None:
        """The same of a whole conversation, which has to be there. Raises Lost with `question`."""
        ids = await self.conversations.hand_over(
            conversation,
            by=by,
            reason=clean(reason)[:MAX_REASON],
            keep_s=self.pace.keep_s,
            announce_s=self.pace.announce_s,
            question=question,
        )
        own = None if question is None else question.id
        await self.announce_all(ids, stopped=[each for each in ids if each != own])
        if not ids and (found := await self.conversations.one(conversation)) is not None:
            await self.tell_staff(DeskEvent(conversation, "waiting", None), by=found.user)

    async def write(self, message: Question, *, key: str | None) -> bool:
        """Stores a message of staff and publishes it; False if its conversation isn't handed over.

        Raises BeingTaken: another message has just been written with this key.
        """
        if not await self.conversations.write(message, key=key, announce_s=self.pace.announce_s):
            return False
        self._metrics.questions[message.status] += 1
        await self.announce(message)
        return True

    async def announce_all(self, ids: Collection[str], stopped: Collection[str] = ()) -> None:
        """Publishes the status that some questions have come to, as long as that can be; then a sweep does.

        Whoever answers those of `stopped` is told that people have taken them over.
        """
        reached = True
        for question_id in ids:
            if (found := await self.store.one(question_id)) is not None:
                self._metrics.questions[found.status] += 1
                if question_id in stopped:
                    self._stopped(found, HANDED_OVER)
                reached = reached and await self._stop(found) and await self.announce(found)

    async def tell_staff(self, event: DeskEvent, *, by: str) -> None:
        """Publishes an event to the staff who asked what waits, at the cost of `by`, who has caused it.

        Where that can't be, it is logged: the calls have what the event tells of.
        """
        try:
            await self._tell_staff(event, by=by)
        except Unavailable as error:
            logger.warning(
                "conversation %s: its staff see what is new only when they load their list again: %s",
                event.conversation,
                error,
            )

    async def _tell_staff(self, event: DeskEvent, *, by: str, once: str = "") -> None:
        by_log: dict[str, list[str]] = {}
        for user in await self.conversations.staff():
            by_log.setdefault(log_of(user, self._backplane.shards), []).append(user)
        appends = [
            Append(log, (Draft(encode(DESK, event, users=tuple(users)), once=once),))
            for log, users in by_log.items()
        ]
        if appends:
            self.allowance.owe(by, sum(append.drafts[0].publication.size for append in appends))
            async with _InTime():
                await self._backplane.publish(appends)

    async def begin(self, question: Question) -> Question:
        """pending → answering; one taken over in the middle is that already. Raises Lost."""
        # Its `question` event is in the log, or a sweep publishes it.
        if question.status == "answering":
            return question
        if not await self.store.begin(question.id, question.attempt, announce_s=self.pace.announce_s):
            raise Lost(question.id)
        question = msgspec.structs.replace(question, status="answering")
        await self.announce(question)
        return question

    async def store_growth(self, question: Question) -> None:
        """Stores the answer so far, with which its deadline moves. Raises Lost."""
        if not await self.store.grow(question, stall_s=self.pace.overdue_s):
            raise Lost(question.id)

    def growing(self, question: Question) -> Growing:
        """A new attempt at an answer that grows on this node."""
        return Growing(self, question, delta_s=self.pace.delta_s, store_s=self.pace.store_s)

    async def sent_off(self, question: Question) -> bool:
        """The answer comes from elsewhere: no node takes the question over, it can only expire.

        False if it has ended meanwhile, or is another attempt's.
        """
        return await self.store.sent_off(question)

    async def end(
        self,
        question_id: str,
        ending: Ending,
        *,
        attempt: int | None = None,
        question: Question | None = None,
    ) -> bool:
        """Ends an open question and publishes that; False if it has ended already.

        With `attempt` also False if another node has taken the question over since. `question` as it stands,
        for whoever answers it and knows.
        """
        before = question
        if isinstance(ending, Answered):
            ending = _fitting(ending)
        elif attempt is None and (before := await self.store.one(question_id)) is not None:
            await self._keep(before, await self.as_grown(before))
        # One conditional update decides between an answer, a cancel and a sweep, on all nodes: who gets True
        # publishes the end. If it dies first, a sweep does, by the `announce_by` of the same update.
        if not await self.store.end(question_id, ending, attempt=attempt, announce_s=self.pace.announce_s):
            return False
        question = await self.store.one(question_id) if question is None else _ended_as(question, ending)
        if question is not None:
            self._metrics.questions[question.status] += 1
            self._stops(before or question, ending)
            if attempt is None:
                await self._stop(question)
            await self.announce(question)
            # Dropped later, with others: whoever opens a stream in between doesn't ask for it any more.
            self._over[question.id] = question.attempt
        return True

    async def expire(self, questions: Sequence[Question]) -> None:
        """Ends those of some overdue questions whose deadline hasn't moved since. `publish` tells of it."""
        # One try for all, and nothing else here goes to the backplane: while that hangs, each would take
        # seconds.
        so_far = await self.so_far(questions)
        for question in questions:
            grown = _as_grown(question, so_far.get(question.id))
            await self._keep(question, grown)
            ending = STALLED if question.status == "answering" and grown.seq else EXPIRED
            await self.close(question, ending, attempt=None, overdue_at=datetime.now(UTC))

    async def close(
        self,
        question: Question,
        ending: Unanswered,
        *,
        attempt: int | None,
        overdue_at: datetime | None = None,
    ) -> None:
        """Ends an open question as `end` does, but for the publishing, which is due at once.

        With `overdue_at` only if its deadline is before that.
        """
        if await self.store.end(question.id, ending, attempt=attempt, announce_s=0.0, overdue_at=overdue_at):
            self._metrics.questions[ending.status] += 1
            self._stops(question, ending)

    async def publish(self, question: Question) -> bool:
        """Publishes a status that isn't in the log yet. False: the backplane is away."""
        if not await self.announce(question):
            return False
        if question.has_ended:
            await self._stop(question)
            self._over[question.id] = question.attempt
        return True

    async def announce(self, question: Question, *before: Question) -> bool:
        """Publishes a question's status to its person's log, behind those that it had just before.

        False: a sweep does it later, without those before.
        """
        told = [draft for each in (*before, question) for draft in drafts_of(each)]
        append = Append(log_of(question.user, self._backplane.shards), tuple(told))
        try:
            # Memory has nothing to wait for as a rule, and then no time has to be limited.
            if self._backplane.publish_nowait((append,)) is None:
                async with _InTime():
                    await self._backplane.publish((append,))
            self.allowance.owe(question.user, late_size(question, told))
            if question.status == "handed_over":
                waits = DeskEvent(question.conversation, "waiting", question.id)
                await self._tell_staff(waits, by=question.user, once=f"{once_of(question)}:desk")
            # After the log has it: a node that dies before it is stored leaves it to a sweep, whose second
            # append the log drops by `once`. The other way round the status would never be published.
            self._announced[question.id] = question.status
            if len(self._announced) >= _MOST_ANNOUNCED:
                await self.store_announced()
        except (BackplaneUnavailable, DatabaseUnavailable) as error:
            logger.warning(
                "question %s: its status %s isn't published yet, a sweep tries again: %s",
                question.id,
                question.status,
                error,
                extra=question.ids,
            )
            return False
        return True

    async def store_announced(self) -> None:
        """Stores which statuses are in the log: of all since the last call, by a statement or two."""
        announced, self._announced = self._announced, {}
        for status in set(announced.values()):
            await self.store.announced([each for each, its in announced.items() if its == status], status)

    async def drop_over(self) -> None:
        """Drops the answers so far of questions that have ended since the last call."""
        over, self._over = self._over, {}
        try:
            async with _InTime():
                await self._backplane.end_answers(over)
        except BackplaneUnavailable as error:
            logger.info("%d answers so far are kept until they expire: %s", len(over), error)

    async def grow(self, growth: Growth) -> Grew:
        """Lets an answer grow in the backplane, which tells its person. Raises BackplaneUnavailable."""
        async with _InTime():
            return await self._backplane.grow(growth)

    async def so_far(self, questions: Sequence[Question]) -> dict[str, SoFar]:
        """The answers so far of those questions that have begun to grow, by their ids.

        As the backplane has them; where it hasn't, or is away, as they were last stored.
        """
        found = {each.id: stored_so_far(each) for each in questions if each.status == "answering"}
        try:
            async with _InTime():
                kept = await self._backplane.so_far(list(found)) if found else {}
        except BackplaneUnavailable as error:
            logger.info("%d answers so far are read as they were last stored: %s", len(found), error)
            kept = {}
        for question_id, so_far in kept.items():
            stored = found[question_id]
            if (so_far.attempt, so_far.seq) > (stored.attempt, stored.seq):
                found[question_id] = so_far
        return {question_id: so_far for question_id, so_far in found.items() if so_far.seq}

    async def as_grown(self, question: Question) -> Question:
        """A question with its answer as it has grown since it was last stored."""
        return _as_grown(question, (await self.so_far((question,))).get(question.id))

    def _stops(self, question: Question, ending: Ending) -> None:
        """Tells whoever answers of an end, if that is news; not of a question that people have."""
        if isinstance(ending, Unanswered) and ending.code in STOPS and question.status != "handed_over":
            self._stopped(question, ending.code)

    async def _keep(self, question: Question, grown: Question) -> None:
        """Stores what there is of an answer that somebody ends who doesn't answer it."""
        if grown is not question:
            # The deadline stays: it may be what ends the question.
            await self.store.grow(grown, stall_s=None, before=question)

    async def _stop(self, question: Question) -> bool:
        """Tells the node that answers a question which has ended elsewhere; False if it can't be told."""
        try:
            async with _InTime():
                await self._backplane.notify(NoticeTopic.ENDED, f"{question.id} {question.attempt}")
        except BackplaneUnavailable as error:
            logger.info(
                "question %s: its node learns of its end when it renews its leases: %s", question.id, error
            )
            return False
        return True

    async def find(self, question_id: str) -> Question | None:
        """A question by its id."""
        return await self.store.one(question_id)

    async def add(
        self, question: Question, pieces: Sequence[Delta | Part], piece: int, attempt: int = 0
    ) -> bool:
        """Makes an answer that comes from elsewhere grow by pieces, up to that numbered `piece`.

        Where they name a later `attempt` than those before them, what has come is void. False if the question
        has ended or has grown otherwise since it was read.
        """
        grown = Pieces(question.grown_by(attempt))
        for each in pieces:
            grown.add(each)
        if grown.too_long:
            return await self.end(question.id, TOO_LONG)
        growths = list(grown.growths())
        # Stored first, and with the number of the piece as its condition: of two nodes one may grow it.
        stored = msgspec.structs.replace(grown.told, piece=piece)
        if not await self.store.grow(stored, stall_s=self.pace.overdue_s, before=question):
            return False
        try:
            for at, growth in enumerate(growths):
                if await self.grow(growth) is Grew.MISSING:
                    # Whoever stored what came before it came no further.
                    await self.grow(grown.whole(growths[at:]))
                    break
        except BackplaneUnavailable as error:
            logger.warning(
                "question %s: streams get its deltas late, or only the whole answer: %s",
                question.id,
                error,
                extra=question.ids,
            )
        return True

    async def take_over(self, question: Question, *, node: str) -> Question | None:
        """Leases an abandoned question to this node; None if another one was first."""
        if not await self.store.take(question, owner=node, lease_s=self.pace.lease_s):
            return None
        return msgspec.structs.replace(
            question, attempt=question.attempt + 1, answer="", seq=0, piece=0, piece_attempt=0, parts=()
        )

    async def renew(self, question_ids: Collection[str], *, node: str) -> None:
        """Renews the leases that a node has of these questions."""
        await self.store.lease(question_ids, owner=node, lease_s=self.pace.lease_s)

    async def give_up(self, question_ids: Collection[str], *, node: str) -> None:
        """Ends the leases that a node has of these questions: another one takes them at its next sweep."""
        await self.store.lease(question_ids, owner=node, lease_s=0)


class _InTime:
    """The time limit of a call of the backplane. Raises BackplaneUnavailable.

    A class, since each question takes it three times: a generator as a context costs as much again.
    """

    __slots__ = ("_limit",)

    def __init__(self) -> None:
        self._limit = asyncio.timeout(_PUBLISH_S)

    async def __aenter__(self) -> None:
        await self._limit.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._limit.__aexit__(kind, error, trace)
        except TimeoutError as late:
            error = late
        if isinstance(error, TimeoutError):
            raise BackplaneUnavailable(f"the backplane: no answer within {_PUBLISH_S} s") from None


def _nobody_hears(question: Question, code: str) -> None:
    """Nobody is to be told of ends."""


def _as_grown(question: Question, so_far: SoFar | None) -> Question:
    """A question with its answer so far, if that is more than what it has."""
    if so_far is None or (so_far.attempt, so_far.seq) <= (question.attempt, question.seq):
        return question
    parts = tuple(msgspec.json.decode(part, type=KeptPart) for part in so_far.parts)
    return msgspec.structs.replace(question, answer=so_far.text, seq=so_far.seq, parts=parts)


def _fitting(ending: Answered) -> Ending:
    parts = tuple(part for part in ending.parts if not isinstance(fit(part), str))[:MAX_PARTS]
    ending = msgspec.structs.replace(ending, parts=parts)
    if ending.text is None:
        return ending
    if len(ending.text) > MAX_ANSWER_CHARACTERS:
        return TOO_LONG
    return msgspec.structs.replace(ending, text=clean(ending.text))


def _ended_as(question: Question, ending: Ending) -> Question:
    """A question as it is after an end that has all of its text."""
    if not isinstance(ending, Answered):
        return msgspec.structs.replace(
            question, status=ending.status, error_code=ending.code, error_detail=ending.detail
        )
    text = question.answer if ending.text is None else ending.text
    return msgspec.structs.replace(
        question,
        status="answered",
        answer=text,
        by=ending.by,
        links=ending.links,
        suggestions=ending.suggestions,
        parts=ending.parts or question.parts,
        usage=ending.usage,
    )


def stored_so_far(question: Question) -> SoFar:
    """The answer so far as it was stored."""
    parts = tuple(_json.encode(part) for part in question.parts)
    return SoFar(question.attempt, question.seq, question.answer, parts)
