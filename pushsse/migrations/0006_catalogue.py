# ruff: noqa: E501, RUF012
import functools
from json import dumps, loads

from tortoise import fields, migrations
from tortoise.migrations import operations as ops


class Migration(migrations.Migration):
    dependencies = [("pushsse", "0005_conversations")]

    initial = False

    operations = [
        ops.CreateModel(
            name="CatalogueRow",
            fields=[
                ("id", fields.SmallIntField(primary_key=True, unique=True, db_index=True)),
                ("revision", fields.BigIntField(db_default=0)),
                ("removed_revision", fields.BigIntField(db_default=0)),
            ],
            options={
                "table": "pushsse_catalogue",
                "app": "pushsse",
                "pk_attr": "id",
                "table_description": "The one row of the catalogue: the revision of its rules, and that of the last removal of a type.",
            },
            bases=["Model"],
        ),
        ops.CreateModel(
            name="CategorySwitch",
            fields=[
                ("id", fields.BigIntField(generated=True, primary_key=True, unique=True, db_index=True)),
                ("user", fields.CharField(max_length=128)),
                ("category", fields.CharField(max_length=64)),
                ("enabled", fields.BooleanField()),
            ],
            options={
                "table": "pushsse_category_switch",
                "app": "pushsse",
                "unique_together": (("user", "category"),),
                "pk_attr": "id",
                "table_description": "What a person chose for the types of a category that have no switch of their own.",
            },
            bases=["Model"],
        ),
        ops.AddField("EventType", "titles", fields.TextField(db_default="", unique=False)),
        ops.AddField("EventType", "descriptions", fields.TextField(db_default="", unique=False)),
        ops.AddField("EventType", "category", fields.CharField(db_default="", max_length=64)),
        ops.AddField("EventType", "place", fields.IntField(db_default=0)),
        ops.AddField("EventType", "urgent", fields.BooleanField(db_default=False)),
        ops.AddField("EventType", "from_file", fields.BooleanField(db_default=False)),
        ops.AddField("EventType", "revision", fields.BigIntField(db_default=0)),
        ops.AddField("PersonRow", "quiet", fields.TextField(db_default="", unique=False)),
        ops.AddField("PreferenceChange", "revision", fields.BigIntField(db_default=0)),
        ops.AddField(
            "PreferenceChange",
            "told",
            fields.JSONField(
                null=True, encoder=functools.partial(dumps, separators=(",", ":")), decoder=loads
            ),
        ),
        ops.AddField("PreferenceChange", "quiet", fields.TextField(null=True, unique=False)),
    ]
