"""The SQL of conversations: whose each is, who answers in it, and which staff are told of those handed over.

`life` and the service call it; the store of questions calls `enter`. Deliberate: whoever changes who answers
locks the conversation's row first and its questions then, so that no question slips in between.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal, NamedTuple, cast

import msgspec
from tortoise.exceptions import IntegrityError
from tortoise.expressions import F

from pushsse.database import Database, Session, Statement, ThreadSession, Value, instant, time_of
from pushsse.questions import (
    OPEN,
    RELEASED,
    BeingTaken,
    By,
    Conversation,
    Lost,
    Question,
    UnknownConversation,
)
from pushsse.questions.rows import ConversationRow, QuestionRow, StaffRow

_TITLE = 80
# Staff are told for so long after they last asked what waits, and so many of them.
_STAFF_S = 3600
_MOST_STAFF = 100
_STAFF_AGAIN_S = 60
_WAITING = Statement("""
    SELECT conversation, count(*) FROM pushsse_question
     WHERE conversation {among[1]} AND status = 'handed_over' GROUP BY conversation""")
# A kick counts from the moment its row is there, on all nodes, and also where a call that lists is under way
# with a token of before. As in `Kicked.refuses`, a second is the resolution, and no time is always before.
_STAFF = Statement("""
    SELECT s."user" FROM pushsse_staff s
     WHERE s.told_until > {time[1]}
       AND NOT EXISTS (SELECT 1 FROM pushsse_kick k WHERE k."user" = s."user"
                          AND (s.issued_at IS NULL OR s.issued_at < k.kicked_at + 1))
     ORDER BY s.told_until DESC LIMIT {value[2]}""")
HandedOverBy = Literal["person", "answerer"]


# A name belongs to who asked first with it, also where a node of the version before has made no row.
_ENTER = Statement("""
    INSERT INTO pushsse_conversation (id, "user", title, newest, created_at)
    VALUES (CAST({value[1]} AS text),
            COALESCE((SELECT "user" FROM pushsse_question WHERE conversation = CAST({value[1]} AS text)
                       ORDER BY id LIMIT 1), CAST({value[2]} AS text)),
            {value[3]}, {value[4]}, {time[5]})
        ON CONFLICT (id) DO UPDATE SET newest =
           CASE WHEN pushsse_conversation."user" = CAST({value[2]} AS text)
                 AND pushsse_conversation.newest < excluded.newest
                THEN excluded.newest ELSE pushsse_conversation.newest END
    RETURNING "user", status, keep_until""")


class _NotHandedOverError(Exception):
    """Staff can't write in the conversation."""


class _Count(NamedTuple):
    name: str
    waiting: int


@dataclass(frozen=True, slots=True)
class Staff:
    """A member of staff, by a token that ends and was issued at these times (seconds since 1970).

    None: it never ends; it doesn't say when it was issued.
    """

    user: str
    expires_at: float | None = None
    issued_at: float | None = None

    def told_until(self, now: datetime) -> datetime:
        """Until when he is told who asks now what waits: never longer than the token is good."""
        hour = now + timedelta(seconds=_STAFF_S)
        if self.expires_at is None or self.expires_at >= hour.timestamp():
            return hour
        return datetime.fromtimestamp(self.expires_at, UTC)


@dataclass(frozen=True, slots=True)
class ConversationStore:
    """The conversations of all people. Every call raises DatabaseUnavailable."""

    database: Database

    async def one(self, conversation: str) -> Conversation | None:
        """A conversation by its id."""
        async with self.database.session():
            row = await ConversationRow.get_or_none(id=conversation)
        return None if row is None else (await self._conversations([row]))[0]

    async def page(self, user: str, *, limit: int, before: str | None) -> Sequence[Conversation]:
        """A person's conversations, the one with the newest question first, of those below `before`."""
        async with self.database.session():
            rows = ConversationRow.filter(user=user)
            if before is not None:
                rows = rows.filter(newest__lt=before)
            found = await rows.order_by("-newest").limit(limit)
        return await self._conversations(found)

    async def handed_over(self, *, limit: int, before: str | None) -> Sequence[Conversation]:
        """All conversations that people have taken over, as `page` has them."""
        async with self.database.session():
            rows = ConversationRow.filter(status="handed_over", keep_until__gt=_now())
            if before is not None:
                rows = rows.filter(newest__lt=before)
            found = await rows.order_by("-newest").limit(limit)
        return await self._conversations(found)

    async def hand_over(
        self,
        conversation: str,
        *,
        by: HandedOverBy,
        reason: str,
        keep_s: float,
        announce_s: float,
        question: Question | None = None,
    ) -> Sequence[str]:
        """From now on people answer in a conversation, and its open questions: the ids of these.

        With `question` raises Lost, unless that is still open and of the same attempt. One that is handed
        over already stays so until the same time.
        """
        now = _now()
        async with self.database.transaction() as session:
            if question is not None:
                await enter(session, question)
                own = QuestionRow.filter(id=question.id, attempts=question.attempt, status__in=OPEN)
                if not await own.exists():
                    raise Lost(question.id)
            row = await ConversationRow.filter(id=conversation).select_for_update().get()
            until = handed_over_until(row)
            if until is None:
                until = now + timedelta(seconds=keep_s)
                row.status, row.handed_over_at, row.handed_over_by = "handed_over", now, by
                row.reason, row.keep_until, row.released_at, row.released_by = reason, until, None, ""
                await row.save()
            rows = QuestionRow.filter(conversation=conversation, status__in=OPEN)
            ids = cast(list[str], await rows.order_by("id").values_list("id", flat=True))
            # With another attempt whoever is answering them writes nothing any more.
            await QuestionRow.filter(id__in=ids).update(
                status="handed_over",
                attempts=F("attempts") + 1,
                owner="",
                lease_until=None,
                deadline_at=until,
                updated_at=now,
                announce_by=now + timedelta(seconds=announce_s),
            )
        return ids

    async def release(self, conversation: str, *, by: str, announce_s: float) -> Sequence[str] | None:
        """Answerers answer again, and what still waits for people ends: the ids. None if nobody had it."""
        now = _now()
        async with self.database.transaction():
            row = await ConversationRow.filter(id=conversation).select_for_update().first()
            if row is None or handed_over_until(row) is None:
                return None
            row.status, row.keep_until, row.released_at, row.released_by = "open", None, now, by
            await row.save()
            rows = QuestionRow.filter(conversation=conversation, status="handed_over")
            ids = cast(list[str], await rows.order_by("id").values_list("id", flat=True))
            await QuestionRow.filter(id__in=ids).update(
                status=RELEASED.status,
                error_code=RELEASED.code,
                error_detail=RELEASED.detail,
                updated_at=now,
                announce_by=now + timedelta(seconds=announce_s),
            )
        return ids

    async def lapse(self) -> None:
        """Releases what is over its time; its questions expire by themselves."""
        now = _now()
        async with self.database.session():
            rows = ConversationRow.filter(status="handed_over", keep_until__lte=now)
            await rows.update(status="open", keep_until=None, released_at=now)

    async def keep(self, conversation: str, *, keep_s: float) -> None:
        """Staff have said something: the time until a conversation is released begins anew."""
        until = _now() + timedelta(seconds=keep_s)
        async with self.database.transaction():
            held = ConversationRow.filter(id=conversation, status="handed_over")
            if await held.update(keep_until=until):
                waiting = QuestionRow.filter(conversation=conversation, status="handed_over")
                await waiting.update(deadline_at=until)

    async def write(self, message: Question, *, key: str | None, announce_s: float) -> bool:
        """Stores a message of staff: the answer to a question without text. False if it isn't handed over.

        Raises BeingTaken where another call has just written one with this key.
        """
        if (by := message.by) is None:
            raise ValueError("a message is by somebody")
        try:
            await self._write(message, by, key=key, announce_s=announce_s)
        except _NotHandedOverError:
            return False
        return True

    async def _write(self, message: Question, by: By, *, key: str | None, announce_s: float) -> None:
        async with self.database.transaction() as session:
            if (await enter(session, message)).handed_over_until is None:
                # Rolled back: of a person who was forgotten a moment ago it would have made a row.
                raise _NotHandedOverError
            row = QuestionRow(
                id=message.id,
                user=message.user,
                conversation=message.conversation,
                text=message.text,
                status=message.status,
                answer=message.answer,
                by_kind=by.kind,
                by_name=by.name,
                links=msgspec.to_builtins(message.links),
                idempotency_key=key,
                attempts=message.attempt,
                announce_by=_now() + timedelta(seconds=announce_s),
                created_at=message.asked_at,
                updated_at=message.updated_at,
                deadline_at=message.deadline_at,
            )
            try:
                await row.save(force_create=True)
            except IntegrityError:
                raise BeingTaken(1) from None

    async def staff_asked(self, staff: Staff) -> None:
        """A member of staff has asked what waits, and is told for an hour, or until the token ends."""
        now = _now()
        until = staff.told_until(now)
        async with self.database.session():
            row = await StaffRow.get_or_none(user=staff.user)
            if row is not None and row.issued_at == staff.issued_at:
                gained_s = (until - row.told_until).total_seconds()
                if 0 <= gained_s < _STAFF_AGAIN_S < (row.told_until - now).total_seconds():
                    return
            await StaffRow.bulk_create(
                [StaffRow(user=staff.user, told_until=until, issued_at=staff.issued_at)],
                on_conflict=["user"],
                update_fields=["told_until", "issued_at"],
            )
            await StaffRow.filter(told_until__lte=now).delete()

    async def staff(self) -> Sequence[str]:
        """Who is told: nobody whose token has ended, or who was kicked, since they asked."""
        return await self.database.rows(str, _STAFF, instant(_now()), _MOST_STAFF)

    async def _conversations(self, rows: Sequence[ConversationRow]) -> Sequence[Conversation]:
        held = [row.id for row in rows if handed_over_until(row) is not None]
        counts = await self.database.rows(_Count, _WAITING, held) if held else []
        waiting = {found.name: found.waiting for found in counts}
        return [_conversation(row, waiting.get(row.id, 0)) for row in rows]


class Entered(NamedTuple):
    """A conversation as it was found, or made, for a question."""

    user: str
    status: str
    keep_until: datetime | str | None

    @property
    def handed_over_until(self) -> datetime | None:
        """Until when people answer in it; None where they don't."""
        return _until(self.status, None if self.keep_until is None else time_of(self.keep_until))


async def enter(session: Session, question: Question) -> Entered:
    """The conversation of a question, which is its newest one unless there is a newer one; made if need be.

    In the caller's transaction, until whose end nobody else changes it. Raises UnknownConversation: it is
    somebody else's.
    """
    # Of two that begin it at once, the second waits here for the first.
    [entered] = await session.rows(Entered, _ENTER, *_entering(question))
    return _own(entered, question)


def enter_in_thread(session: ThreadSession, question: Question) -> Entered:
    """As `enter`, in SQLite's thread."""
    [entered] = session.rows(Entered, _ENTER, *_entering(question))
    return _own(entered, question)


def title_of(question: Question) -> str:
    """What a conversation is called that begins with this question."""
    return " ".join(question.text[: 4 * _TITLE].split())[:_TITLE]


def _entering(question: Question) -> tuple[Value, ...]:
    asked_at = instant(question.asked_at)
    return question.conversation, question.user, title_of(question), question.id, asked_at


def _own(entered: Entered, question: Question) -> Entered:
    if entered.user != question.user:
        raise UnknownConversation(question.conversation)
    return entered


def handed_over_until(row: ConversationRow) -> datetime | None:
    """Until when people answer in a conversation; None where they don't."""
    return _until(row.status, row.keep_until)


def _until(status: str, keep_until: datetime | None) -> datetime | None:
    return keep_until if status == "handed_over" and keep_until and keep_until > _now() else None


def _conversation(row: ConversationRow, waiting: int) -> Conversation:
    until = handed_over_until(row)
    found = Conversation(
        id=row.id, user=row.user, title=row.title, newest=row.newest, created_at=row.created_at
    )
    if until is None:
        return found
    return msgspec.structs.replace(
        found,
        is_handed_over=True,
        handed_over_at=row.handed_over_at,
        handed_over_by=row.handed_over_by,
        reason=row.reason,
        keep_until=until,
        waiting=waiting,
    )


def _now() -> datetime:
    return datetime.now(UTC)
