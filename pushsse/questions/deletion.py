"""What of questions leaves the database: those of long ago, and all of a person who is to be forgotten.

`retention` calls it. Rows go in portions, so that nothing else waits for long: questions first, then what
belongs to them.
"""

from dataclasses import dataclass
from datetime import datetime

from ulid import ULID

from pushsse.database import Database, Statement

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
        """Deletes a person's questions and their answers; how many. Open ones get no further answer."""
        deleted = conversations = 0
        while found := await self.database.rows(int, _FORGET, user, _AT_ONCE):
            deleted += len(found)
        # After the questions: none of them can be answered anew, so no earlier answer comes any more.
        while await self.database.rows(int, _FORGET_ANSWERS, user, _AT_ONCE):
            pass
        while found := await self.database.rows(int, _FORGET_CONVERSATIONS, user, _AT_ONCE):
            conversations += len(found)
        await self.database.rows(int, _FORGET_STAFF, user)
        return {"questions": deleted, "conversations": conversations}
