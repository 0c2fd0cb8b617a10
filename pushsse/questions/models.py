"""The table of the questions. Read and written by `store` alone."""

from tortoise import fields
from tortoise.models import Model


class Question(Model):
    """One question with its answer so far. The id is a ULID, so ids sort by time.

    A node answers it until `lease_until`; after that any node may take it over (null: the answer comes from
    elsewhere). `attempts` counts the takers, and no earlier one may write. `announce_by` is when
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
    idempotency_key = fields.CharField(max_length=128, null=True)
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
        indexes = (("user", "id"), ("status", "deadline_at"), ("announce_by",))
