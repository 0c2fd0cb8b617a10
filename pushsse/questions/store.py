"""The SQL of the questions: every change of status is one conditional UPDATE, so that one node wins it.

`life` calls what a question goes through, the service what reads, `retention` and whoever forgets a person
what deletes. Every call raises DatabaseUnavailable.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, cast

import msgspec
from tortoise import fields
from tortoise.exceptions import IntegrityError
from tortoise.models import Model
from ulid import ULID

from pushsse.database import Database, Statement
from pushsse.questions import OPEN, Answered, By, Ending, KeptPart, Link, Question, Status, clean
from pushsse.questions.conversations import ConversationTable


class QuestionRow(Model):
    """One question with its answer so far. The id is a ULID, so ids sort by time.

    The node `owner` answers it until `lease_until`; after that any node may take it over (null: the answer
    comes from elsewhere). `attempts` counts the takers, and no earlier one may write. `announce_by` is when
    somebody else should append the present status to the log; null once it is there.
    """

    id = fields.CharField(max_length=26, primary_key=True)
    user = fields.CharField(max_length=128)
    conversation = fields.CharField(max_length=64)
    text = fields.TextField()
    context: fields.JSONField[dict[str, object] | None] = fields.JSONField(null=True)
    status = fields.CharField(max_length=16)
    answer = fields.TextField(db_default="")
    answer_seq = fields.IntField(db_default=0)
    by_kind = fields.CharField(max_length=8, db_default="")
    by_name = fields.CharField(max_length=128, db_default="")
    links: fields.JSONField[list[dict[str, str]] | None] = fields.JSONField(null=True)
    suggestions: fields.JSONField[list[str] | None] = fields.JSONField(null=True)
    error_code = fields.CharField(max_length=64, db_default="")
    error_detail = fields.TextField(db_default="")
    parts: fields.JSONField[list[dict[str, object]] | None] = fields.JSONField(null=True)
    usage: fields.JSONField[dict[str, int] | None] = fields.JSONField(null=True)
    regenerations = fields.IntField(db_default=0)
    rating = fields.CharField(max_length=8, db_default="")
    rating_comment = fields.TextField(db_default="")
    rated_at = fields.DatetimeField(null=True)
    idempotency_key = fields.CharField(max_length=128, null=True)
    idempotency_digest = fields.CharField(max_length=64, db_default="")
    owner = fields.CharField(max_length=128, db_default="")
    attempts = fields.IntField(db_default=0)
    lease_until = fields.DatetimeField(null=True)
    announce_by = fields.DatetimeField(null=True)
    created_at = fields.DatetimeField()
    updated_at = fields.DatetimeField()
    deadline_at = fields.DatetimeField()

    class Meta:
        table = "pushsse_question"
        unique_together = (("user", "idempotency_key"),)
        indexes = (("user", "id"), ("status", "deadline_at"), ("announce_by",), ("conversation", "id"))


class EarlierAnswerRow(Model):
    """An answer that was replaced: the first of a question has number 1."""

    id = fields.BigIntField(primary_key=True)
    question = fields.CharField(max_length=26)
    user = fields.CharField(max_length=128)
    number = fields.IntField()
    status = fields.CharField(max_length=16)
    answer = fields.TextField(db_default="")
    by_kind = fields.CharField(max_length=8, db_default="")
    by_name = fields.CharField(max_length=128, db_default="")
    links: fields.JSONField[list[dict[str, str]] | None] = fields.JSONField(null=True)
    suggestions: fields.JSONField[list[str] | None] = fields.JSONField(null=True)
    parts: fields.JSONField[list[dict[str, object]] | None] = fields.JSONField(null=True)
    usage: fields.JSONField[dict[str, int] | None] = fields.JSONField(null=True)
    error_code = fields.CharField(max_length=64, db_default="")
    error_detail = fields.TextField(db_default="")
    ended_at = fields.DatetimeField()

    class Meta:
        table = "pushsse_earlier_answer"
        unique_together = (("question", "number"),)
        indexes = (("user",),)


# Who of the people among the first parameter has a question that is still to be answered. `people` reads it.
OPEN_USERS = f"""
    SELECT DISTINCT "user" FROM pushsse_question
     WHERE "user" {{among[1]}} AND status IN ({", ".join(f"'{status}'" for status in OPEN)})"""  # nosec B608 # ours


# Ids are ULIDs, so the primary key has them by time. What isn't announced yet, a sweep has to find.
_DELETE_OLD = Statement("""
    DELETE FROM pushsse_question WHERE id IN (
        SELECT id FROM pushsse_question
         WHERE id < {value[1]} AND status IN ('answered', 'failed', 'cancelled', 'expired')
           AND announce_by IS NULL
         ORDER BY id LIMIT {value[2]}) RETURNING 1""")
_FORGET = Statement("""
    DELETE FROM pushsse_question WHERE id IN (
        SELECT id FROM pushsse_question WHERE "user" = {value[1]} LIMIT {value[2]}) RETURNING 1""")
_DELETE_OLD_ANSWERS = Statement("""
    DELETE FROM pushsse_earlier_answer WHERE id IN (
        SELECT id FROM pushsse_earlier_answer WHERE question < {value[1]} LIMIT {value[2]}) RETURNING 1""")
_FORGET_ANSWERS = Statement("""
    DELETE FROM pushsse_earlier_answer WHERE id IN (
        SELECT id FROM pushsse_earlier_answer WHERE "user" = {value[1]} LIMIT {value[2]}) RETURNING 1""")
# The first characters of a ULID are its time.
_TIME_OF_ULID = 10
# Rows that one statement deletes: an answer may have 800 kB.
_AT_ONCE = 100


class KeyTaken(Exception):
    """The person has used this idempotency key before."""


@dataclass(frozen=True, slots=True)
class QuestionStore:
    """The table, behind one method a step of a question's life."""

    database: Database

    async def create(
        self, question: Question, *, key: str | None, owner: str, lease_s: float, announce_s: float
    ) -> None:
        """Writes a new question. Raises KeyTaken; the unique constraint decides when two ask together."""
        now = _now()
        async with self.database.session():
            row = QuestionRow(
                id=question.id,
                user=question.user,
                conversation=question.conversation,
                text=question.text,
                context=question.context,
                status=question.status,
                idempotency_key=key,
                owner=owner,
                attempts=question.attempt,
                lease_until=now + timedelta(seconds=lease_s),
                announce_by=now + timedelta(seconds=announce_s),
                created_at=question.asked_at,
                updated_at=question.updated_at,
                deadline_at=question.deadline_at,
            )
            try:
                await row.save(force_create=True)
            except IntegrityError:
                raise KeyTaken from None

    async def by_key(self, user: str, key: str) -> Question | None:
        """The question that a person asked with an idempotency key."""
        async with self.database.session():
            return _value(await QuestionRow.get_or_none(user=user, idempotency_key=key))

    async def one(self, question_id: str) -> Question | None:
        """A question by its id."""
        async with self.database.session():
            return _value(await QuestionRow.get_or_none(id=question_id))

    async def page(
        self, user: str, *, limit: int, before: str | None, conversation: str | None = None
    ) -> Sequence[Question]:
        """A person's questions, newest first, below the id `before`; those of one conversation, or all."""
        async with self.database.session():
            rows = QuestionRow.filter(user=user)
            if conversation is not None:
                rows = rows.filter(conversation=conversation)
            if before is not None:
                rows = rows.filter(id__lt=before)
            return [_question(row) for row in await rows.order_by("-id").limit(limit)]

    async def owner(self, conversation: str) -> str | None:
        """Who asked first in a conversation; None if nobody has."""
        async with self.database.session():
            first = QuestionRow.filter(conversation=conversation).order_by("id").limit(1)
            found = cast(list[str], await first.values_list("user", flat=True))
            return found[0] if found else None

    async def count_open(self, user: str) -> int:
        """How many questions of a person have no end yet."""
        async with self.database.session():
            return await QuestionRow.filter(user=user, status__in=OPEN).count()

    async def answering(self, user: str) -> Sequence[Question]:
        """A person's questions whose answers have begun to grow."""
        async with self.database.session():
            rows = await QuestionRow.filter(user=user, status="answering").exclude(answer="").order_by("id")
            return [_question(row) for row in rows]

    async def begin(self, question_id: str, attempt: int, *, announce_s: float) -> bool:
        """pending → answering, for the taker numbered `attempt`."""
        now = _now()
        async with self.database.session():
            rows = QuestionRow.filter(id=question_id, attempts=attempt, status="pending")
            return bool(
                await rows.update(
                    status="answering", updated_at=now, announce_by=now + timedelta(seconds=announce_s)
                )
            )

    async def grow(self, question: Question, text: str, seq: int, *, after: int | None = None) -> bool:
        """Stores the answer so far, if this taker still holds the question (and its seq is `after`)."""
        async with self.database.session():
            rows = QuestionRow.filter(id=question.id, attempts=question.attempt, status="answering")
            if after is not None:
                rows = rows.filter(answer_seq=after)
            return bool(await rows.update(answer=text, answer_seq=seq, updated_at=_now()))

    async def end(self, question_id: str, ending: Ending, *, attempt: int | None, announce_s: float) -> bool:
        """Open → ended; true for one caller over all nodes. `attempt` None for who isn't the taker."""
        now = _now()
        announce_by = now + timedelta(seconds=announce_s)
        changes = _changes(ending) | {"updated_at": now, "announce_by": announce_by, "lease_until": None}
        async with self.database.session():
            rows = QuestionRow.filter(id=question_id, status__in=OPEN)
            if attempt is not None:
                rows = rows.filter(attempts=attempt)
            return bool(await rows.update(**changes))

    async def announced(self, question: Question) -> None:
        """The log has the question's status, if it is still this one."""
        async with self.database.session():
            # The status is a condition: one that was reached meanwhile isn't in the log yet.
            await QuestionRow.filter(id=question.id, status=question.status).update(announce_by=None)

    async def unannounced(self, limit: int) -> Sequence[Question]:
        """Questions whose status should have come to the log by now."""
        async with self.database.session():
            rows = QuestionRow.filter(announce_by__lt=_now()).order_by("announce_by").limit(limit)
            return [_question(row) for row in await rows]

    async def overdue(self, limit: int) -> Sequence[Question]:
        """Open questions after their deadline."""
        async with self.database.session():
            rows = QuestionRow.filter(status__in=OPEN, deadline_at__lt=_now())
            return [_question(row) for row in await rows.order_by("deadline_at").limit(limit)]

    async def abandoned(self, limit: int) -> Sequence[Question]:
        """Open questions whose taker has let its lease lapse."""
        now = _now()
        async with self.database.session():
            rows = QuestionRow.filter(status__in=OPEN, deadline_at__gt=now, lease_until__lt=now)
            return [_question(row) for row in await rows.order_by("id").limit(limit)]

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
            return bool(await rows.update(attempts=question.attempt + 1, owner=owner, lease_until=lease))

    async def attempts(self, ids: Collection[str]) -> dict[str, int]:
        """Of these questions the open ones, each with the number of its present attempt."""
        async with self.database.session():
            rows = await QuestionRow.filter(id__in=list(ids), status__in=OPEN).values_list("id", "attempts")
        return {str(row[0]): int(row[1]) for row in rows}

    async def lease(self, ids: Collection[str], *, owner: str, lease_s: float) -> None:
        """Renews the leases that a node holds of these questions; 0 gives them up."""
        until = _now() + timedelta(seconds=lease_s)
        async with self.database.session():
            # The owner is a condition: a node that was paused doesn't know yet what others have taken over.
            # Null stays null: the answer comes from elsewhere, and nobody may take the question over.
            rows = QuestionRow.filter(
                id__in=list(ids), owner=owner, status__in=OPEN, lease_until__isnull=False
            )
            await rows.update(lease_until=until)

    async def sent_off(self, question: Question) -> None:
        """The answer comes from elsewhere: nobody takes the question over any more, it can only expire."""
        async with self.database.session():
            await QuestionRow.filter(id=question.id, attempts=question.attempt).update(lease_until=None)

    async def delete_old(self, before: datetime) -> int:
        """Deletes some questions that have ended and were asked before a time; how many, 0 at the end."""
        oldest_kept = str(ULID.from_datetime(before))[:_TIME_OF_ULID]
        while await self.database.rows(int, _DELETE_OLD_ANSWERS, oldest_kept, _AT_ONCE):
            pass
        deleted = len(await self.database.rows(int, _DELETE_OLD, oldest_kept, _AT_ONCE))
        # At the end, when none of their questions is left.
        while not deleted and await ConversationTable(self.database).delete_old(oldest_kept):
            pass
        return deleted

    async def forget(self, user: str) -> dict[str, int]:
        """Deletes a person's questions and their answers; how many. Open ones get no further answer."""
        deleted = 0
        while found := await self.database.rows(int, _FORGET, user, _AT_ONCE):
            deleted += len(found)
        # After the questions: none of them can be answered anew, so no earlier answer comes any more.
        while await self.database.rows(int, _FORGET_ANSWERS, user, _AT_ONCE):
            pass
        conversations = await ConversationTable(self.database).forget(user)
        return {"questions": deleted, "conversations": conversations}


def _now() -> datetime:
    return datetime.now(UTC)


def _changes(ending: Ending) -> dict[str, object]:
    if not isinstance(ending, Answered):
        return {"status": ending.status, "error_code": ending.code, "error_detail": ending.detail}
    changes: dict[str, object] = {
        "status": "answered",
        "by_kind": ending.by.kind,
        "by_name": ending.by.name,
        "links": msgspec.to_builtins(ending.links),
        "suggestions": list(ending.suggestions),
        "parts": _holdable(msgspec.to_builtins(ending.parts)),
        "usage": ending.usage,
    }
    if ending.text is not None:
        changes["answer"] = ending.text
    return changes


def _holdable(value: Any) -> Any:
    """A JSON value as PostgreSQL can hold it."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, list | tuple):
        return [_holdable(inner) for inner in value]
    if isinstance(value, dict):
        return {clean(name): _holdable(inner) for name, inner in value.items()}
    return value


def _value(row: QuestionRow | None) -> Question | None:
    return None if row is None else _question(row)


def _question(row: QuestionRow) -> Question:
    kind: Literal["bot", "staff"] = "bot" if row.by_kind == "bot" else "staff"
    return Question(
        id=row.id,
        user=row.user,
        conversation=row.conversation,
        text=row.text,
        context=row.context,
        status=cast(Status, row.status),
        asked_at=row.created_at,
        updated_at=row.updated_at,
        deadline_at=row.deadline_at,
        attempt=row.attempts,
        answer=row.answer,
        seq=row.answer_seq,
        by=By(kind, row.by_name) if row.by_kind else None,
        links=msgspec.convert(row.links or [], tuple[Link, ...]),
        suggestions=tuple(row.suggestions or ()),
        parts=msgspec.convert(row.parts or [], tuple[KeptPart, ...]),
        usage=row.usage,
        error_code=row.error_code,
        error_detail=row.error_detail,
    )
