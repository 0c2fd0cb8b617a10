# ruff: noqa: E501, RUF012
from tortoise import fields, migrations
from tortoise.indexes import Index
from tortoise.migrations import operations as ops


class Migration(migrations.Migration):
    dependencies = [("pushsse", "0003_conversation")]

    initial = False

    operations = [
        ops.CreateModel(
            name="KickRow",
            fields=[
                ("user", fields.CharField(primary_key=True, unique=True, db_index=True, max_length=128)),
                ("kicked_at", fields.BigIntField()),
            ],
            options={
                "table": "pushsse_kick",
                "app": "pushsse",
                "indexes": [Index(fields=["kicked_at", "user"])],
                "pk_attr": "user",
                "table_description": "A person who was kicked, or the digest of one who was forgotten, and the second of the newest kick.",
            },
            bases=["Model"],
        ),
    ]
