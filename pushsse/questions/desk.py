"""Conversations that people have taken over, as the staff see them: what waits, answers, messages, release.

Called by api/conversations. Whoever calls has checked that it is staff: these calls know all people's
conversations, but only while they are handed over. Every method raises DatabaseUnavailable.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256

import msgspec
from ulid import ULID

from pushsse.errors import InvalidInput, Unavailable, Violation
from pushsse.questions import Answered, By, Conversation, DeskEvent, Link, NotNow, Question, clean
from pushsse.questions.conversations import Staff
from pushsse.questions.life import Life
from pushsse.questions.service import key_since

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Said:
    """What a member of staff says; `name` is what the person sees of him."""

    text: str
    name: str
    links: tuple[Link, ...] = ()

    @property
    def by(self) -> By:
        """Who says it."""
        return By("staff", self.name)


@dataclass(frozen=True, slots=True)
class Desk:
    """What staff do, on any node."""

    life: Life

    async def waiting(self, staff: Staff, *, limit: int, before: str | None) -> Sequence[Conversation]:
        """What is handed over, the newest question first.

        For an hour, but no longer than the asker's token is good, the asker's streams tell that more comes.
        """
        await self.life.conversations.staff_asked(staff)
        return await self.life.conversations.handed_over(limit=limit, before=before)

    async def conversation(self, conversation: str) -> Conversation | None:
        """One that is handed over; None for any other."""
        found = await self.life.conversations.one(conversation)
        return found if found is not None and found.is_handed_over else None

    async def read(self, staff: str, conversation: str) -> Conversation | None:
        """The same, for a member of staff who is to see its questions: that leaves a line in the log."""
        if (found := await self.conversation(conversation)) is not None and found.user != staff:
            logger.info("conversation %s: %s reads it", conversation, staff, extra={"user": found.user})
        return found

    async def answer(self, staff: str, question_id: str, said: Said) -> Question | None:
        """Answers a question of such a conversation. None if there is none; raises NotNow if it has ended.

        Of two that answer at once the first one wins, on all nodes.
        """
        question = await self.life.find(question_id)
        if question is None or await self.conversation(question.conversation) is None:
            return None
        if not await self.life.end(question_id, Answered(said.by, said.text, said.links)):
            raise NotNow("already_ended", "the question has an answer already, or has ended otherwise")
        logger.info("question %s: %s has answered it", question_id, staff, extra=question.ids)
        await self._said(question)
        return await self.life.find(question_id)

    async def write(
        self, staff: str, conversation: str, said: Said, *, idempotency_key: str | None = None
    ) -> Question | None:
        """Sends a further message, as the answer to a question without text. None if it isn't handed over.

        With a key that this member of staff has used here within a day, returns the first. Raises
        InvalidInput (that had another text), BeingTaken (it is being written).
        """
        if (found := await self.conversation(conversation)) is None:
            return None
        key = None if idempotency_key is None else _key(staff, conversation, idempotency_key)
        if key is not None and (first := await self._first(found.user, key, said)) is not None:
            return first
        now = datetime.now(UTC)
        message = Question(
            id=str(ULID()),
            user=found.user,
            conversation=conversation,
            text="",
            status="answered",
            asked_at=now,
            updated_at=now,
            deadline_at=now,
            answer=clean(said.text),
            by=said.by,
            links=said.links,
        )
        if not await self.life.write(message, key=key):
            return None
        logger.info("conversation %s: %s has sent a message", conversation, staff, extra=message.ids)
        await self._said(message)
        return message

    async def _first(self, user: str, key: str, said: Said) -> Question | None:
        since = key_since()
        await self.life.store.free_key(user, key, before=since)
        if (found := await self.life.store.by_key(user, key, since=since)) is None:
            return None
        first, _ = found
        if (first.answer, first.links, first.by) != (clean(said.text), said.links, said.by):
            raise InvalidInput(Violation("Idempotency-Key", "was used for another message"))
        return first

    async def release(self, conversation: str, *, by: str) -> Conversation | None:
        """Answerers have the conversation again; what still waits fails. None if it isn't handed over."""
        ids = await self.life.conversations.release(conversation, by=by, announce_s=self.life.pace.announce_s)
        found = await self.life.conversations.one(conversation) if ids is not None else None
        if ids is None or found is None:
            return None
        logger.info("conversation %s: %s has released it, %d questions end", conversation, by, len(ids))
        await self.life.announce_all(ids)
        await self._tell(DeskEvent(conversation, "released", None))
        return found

    async def _said(self, question: Question) -> None:
        """The conversation's time begins anew, and other staff are told; if not, what was said stays."""
        try:
            await self.life.conversations.keep(question.conversation, keep_s=self.life.pace.keep_s)
        except Unavailable as error:
            logger.warning("conversation %s isn't kept for longer: %s", question.conversation, error)
        await self._tell(DeskEvent(question.conversation, "answered", question.id))

    async def _tell(self, event: DeskEvent) -> None:
        try:
            await self.life.tell_staff(event)
        except Unavailable as error:
            logger.warning("conversation %s: the staff aren't told: %s", event.conversation, error)


def _key(staff: str, conversation: str, key: str) -> str:
    """The key of a message among those of its person, none of whose own begins like that."""
    return "\x01" + sha256(msgspec.json.encode((staff, conversation, key))).hexdigest()
