"""The tables of questions, of the conversations that they belong to, and of the staff who look after those.

Used by `store` and `conversations`, which own the SQL; rows become values here. `retention` calls
`QuestionDeletion` for what leaves the tables: questions of long ago, and all of a person who is to be
forgotten. Rows go in portions, so that nothing else waits for long: questions first, then what belongs to
them.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

import msgspec
from tortoise import fields
from tortoise.models import Model
from ulid import ULID

from pushsse.database import Database, Statement
from pushsse.questions import By, EarlierAnswer, KeptPart, Link, Question, Rating, Status, clean


class QuestionRow(Model):
    """One question with its answer so far. The id is a ULID, so ids sort by time.

    The node `owner` answers it until `lease_until`; after that any node may take it over (null: the answer
    comes from elsewhere). `attempts` counts the takers, and no earlier one may write; `first_attempt` is the
    number of the first one since the question was last asked anew. `announce_by` is when somebody else should
    append the present status to the log; null once it is there.
    """

    id = fields.CharField(max_length=26, primary_key=True)
    user = fields.CharField(max_length=128)
    conversation = fields.CharField(max_length=64)
    text = fields.TextField()
    context: fields.JSONField[dict[str, object] | None] = fields.JSONField(null=True)
    status = fields.CharField(max_length=16)
    answer = fields.TextField(db_default="")
    answer_seq = fields.IntField(db_default=0)
    answer_piece = fields.IntField(db_default=0)
    answer_attempt = fields.IntField(db_default=0)
    by_kind = fields.CharField(max_length=8, db_default="")
    by_name = fields.CharField(max_length=128, db_default="")
    links: fields.JSONField[list[dict[str, str]] | None] = fields.JSONField(null=True)
    suggestions: fields.JSONField[list[str] | None] = fields.JSONField(null=True)
    error_code = fields.CharField(max_length=64, db_default="")
    error_detail = fields.TextField(db_default="")
    parts: fields.JSONField[list[dict[str, object]] | None] = fields.JSONField(null=True)
    usage: fields.JSONField[dict[str, int] | None] = fields.JSONField(null=True)
    regenerations = fields.IntField(db_default=0)
    first_attempt = fields.IntField(db_default=1)
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


# What a list reads of questions: all that it shows but the answers and their parts, which may be long.
LISTED = (
    *("id", "user", "conversation", "text", "context", "status", "answer_seq", "answer_piece"),
    "answer_attempt",
    *("by_kind", "by_name", "links", "suggestions", "error_code", "error_detail", "rating", "rating_comment"),
    *("regenerations", "first_attempt", "attempts", "lease_until", "created_at", "updated_at", "deadline_at"),
)


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
    rating = fields.CharField(max_length=8, db_default="")
    rating_comment = fields.TextField(db_default="")
    ended_at = fields.DatetimeField()

    class Meta:
        table = "pushsse_earlier_answer"
        unique_together = (("question", "number"),)
        indexes = (("user",),)


class ConversationRow(Model):
    """Whose a conversation is, and who answers in it.

    `newest` is the id of its newest question or message, a ULID, so that conversations sort by it. The status
    is `open` or `handed_over`, which holds until `keep_until`.
    """

    id = fields.CharField(max_length=64, primary_key=True)
    user = fields.CharField(max_length=128)
    title = fields.CharField(max_length=128, db_default="")
    newest = fields.CharField(max_length=26)
    status = fields.CharField(max_length=16, db_default="open")
    created_at = fields.DatetimeField()
    handed_over_at = fields.DatetimeField(null=True)
    handed_over_by = fields.CharField(max_length=16, db_default="")
    reason = fields.TextField(db_default="")
    keep_until = fields.DatetimeField(null=True)
    released_at = fields.DatetimeField(null=True)
    released_by = fields.CharField(max_length=128, db_default="")

    class Meta:
        table = "pushsse_conversation"
        indexes = (("user", "newest"), ("status", "newest"), ("newest",))


class StaffRow(Model):
    """A member of staff, and until when he is told what waits."""

    user = fields.CharField(max_length=128, primary_key=True)
    told_until = fields.DatetimeField()
    # Of the token that listed what waits, in seconds since 1970.
    issued_at = fields.FloatField(null=True)

    class Meta:
        table = "pushsse_staff"
        indexes = (("told_until",),)


def by_of(kind: str, name: str) -> By | None:
    """Who answered; None for nobody yet."""
    if not kind:
        return None
    return By("bot" if kind == "bot" else "staff", name)


def value_of(row: QuestionRow | None) -> Question | None:
    """A row as a question; None for none."""
    return None if row is None else question_of(row)


def question_of(row: QuestionRow) -> Question:
    """A row as a question."""
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
        piece=row.answer_piece,
        piece_attempt=row.answer_attempt,
        sent_off=row.status == "answering" and row.lease_until is None,
        by=by_of(row.by_kind, row.by_name),
        links=msgspec.convert(row.links or [], tuple[Link, ...]),
        suggestions=tuple(row.suggestions or ()),
        parts=msgspec.convert(row.parts or [], tuple[KeptPart, ...]),
        usage=row.usage,
        error_code=row.error_code,
        error_detail=row.error_detail,
        regenerations=row.regenerations,
        first_attempt=row.first_attempt,
        rating=cast(Rating | None, row.rating or None),
        rating_comment=row.rating_comment,
    )


def listed_of(row: Any) -> Question:
    """A row as a list has it: the beginning of the answer in the answer's place."""
    row.answer, row.parts, row.usage = row.beginning, None, None
    return msgspec.structs.replace(question_of(row), cut=bool(row.is_cut))


def replaced(row: QuestionRow) -> EarlierAnswerRow:
    """What became of a question as the earlier answer that it will be."""
    return EarlierAnswerRow(
        question=row.id,
        user=row.user,
        number=row.regenerations + 1,
        status=row.status,
        answer=row.answer,
        by_kind=row.by_kind,
        by_name=row.by_name,
        links=row.links,
        suggestions=row.suggestions,
        parts=row.parts,
        usage=row.usage,
        error_code=row.error_code,
        error_detail=row.error_detail,
        rating=row.rating,
        rating_comment=row.rating_comment,
        ended_at=row.updated_at,
    )


def earlier_of(row: EarlierAnswerRow) -> EarlierAnswer:
    """A row as an earlier answer."""
    return EarlierAnswer(
        number=row.number,
        status=cast(Status, row.status),
        ended_at=row.ended_at,
        answer=row.answer,
        by=by_of(row.by_kind, row.by_name),
        links=msgspec.convert(row.links or [], tuple[Link, ...]),
        suggestions=tuple(row.suggestions or ()),
        parts=msgspec.convert(row.parts or [], tuple[KeptPart, ...]),
        error_code=row.error_code,
        error_detail=row.error_detail,
        rating=cast(Rating | None, row.rating or None),
        rating_comment=row.rating_comment,
    )


def json_of(value: object) -> str | None:
    """A value as JSON, as PostgreSQL can hold it."""
    return None if value is None else msgspec.json.encode(holdable(msgspec.to_builtins(value))).decode()


def holdable(value: Any) -> Any:
    """A JSON value as PostgreSQL can hold it."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, list | tuple):
        return [holdable(inner) for inner in value]
    if isinstance(value, dict):
        return {clean(name): holdable(inner) for name, inner in value.items()}
    return value


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
# None of its questions is left: the newest one was asked before all that are kept.
_DELETE_OLD_CONVERSATIONS = Statement("""
    DELETE FROM pushsse_conversation WHERE id IN (
        SELECT id FROM pushsse_conversation c WHERE newest < {value[1]}
           AND NOT EXISTS (SELECT 1 FROM pushsse_question q WHERE q.conversation = c.id)
         ORDER BY newest LIMIT {value[2]}) RETURNING 1""")
_FORGET_CONVERSATIONS = Statement("""
    DELETE FROM pushsse_conversation WHERE id IN (
        SELECT id FROM pushsse_conversation WHERE "user" = {value[1]} LIMIT {value[2]}) RETURNING 1""")
_FORGET_STAFF = Statement("""DELETE FROM pushsse_staff WHERE "user" = {value[1]} RETURNING 1""")
# A name stands under what its bearer said to others, or released, as staff. No index has it, so all rows are
# looked at, one portion after another: where each begins and ends, and what is done to it. An answerer may
# have the name of a person.
_NAMED: tuple[tuple[str | int, Statement, Statement], ...] = (
    (
        "",
        Statement("""
            SELECT id FROM pushsse_question WHERE id > {value[1]} ORDER BY id LIMIT {value[2]}"""),
        Statement("""
            UPDATE pushsse_question SET by_name = ''
             WHERE id > {value[1]} AND id <= {value[2]} AND by_kind = 'staff' AND by_name = {value[3]}
            RETURNING 1"""),
    ),
    (
        0,
        Statement("""
            SELECT id FROM pushsse_earlier_answer WHERE id > {value[1]} ORDER BY id LIMIT {value[2]}"""),
        Statement("""
            UPDATE pushsse_earlier_answer SET by_name = ''
             WHERE id > {value[1]} AND id <= {value[2]} AND by_kind = 'staff' AND by_name = {value[3]}
            RETURNING 1"""),
    ),
    (
        "",
        Statement("""
            SELECT id FROM pushsse_conversation WHERE id > {value[1]} ORDER BY id LIMIT {value[2]}"""),
        Statement("""
            UPDATE pushsse_conversation SET released_by = ''
             WHERE id > {value[1]} AND id <= {value[2]} AND released_by = {value[3]}
            RETURNING 1"""),
    ),
)
# Rows of which one statement looks for a name.
_LOOKED_AT_ONCE = 1_000
# The first characters of a ULID are its time.
_TIME_OF_ULID = 10
# Rows that one statement deletes: an answer may have 800 kB.
_AT_ONCE = 100


@dataclass(frozen=True, slots=True)
class QuestionDeletion:
    """Deletes questions with their answers and conversations. Everything raises DatabaseUnavailable."""

    database: Database

    async def delete_old(self, before: datetime) -> int:
        """Deletes some questions that have ended and were asked before a time; how many, 0 at the end."""
        oldest_kept = str(ULID.from_datetime(before))[:_TIME_OF_ULID]
        while await self.database.rows(int, _DELETE_OLD_ANSWERS, oldest_kept, _AT_ONCE):
            pass
        deleted = len(await self.database.rows(int, _DELETE_OLD, oldest_kept, _AT_ONCE))
        # At the end, when none of their questions is left.
        while not deleted and await self.database.rows(int, _DELETE_OLD_CONVERSATIONS, oldest_kept, _AT_ONCE):
            pass
        return deleted

    async def forget(self, user: str) -> dict[str, int]:
        """Deletes a person's questions and their answers; how many. Open ones get no further answer.

        What the person said to others as staff stays, without the name.
        """
        deleted = conversations = 0
        while found := await self.database.rows(int, _FORGET, user, _AT_ONCE):
            deleted += len(found)
        # After the questions: none of them can be answered anew, so no earlier answer comes any more.
        while await self.database.rows(int, _FORGET_ANSWERS, user, _AT_ONCE):
            pass
        while found := await self.database.rows(int, _FORGET_CONVERSATIONS, user, _AT_ONCE):
            conversations += len(found)
        await self.database.rows(int, _FORGET_STAFF, user)
        await self._clear_name(user)
        return {"questions": deleted, "conversations": conversations}

    async def _clear_name(self, user: str) -> None:
        # Questions before earlier answers, since those become these.
        for after, ids, clear in _NAMED:
            while found := await self.database.rows(_id, ids, after, _LOOKED_AT_ONCE):
                await self.database.rows(int, clear, after, found[-1], user)
                after = found[-1]


def _id(found: str | int) -> str | int:
    return found
