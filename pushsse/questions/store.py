"""The SQL of the questions: every change of status is one conditional UPDATE, so that one node wins it.

`life` calls what a question goes through, the service what reads; `QuestionDeletion` deletes. Every call
raises DatabaseUnavailable.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import msgspec
from tortoise.expressions import RawSQL

from pushsse.database import Database, Statement, ThreadSession, Value, instant
from pushsse.questions import (
    ENDED,
    OPEN,
    Answered,
    EarlierAnswer,
    Ending,
    NotNow,
    Question,
    Rating,
    Status,
    Turn,
    UnknownConversation,
)
from pushsse.questions.conversations import (
    enter_in_thread,
    handed_over_until,
    title_of,
)
from pushsse.questions.rows import (
    LISTED,
    ConversationRow,
    EarlierAnswerRow,
    QuestionRow,
    earlier_of,
    holdable,
    json_of,
    listed_of,
    question_of,
    replaced,
    value_of,
)

# Who of the people among the first parameter has a question that is still to be answered. `people` reads it.
OPEN_USERS = f"""
    SELECT DISTINCT "user" FROM pushsse_question
     WHERE "user" {{among[1]}} AND status IN ({", ".join(f"'{status}'" for status in OPEN)})"""  # nosec B608 # ours


# Tortoise's models take several times as long, and each question passes these.
_CREATE = Statement("""
    INSERT INTO pushsse_question (id, "user", conversation, text, context, status, idempotency_key,
           idempotency_digest, owner, attempts, lease_until, announce_by, created_at, updated_at, deadline_at)
    VALUES ({value[1]}, {value[2]}, {value[3]}, {value[4]}, {json[5]}, {value[6]}, {value[7]}, {value[8]},
           {value[9]}, {value[10]}, {time[11]}, {time[12]}, {time[13]}, {time[14]}, {time[15]})
        ON CONFLICT DO NOTHING RETURNING 1""")
_COUNT_UNENDED = Statement("""
    SELECT count(CASE WHEN status <> 'handed_over' THEN 1 END),
           count(CASE WHEN status = 'handed_over' THEN 1 END) FROM pushsse_question
     WHERE "user" = {value[1]} AND status IN ('pending', 'answering', 'handed_over')""")
# With it, the question that the person has asked with an idempotency key, however long ago.
_COUNT_AND_FIND = Statement("""
    SELECT count(CASE WHEN status <> 'handed_over' THEN 1 END),
           count(CASE WHEN status = 'handed_over' THEN 1 END),
           (SELECT id FROM pushsse_question WHERE "user" = {value[1]} AND idempotency_key = {value[2]})
      FROM pushsse_question
     WHERE "user" = {value[1]} AND status IN ('pending', 'answering', 'handed_over')""")
# All of it in one, for PostgreSQL: the count, the conversation, the question. A question that isn't written
# leaves no conversation behind. Of two with one key that come together, the second breaks the constraint, is
# undone as a whole, runs again, and then sees the first.
_ASK = Statement("""
    WITH unended AS (
        SELECT count(*) FILTER (WHERE status <> 'handed_over') AS open,
               count(*) FILTER (WHERE status = 'handed_over') AS handed_over FROM pushsse_question
         WHERE "user" = CAST({value[2]} AS text) AND status IN ('pending', 'answering', 'handed_over')),
    entered AS (
        INSERT INTO pushsse_conversation (id, "user", title, newest, created_at)
        SELECT CAST({value[3]} AS text),
               COALESCE((SELECT "user" FROM pushsse_question WHERE conversation = CAST({value[3]} AS text)
                          ORDER BY id LIMIT 1), CAST({value[2]} AS text)),
               CAST({value[16]} AS text), CAST({value[1]} AS text), {time[13]} FROM unended
         WHERE open < CAST({value[17]} AS bigint) AND handed_over < CAST({value[18]} AS bigint)
           AND NOT EXISTS (SELECT 1 FROM pushsse_question WHERE "user" = CAST({value[2]} AS text)
                              AND idempotency_key = CAST({value[7]} AS text))
            ON CONFLICT (id) DO UPDATE SET newest =
               CASE WHEN pushsse_conversation."user" = CAST({value[2]} AS text)
                     AND pushsse_conversation.newest < excluded.newest
                    THEN excluded.newest ELSE pushsse_conversation.newest END
        RETURNING "user", CASE WHEN status = 'handed_over' AND keep_until > {time[19]} THEN keep_until END
               AS kept_until),
    asked AS (
        INSERT INTO pushsse_question (id, "user", conversation, text, context, status, idempotency_key,
               idempotency_digest, owner, attempts, lease_until, announce_by, created_at, updated_at,
               deadline_at)
        SELECT CAST({value[1]} AS text), "user", CAST({value[3]} AS text), CAST({value[4]} AS text),
               {json[5]}, CASE WHEN kept_until IS NULL THEN CAST({value[6]} AS text) ELSE 'handed_over' END,
               CAST({value[7]} AS text), CAST({value[8]} AS text), CAST({value[9]} AS text),
               CAST({value[10]} AS integer), CASE WHEN kept_until IS NULL THEN {time[11]} END, {time[12]},
               {time[13]}, {time[14]}, COALESCE(kept_until, {time[15]})
          FROM entered WHERE "user" = CAST({value[2]} AS text))
    SELECT unended.open, unended.handed_over, entered."user", entered.kept_until
      FROM unended LEFT JOIN entered ON true""")
_BEGIN = Statement("""
    UPDATE pushsse_question SET status = 'answering', updated_at = {time[3]}, announce_by = {time[4]}
     WHERE id = {value[1]} AND attempts = {value[2]} AND status = 'pending' RETURNING 1""")
# The owner is a condition: a node that was paused doesn't know yet what others have taken over. Null stays
# null: the answer comes from elsewhere, and nobody may take the question over.
_LEASE = Statement("""
    UPDATE pushsse_question SET lease_until = {time[4]}
     WHERE id {among[1]} AND owner = {value[2]} AND status {among[3]} AND lease_until IS NOT NULL
    RETURNING 1""")
_ANNOUNCED = Statement("""
    UPDATE pushsse_question SET announce_by = NULL
     WHERE id {among[1]} AND status = {value[2]} RETURNING 1""")
_OPEN_AMONG = Statement("""
    SELECT id FROM pushsse_question WHERE id {among[1]} AND status IN ('pending', 'answering')""")
# Of each question of a conversation, how much there is to be read.
_SIZES = Statement("""
    SELECT id, length(text) + length(answer) + coalesce(length(CAST(parts AS text)), 0) FROM pushsse_question
     WHERE "user" = {value[1]} AND conversation = {value[2]} AND id < {value[3]}
     ORDER BY id DESC LIMIT {value[4]}""")
_LAST_ULID = 26 * "Z"
_END_UNANSWERED = Statement("""
    UPDATE pushsse_question
       SET updated_at = {time[4]}, announce_by = {time[5]}, lease_until = NULL,
           status = {value[6]}, error_code = {value[7]}, error_detail = {value[8]}
     WHERE id = {value[1]} AND status {among[3]} AND ({value[2]} = 0 OR attempts = {value[2]})
       AND deadline_at < {time[9]} RETURNING 1""")
# Where people answer, the parts that the answer had grown by are still the answerer's.
_END_ANSWERED = Statement("""
    UPDATE pushsse_question
       SET updated_at = {time[4]}, announce_by = {time[5]}, lease_until = NULL,
           status = 'answered', by_kind = {value[6]}, by_name = {value[7]},
           links = {json[8]}, suggestions = {json[9]}, usage = {json[10]},
           parts = CASE WHEN status = 'handed_over' THEN NULL ELSE coalesce({json[11]}, parts) END,
           answer = coalesce({value[12]}, answer)
     WHERE id = {value[1]} AND status {among[3]} AND ({value[2]} = 0 OR attempts = {value[2]}) RETURNING 1""")
_TURNS = Statement("""
    SELECT text, substr(answer, 1, {value[3]}) FROM pushsse_question
     WHERE conversation = {value[1]} AND id < {value[2]} AND status = 'answered' AND answer <> ''
     ORDER BY id DESC LIMIT {value[4]}""")
# And that one changes, of hundreds that are due at a time: questions that are asked meanwhile wait for it.
_CHANGED_AT_ONCE = 64
_EARLIER_ANSWERS = 10
# After every deadline.
_EVER = datetime(9999, 12, 31, tzinfo=UTC)


class KeyTaken(Exception):
    """The person has used this idempotency key before."""


class NoRoom(Exception):
    """A person has so many questions without an end that no further one is taken."""

    def __init__(self, unended: "Unended") -> None:
        super().__init__(unended)
        self.unended = unended


class _Asked(NamedTuple):
    open: int
    handed_over: int
    user: str | None
    kept_until: datetime | None


class _New(NamedTuple):
    """A question that is to be written, and what is written beside it."""

    question: Question
    key: str | None
    digest: str
    owner: str
    lease_until: str
    announce_by: str

    def values(self, asked: Question, lease: str | None) -> tuple[Value, ...]:
        """The values of `_CREATE`, for the question as it is written."""
        context = None if asked.context is None else msgspec.json.encode(asked.context).decode()
        return (
            *(asked.id, asked.user, asked.conversation, asked.text, context, asked.status),
            *(self.key, self.digest, self.owner, asked.attempt, lease, self.announce_by),
            *(instant(asked.asked_at), instant(asked.updated_at), instant(asked.deadline_at)),
        )


class _Keyed(NamedTuple):
    open: int
    handed_over: int
    question: str | None


class _Size(NamedTuple):
    question: str
    characters: int


class Unended(NamedTuple):
    """How many questions of a person an answerer is at, and how many wait for people."""

    open: int
    handed_over: int

    def leaves_room(self, most: "Unended") -> bool:
        """Whether one more may be asked, where there may be so many."""
        return self.open < most.open and self.handed_over < most.handed_over


# No limit.
ANY_NUMBER = Unended(2**31, 2**31)


@dataclass(frozen=True, slots=True)
class QuestionStore:
    """The table, behind one method a step of a question's life."""

    database: Database

    async def create(
        self,
        question: Question,
        *,
        key: str | None,
        owner: str,
        lease_s: float,
        announce_s: float,
        digest: str = "",
        most: Unended = ANY_NUMBER,
    ) -> Question:
        """Writes a new question, and returns it as it was written: handed over, if its conversation is.

        Raises NoRoom, where its person has `most` already; UnknownConversation; KeyTaken: the unique
        constraint decides when two ask together.
        """
        now = _now()
        new = _New(
            question,
            key,
            digest,
            owner,
            instant(now + timedelta(seconds=lease_s)),
            instant(now + timedelta(seconds=announce_s)),
        )
        if self.database.writes_together:
            return await self.database.together(partial(_write, new, most))
        limits = title_of(question), most.open, most.handed_over, instant(now)
        [asked] = await self.database.rows(_Asked, _ASK, *new.values(question, new.lease_until), *limits)
        if not (unended := Unended(asked.open, asked.handed_over)).leaves_room(most):
            raise NoRoom(unended)
        if asked.user is None:
            raise KeyTaken
        if asked.user != question.user:
            raise UnknownConversation(question.conversation)
        return question if asked.kept_until is None else _handed_over(question, asked.kept_until)

    async def unended_unless_keyed(self, user: str, key: str) -> "Unended | None":
        """As `count_unended`; None where an idempotency key has been used, of which `by_key` tells more."""
        [found] = await self.database.read(_Keyed, _COUNT_AND_FIND, user, key)
        return Unended(found.open, found.handed_over) if found.question is None else None

    async def by_key(self, user: str, key: str, *, since: datetime) -> tuple[Question, str] | None:
        """The question that a person has asked with an idempotency key since a time, and its digest."""
        async with self.database.session():
            row = await QuestionRow.get_or_none(user=user, idempotency_key=key, created_at__gt=since)
            return None if row is None else (question_of(row), row.idempotency_digest)

    async def free_key(self, user: str, key: str, *, before: datetime) -> bool:
        """Lets an idempotency key that was used before a time be used again; False if it wasn't."""
        async with self.database.session():
            rows = QuestionRow.filter(user=user, idempotency_key=key, created_at__lte=before)
            return bool(await rows.update(idempotency_key=None))

    async def one(self, question_id: str) -> Question | None:
        """A question by its id."""
        async with self.database.session():
            return value_of(await QuestionRow.get_or_none(id=question_id))

    async def page(
        self, user: str, *, limit: int, before: str | None, characters: int, conversation: str | None = None
    ) -> Sequence[Question]:
        """A person's questions, in one conversation or all, newest first, below the id `before`.

        Without parts, and with so many characters of each answer: a hundred may have millions.
        """
        async with self.database.session():
            rows = QuestionRow.filter(user=user)
            if conversation is not None:
                rows = rows.filter(conversation=conversation)
            if before is not None:
                rows = rows.filter(id__lt=before)
            listed = rows.order_by("-id").limit(limit).only(*LISTED)
            beginning = RawSQL(f"substr(answer, 1, {characters:d})")
            is_cut = RawSQL(
                f"CASE WHEN length(answer) > {characters:d} OR parts IS NOT NULL THEN 1 ELSE 0 END"
            )
            return [listed_of(row) for row in await listed.annotate(beginning=beginning, is_cut=is_cut)]

    async def whole_page(
        self, user: str, conversation: str, *, limit: int, before: str | None, most_characters: int
    ) -> tuple[Sequence[Question], bool]:
        """The questions of a conversation of a person's with their whole answers, newest first, below an id.

        No more than have so many characters together, but one at least; and whether there are older ones.
        """
        sizes = await self.database.rows(_Size, _SIZES, user, conversation, before or _LAST_ULID, limit + 1)
        ids: list[str] = []
        for size in sizes[:limit]:
            most_characters -= size.characters
            if ids and most_characters < 0:
                break
            ids.append(size.question)
        async with self.database.session():
            rows = await QuestionRow.filter(id__in=ids, user=user).order_by("-id")
        return [question_of(row) for row in rows], len(sizes) > len(ids)

    async def turns(
        self, conversation: str, *, before: str, most: int = 20, most_characters: int = 16_000
    ) -> tuple[Turn, ...]:
        """The last answered questions of a conversation below an id, oldest first.

        Together they have at most so many characters: the oldest are left out, and the end of an answer is
        cut off if it alone has more.
        """
        rows = await self.database.read(Turn, _TURNS, conversation, before, most_characters, most)
        turns: list[Turn] = []
        for turn in rows:
            left = most_characters - len(turn.question)
            if turns and left < len(turn.answer):
                break
            turns.append(Turn(turn.question, turn.answer[: max(0, left)]))
            most_characters = left - len(turn.answer)
        return tuple(reversed(turns))

    async def count_unended(self, user: str) -> "Unended":
        """How many questions of a person have no end yet."""
        return (await self.database.read(Unended, _COUNT_UNENDED, user))[0]

    async def answering(self, user: str) -> Sequence[Question]:
        """A person's questions whose answers may have begun to grow."""
        async with self.database.session():
            rows = await QuestionRow.filter(user=user, status="answering").order_by("id")
            return [question_of(row) for row in rows]

    async def open_among(self, ids: Collection[str]) -> frozenset[str]:
        """Which of some questions an answerer is still at."""
        return frozenset(await self.database.read(str, _OPEN_AMONG, list(ids)))

    async def begin(self, question_id: str, attempt: int, *, announce_s: float) -> bool:
        """pending → answering, for the taker numbered `attempt`."""
        now = _now()
        announce_by = instant(now + timedelta(seconds=announce_s))
        return bool(await self.database.write(int, _BEGIN, question_id, attempt, instant(now), announce_by))

    async def grow(
        self, question: Question, *, stall_s: float | None, before: Question | None = None
    ) -> bool:
        """Stores the answer so far, if this taker still holds the question.

        With `before` if it still stands there: at that attempt and that last piece. Its deadline is in
        `stall_s` from now on; None leaves it where it is.
        """
        now = _now()
        attempt = question.attempt if before is None else before.attempt
        changes: dict[str, Any] = {}
        if stall_s is not None:
            changes["deadline_at"] = now + timedelta(seconds=stall_s)
        if question.piece:
            # A piece proves that the question was sent off, also where the node that sent it died before it
            # could say so: who took the question over now would void what has come.
            changes["lease_until"] = None
        async with self.database.session():
            rows = QuestionRow.filter(id=question.id, attempts=attempt, status="answering")
            if before is not None:
                rows = rows.filter(answer_piece=before.piece)
            changed = await rows.update(
                attempts=question.attempt,
                answer=question.answer,
                answer_seq=question.seq,
                answer_piece=question.piece,
                answer_attempt=question.piece_attempt,
                parts=holdable(msgspec.to_builtins(question.parts)) or None,
                updated_at=now,
                **changes,
            )
            return bool(changed)

    async def end(
        self,
        question_id: str,
        ending: Ending,
        *,
        attempt: int | None,
        announce_s: float,
        overdue_at: datetime | None = None,
    ) -> bool:
        """Open → ended; true for one caller over all nodes. `attempt` None for who isn't the taker.

        With `overdue_at` an Unanswered ends it only if its deadline is before that time: it may have moved.
        Where people have taken the question over, only they end it, its person, and the time.
        """
        now = _now()
        times = instant(now), instant(now + timedelta(seconds=announce_s))
        # 0 is nobody's.
        endable: list[str] = list(_endable(ending))
        found = (question_id, attempt or 0, endable, *times)
        if not isinstance(ending, Answered):
            values = ending.status, ending.code, ending.detail
            before = instant(overdue_at or _EVER)
            return bool(await self.database.write(int, _END_UNANSWERED, *found, *values, before))
        answered = (
            ending.by.kind,
            ending.by.name,
            json_of(ending.links),
            json_of(ending.suggestions),
            json_of(ending.usage),
            # Where no part comes with the end, those stay that it has grown by.
            json_of(ending.parts or None),
            ending.text,
        )
        return bool(await self.database.write(int, _END_ANSWERED, *found, *answered))

    async def regenerate(
        self, question: Question, *, owner: str, lease_s: float, timeout_s: float, announce_s: float
    ) -> Question | None:
        """Ended → pending; what there is of an answer becomes an earlier one. None if it is gone.

        Returns it as it is then: handed over, if its conversation is. Raises NotNow.
        """
        now = _now()
        async with self.database.transaction():
            # In this order: whoever hands the conversation over waits, and then finds the question open.
            held = await ConversationRow.filter(id=question.conversation).select_for_update().first()
            keep_until = None if held is None else handed_over_until(held)
            row = await QuestionRow.filter(id=question.id, user=question.user).select_for_update().first()
            if row is None:
                return None
            if row.status not in ENDED:
                raise NotNow("not_ended", "the question has no end yet, cancel it first")
            # What became of it is an earlier answer from now on; the newest few of these are kept.
            kept = replaced(row)
            await kept.save(force_create=True)
            oldest = kept.number - _EARLIER_ANSWERS
            await EarlierAnswerRow.filter(question=row.id, number__lte=oldest).delete()
            row.status = "pending" if keep_until is None else "handed_over"
            row.deadline_at = keep_until or now + timedelta(seconds=timeout_s)
            row.lease_until = None if keep_until else now + timedelta(seconds=lease_s)
            row.announce_by, row.updated_at, row.owner = now + timedelta(seconds=announce_s), now, owner
            row.regenerations += 1
            row.attempts += 1
            row.first_attempt = row.attempts
            row.answer = row.by_kind = row.by_name = row.error_code = row.error_detail = ""
            row.links = row.suggestions = row.parts = row.usage = row.rated_at = None
            row.rating = row.rating_comment = ""
            row.answer_seq = row.answer_piece = row.answer_attempt = 0
            await row.save()
        return question_of(row)

    async def earlier_answers(self, question: Question) -> tuple[EarlierAnswer, ...]:
        """What became of a question before it was asked anew, oldest first."""
        if not question.regenerations:
            return ()
        async with self.database.session():
            rows = await EarlierAnswerRow.filter(question=question.id).order_by("number")
            return tuple(earlier_of(row) for row in rows)

    async def rate(self, user: str, question_id: str, rating: Rating, comment: str) -> bool:
        """Stores what a person thinks of an answer, in place of what was there; False if it hasn't ended."""
        async with self.database.session():
            rows = QuestionRow.filter(id=question_id, user=user, status__in=ENDED)
            changed = await rows.update(rating=rating, rating_comment=comment, rated_at=_now())
            return bool(changed)

    async def announced(self, ids: Collection[str], status: Status) -> None:
        """The log has this status of these questions, where it is still theirs."""
        # The status is a condition: one that was reached meanwhile isn't in the log yet.
        for some in _some_of(ids):
            await self.database.write(int, _ANNOUNCED, some, status)

    async def unannounced(self, limit: int) -> Sequence[Question]:
        """Questions whose status should have come to the log by now."""
        async with self.database.session():
            rows = QuestionRow.filter(announce_by__lt=_now()).order_by("announce_by").limit(limit)
            return [question_of(row) for row in await rows]

    async def overdue(self, limit: int) -> Sequence[Question]:
        """Questions without an end after their deadline."""
        async with self.database.session():
            rows = QuestionRow.filter(status__in=(*OPEN, "handed_over"), deadline_at__lt=_now())
            return [question_of(row) for row in await rows.order_by("deadline_at").limit(limit)]

    async def abandoned(self, limit: int) -> Sequence[Question]:
        """Open questions whose taker has let its lease lapse."""
        now = _now()
        async with self.database.session():
            rows = QuestionRow.filter(status__in=OPEN, deadline_at__gt=now, lease_until__lt=now)
            return [question_of(row) for row in await rows.order_by("id").limit(limit)]

    async def take(self, question: Question, *, owner: str, lease_s: float) -> bool:
        """Makes this node the next taker of an abandoned question; one of several nodes wins."""
        # The attempt is the condition and what changes: of two nodes the second finds no row. An earlier
        # taker that comes back finds none either (`begin`, `grow`, `end`).
        now = _now()
        async with self.database.session():
            rows = QuestionRow.filter(
                id=question.id, attempts=question.attempt, status__in=OPEN, lease_until__lt=now
            )
            lease = now + timedelta(seconds=lease_s)
            taken = await rows.update(
                attempts=question.attempt + 1,
                owner=owner,
                lease_until=lease,
                # What the earlier taker stored isn't this one's.
                answer="",
                answer_seq=0,
                answer_piece=0,
                answer_attempt=0,
                parts=None,
            )
            return bool(taken)

    async def attempts(self, ids: Collection[str]) -> dict[str, int]:
        """Of these questions the open ones, each with the number of its present attempt."""
        async with self.database.session():
            rows = await QuestionRow.filter(id__in=list(ids), status__in=OPEN).values_list("id", "attempts")
        return {str(row[0]): int(row[1]) for row in rows}

    async def lease(self, ids: Collection[str], *, owner: str, lease_s: float) -> None:
        """Renews the leases that a node holds of these questions; 0 gives them up."""
        until = _now() + timedelta(seconds=lease_s)
        for some in _some_of(ids):
            await self.database.write(int, _LEASE, some, owner, list(OPEN), instant(until))

    async def sent_off(self, question: Question) -> bool:
        """The answer comes from elsewhere: nobody takes the question over any more, it can only expire.

        False if it has ended, or is another attempt's.
        """
        async with self.database.session():
            rows = QuestionRow.filter(id=question.id, attempts=question.attempt, status="answering")
            return bool(await rows.update(lease_until=None))


def _write(new: _New, most: Unended, session: ThreadSession) -> Question:
    """Counts and writes in the thread of SQLite's connection, in one transaction with others."""
    asked: Question = new.question
    lease: str | None = new.lease_until
    unended = session.rows(Unended, _COUNT_UNENDED, asked.user)[0]
    if not unended.leaves_room(most):
        raise NoRoom(unended)
    if (until := enter_in_thread(session, asked).handed_over_until) is not None:
        asked, lease = _handed_over(asked, until), None
    if not session.rows(int, _CREATE, *new.values(asked, lease)):
        raise KeyTaken
    return asked


def _some_of(ids: Collection[str]) -> Iterator[list[str]]:
    rest = iter(ids)
    while some := list(islice(rest, _CHANGED_AT_ONCE)):
        yield some


def _handed_over(question: Question, until: datetime) -> Question:
    return msgspec.structs.replace(question, status="handed_over", deadline_at=until)


def _endable(ending: Ending) -> tuple[Status, ...]:
    """The statuses that an ending may follow."""
    if isinstance(ending, Answered):
        return OPEN if ending.by.kind == "bot" else ("handed_over",)
    # An answerer fails for itself alone.
    return (*OPEN, "handed_over") if ending.status in ("cancelled", "expired") else OPEN


def _now() -> datetime:
    return datetime.now(UTC)
