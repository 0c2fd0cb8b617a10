# ruff: noqa: RUF012
import functools
from json import dumps, loads
from typing import Any

from tortoise import fields, migrations
from tortoise.indexes import Index
from tortoise.migrations import operations as ops


def _json() -> fields.JSONField[Any]:
    return fields.JSONField(null=True, encoder=functools.partial(dumps, separators=(",", ":")), decoder=loads)


class Migration(migrations.Migration):
    dependencies = [("pushsse", "0004_kicks")]

    initial = False

    operations = [
        ops.CreateModel(
            name="ConversationRow",
            fields=[
                ("id", fields.CharField(primary_key=True, unique=True, db_index=True, max_length=64)),
                ("user", fields.CharField(max_length=128)),
                ("title", fields.CharField(db_default="", max_length=128)),
                ("newest", fields.CharField(max_length=26)),
                ("status", fields.CharField(db_default="open", max_length=16)),
                ("created_at", fields.DatetimeField(auto_now=False, auto_now_add=False)),
                ("handed_over_at", fields.DatetimeField(null=True, auto_now=False, auto_now_add=False)),
                ("handed_over_by", fields.CharField(db_default="", max_length=16)),
                ("reason", fields.TextField(db_default="", unique=False)),
                ("keep_until", fields.DatetimeField(null=True, auto_now=False, auto_now_add=False)),
                ("released_at", fields.DatetimeField(null=True, auto_now=False, auto_now_add=False)),
                ("released_by", fields.CharField(db_default="", max_length=128)),
            ],
            options={
                "table": "pushsse_conversation",
                "app": "pushsse",
                "indexes": [
                    Index(fields=["user", "newest"]),
                    Index(fields=["status", "newest"]),
                    Index(fields=["newest"]),
                ],
                "pk_attr": "id",
                "table_description": "Whose a conversation is, and who answers in it.",
            },
            bases=["Model"],
        ),
        ops.CreateModel(
            name="EarlierAnswerRow",
            fields=[
                ("id", fields.BigIntField(generated=True, primary_key=True, unique=True, db_index=True)),
                ("question", fields.CharField(max_length=26)),
                ("user", fields.CharField(max_length=128)),
                ("number", fields.IntField()),
                ("status", fields.CharField(max_length=16)),
                ("answer", fields.TextField(db_default="", unique=False)),
                ("by_kind", fields.CharField(db_default="", max_length=8)),
                ("by_name", fields.CharField(db_default="", max_length=128)),
                ("links", _json()),
                ("suggestions", _json()),
                ("parts", _json()),
                ("usage", _json()),
                ("error_code", fields.CharField(db_default="", max_length=64)),
                ("error_detail", fields.TextField(db_default="", unique=False)),
                ("rating", fields.CharField(db_default="", max_length=8)),
                ("rating_comment", fields.TextField(db_default="", unique=False)),
                ("ended_at", fields.DatetimeField(auto_now=False, auto_now_add=False)),
            ],
            options={
                "table": "pushsse_earlier_answer",
                "app": "pushsse",
                "unique_together": (("question", "number"),),
                "indexes": [Index(fields=["user"])],
                "pk_attr": "id",
                "table_description": "An answer that was replaced: the first of a question has number 1.",
            },
            bases=["Model"],
        ),
        ops.CreateModel(
            name="StaffRow",
            fields=[
                ("user", fields.CharField(primary_key=True, unique=True, db_index=True, max_length=128)),
                ("told_until", fields.DatetimeField(auto_now=False, auto_now_add=False)),
                ("issued_at", fields.FloatField(null=True)),
            ],
            options={
                "table": "pushsse_staff",
                "app": "pushsse",
                "indexes": [Index(fields=["told_until"])],
                "pk_attr": "user",
                "table_description": "A member of staff, and until when he is told what waits.",
            },
            bases=["Model"],
        ),
        ops.AddField("QuestionRow", "answer_piece", fields.IntField(db_default=0)),
        ops.AddField("QuestionRow", "answer_attempt", fields.IntField(db_default=0)),
        ops.AddField("QuestionRow", "parts", _json()),
        ops.AddField("QuestionRow", "usage", _json()),
        ops.AddField("QuestionRow", "regenerations", fields.IntField(db_default=0)),
        ops.AddField("QuestionRow", "first_attempt", fields.IntField(db_default=1)),
        ops.AddField("QuestionRow", "rating", fields.CharField(db_default="", max_length=8)),
        ops.AddField("QuestionRow", "rating_comment", fields.TextField(db_default="", unique=False)),
        ops.AddField(
            "QuestionRow", "rated_at", fields.DatetimeField(null=True, auto_now=False, auto_now_add=False)
        ),
        ops.AddField("QuestionRow", "idempotency_digest", fields.CharField(db_default="", max_length=64)),
        # The conversations that there are. One begun meanwhile by a node of the version before gets its row
        # with its next question.
        ops.RunSQL(
            """
            INSERT INTO pushsse_conversation (id, "user", title, newest, created_at)
            SELECT q.conversation, q."user", substr(q.text, 1, 80), c.newest, q.created_at
              FROM pushsse_question q
              JOIN (SELECT min(id) AS first, max(id) AS newest FROM pushsse_question GROUP BY conversation) c
                ON q.id = c.first""",
            ops.RunSQL.noop,
        ),
    ]
