# ruff: noqa: E501, RUF012
import functools
from json import dumps, loads

from tortoise import fields, migrations
from tortoise.indexes import Index
from tortoise.migrations import operations as ops


class Migration(migrations.Migration):
    initial = True

    operations = [
        ops.CreateModel(
            name="EventType",
            fields=[
                ("id", fields.BigIntField(generated=True, primary_key=True, unique=True, db_index=True)),
                ("name", fields.CharField(unique=True, max_length=64)),
                ("title", fields.CharField(db_default="", max_length=200)),
                ("description", fields.TextField(db_default="", unique=False)),
                ("default_on", fields.BooleanField(db_default=True)),
                ("mandatory", fields.BooleanField(db_default=False)),
                ("hidden", fields.BooleanField(db_default=False)),
                ("created_at", fields.DatetimeField(auto_now=False, auto_now_add=True)),
            ],
            options={
                "table": "pushsse_event_type",
                "app": "pushsse",
                "pk_attr": "id",
                "table_description": "One type of the catalogue, in the order in which they joined.",
            },
            bases=["Model"],
        ),
        ops.CreateModel(
            name="PersonRow",
            fields=[
                ("user", fields.CharField(primary_key=True, unique=True, db_index=True, max_length=128)),
                ("version", fields.BigIntField(db_default=0)),
                ("logged_version", fields.BigIntField(db_default=0)),
                ("logged_epoch", fields.CharField(db_default="", max_length=12)),
                ("logged_number", fields.BigIntField(db_default=0)),
            ],
            options={
                "table": "pushsse_person",
                "app": "pushsse",
                "pk_attr": "user",
                "table_description": "A person who has changed a switch: the number of the last change, and of the last one in the log.",
            },
            bases=["Model"],
        ),
        ops.CreateModel(
            name="PreferenceChange",
            fields=[
                ("id", fields.BigIntField(generated=True, primary_key=True, unique=True, db_index=True)),
                ("user", fields.CharField(max_length=128)),
                ("version", fields.BigIntField()),
                (
                    "changed",
                    fields.JSONField(encoder=functools.partial(dumps, separators=(",", ":")), decoder=loads),
                ),
                (
                    "before",
                    fields.JSONField(encoder=functools.partial(dumps, separators=(",", ":")), decoder=loads),
                ),
                (
                    "after",
                    fields.JSONField(encoder=functools.partial(dumps, separators=(",", ":")), decoder=loads),
                ),
                ("created_at", fields.DatetimeField(auto_now=False, auto_now_add=True)),
            ],
            options={
                "table": "pushsse_preference_change",
                "app": "pushsse",
                "unique_together": (("user", "version"),),
                "pk_attr": "id",
                "table_description": "A change on its way into the log: written with the switches, removed once the log has it.",
            },
            bases=["Model"],
        ),
        ops.CreateModel(
            name="QuestionRow",
            fields=[
                ("id", fields.CharField(primary_key=True, unique=True, db_index=True, max_length=26)),
                ("user", fields.CharField(max_length=128)),
                ("conversation", fields.CharField(max_length=64)),
                ("text", fields.TextField(unique=False)),
                (
                    "context",
                    fields.JSONField(
                        null=True, encoder=functools.partial(dumps, separators=(",", ":")), decoder=loads
                    ),
                ),
                ("status", fields.CharField(max_length=16)),
                ("answer", fields.TextField(db_default="", unique=False)),
                ("answer_seq", fields.IntField(db_default=0)),
                ("by_kind", fields.CharField(db_default="", max_length=8)),
                ("by_name", fields.CharField(db_default="", max_length=128)),
                (
                    "links",
                    fields.JSONField(
                        null=True, encoder=functools.partial(dumps, separators=(",", ":")), decoder=loads
                    ),
                ),
                (
                    "suggestions",
                    fields.JSONField(
                        null=True, encoder=functools.partial(dumps, separators=(",", ":")), decoder=loads
                    ),
                ),
                ("error_code", fields.CharField(db_default="", max_length=64)),
                ("error_detail", fields.TextField(db_default="", unique=False)),
                ("idempotency_key", fields.CharField(null=True, max_length=128)),
                ("owner", fields.CharField(db_default="", max_length=128)),
                ("attempts", fields.IntField(db_default=0)),
                ("lease_until", fields.DatetimeField(null=True, auto_now=False, auto_now_add=False)),
                ("announce_by", fields.DatetimeField(null=True, auto_now=False, auto_now_add=False)),
                ("created_at", fields.DatetimeField(auto_now=False, auto_now_add=False)),
                ("updated_at", fields.DatetimeField(auto_now=False, auto_now_add=False)),
                ("deadline_at", fields.DatetimeField(auto_now=False, auto_now_add=False)),
            ],
            options={
                "table": "pushsse_question",
                "app": "pushsse",
                "unique_together": (("user", "idempotency_key"),),
                "indexes": [
                    Index(fields=["user", "id"]),
                    Index(fields=["status", "deadline_at"]),
                    Index(fields=["announce_by"]),
                ],
                "pk_attr": "id",
                "table_description": "One question with its answer so far. The id is a ULID, so ids sort by time.",
            },
            bases=["Model"],
        ),
        ops.CreateModel(
            name="Switch",
            fields=[
                ("id", fields.BigIntField(generated=True, primary_key=True, unique=True, db_index=True)),
                ("user", fields.CharField(max_length=128)),
                ("type", fields.CharField(max_length=64)),
                ("enabled", fields.BooleanField()),
            ],
            options={
                "table": "pushsse_switch",
                "app": "pushsse",
                "unique_together": (("user", "type"),),
                "pk_attr": "id",
                "table_description": "What a person chose for one type. Without a row the type's default holds.",
            },
            bases=["Model"],
        ),
    ]
