"""The tables of conversations, and of the staff who are told about those that people have taken over."""

from dataclasses import dataclass

from tortoise import fields
from tortoise.models import Model

from pushsse.database import Database, Statement


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
    """A member of staff, and when he last asked which conversations wait."""

    user = fields.CharField(max_length=128, primary_key=True)
    asked_at = fields.DatetimeField()

    class Meta:
        table = "pushsse_staff"
        indexes = (("asked_at",),)


# None of its questions is left: the newest one was asked before all that are kept.
_DELETE_OLD = Statement("""
    DELETE FROM pushsse_conversation WHERE id IN (
        SELECT id FROM pushsse_conversation c WHERE newest < {value[1]}
           AND NOT EXISTS (SELECT 1 FROM pushsse_question q WHERE q.conversation = c.id)
         ORDER BY newest LIMIT {value[2]}) RETURNING 1""")
_FORGET = Statement("""
    DELETE FROM pushsse_conversation WHERE id IN (
        SELECT id FROM pushsse_conversation WHERE "user" = {value[1]} LIMIT {value[2]}) RETURNING 1""")
_FORGET_STAFF = Statement("""DELETE FROM pushsse_staff WHERE "user" = {value[1]} RETURNING 1""")
_AT_ONCE = 100


@dataclass(frozen=True, slots=True)
class ConversationTable:
    """The conversations of all people. Every call raises DatabaseUnavailable."""

    database: Database

    async def delete_old(self, oldest_kept: str) -> int:
        """Deletes some whose questions have all gone, and whose newest id is below; how many."""
        return len(await self.database.rows(int, _DELETE_OLD, oldest_kept, _AT_ONCE))

    async def forget(self, user: str) -> int:
        """Deletes a person's conversations, and his place among the staff; how many conversations."""
        deleted = 0
        while found := await self.database.rows(int, _FORGET, user, _AT_ONCE):
            deleted += len(found)
        await self.database.rows(int, _FORGET_STAFF, user)
        return deleted
