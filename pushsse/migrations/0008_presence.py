# ruff: noqa: RUF012
from tortoise import fields, migrations
from tortoise.indexes import Index
from tortoise.migrations import operations as ops


class Migration(migrations.Migration):
    dependencies = [("pushsse", "0005_conversations")]

    initial = False

    operations = [
        ops.CreateModel(
            name="SeenRow",
            fields=[
                ("user", fields.CharField(primary_key=True, unique=True, db_index=True, max_length=128)),
                ("seen_at", fields.DatetimeField(auto_now=False, auto_now_add=False)),
            ],
            options={
                "table": "pushsse_seen",
                "app": "pushsse",
                "indexes": [Index(fields=["seen_at"])],
                "pk_attr": "user",
                "table_description": "When somebody's last stream ended.",
            },
            bases=["Model"],
        ),
    ]
