# ruff: noqa: E501, RUF012
from tortoise import fields, migrations
from tortoise.indexes import Index
from tortoise.migrations import operations as ops


class Migration(migrations.Migration):
    dependencies = [("pushsse", "0008_presence")]

    initial = False

    operations = [
        ops.CreateModel(
            name="SwitchedRow",
            fields=[
                ("id", fields.BigIntField(generated=True, primary_key=True, unique=True, db_index=True)),
                ("user", fields.CharField(db_default="", max_length=128)),
                ("kind", fields.CharField(max_length=16)),
                ("name", fields.CharField(max_length=64)),
                ("before", fields.CharField(db_default="", max_length=80)),
                ("value", fields.CharField(db_default="", max_length=80)),
                ("version", fields.BigIntField(db_default=0)),
                ("how", fields.CharField(db_default="", max_length=16)),
                ("who", fields.CharField(db_default="", max_length=128)),
                ("at_ms", fields.BigIntField()),
                ("until_ms", fields.BigIntField(null=True)),
            ],
            options={
                "table": "pushsse_switched",
                "app": "pushsse",
                "indexes": [
                    Index(fields=["user", "name"]),
                    Index(fields=["until_ms"]),
                    Index(fields=["who"]),
                ],
                "pk_attr": "id",
                "table_description": "A value that a switch, a category's switch or a type's rules got, and by whom.",
            },
            bases=["Model"],
        ),
    ]
