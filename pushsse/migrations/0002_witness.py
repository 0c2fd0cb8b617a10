# ruff: noqa: RUF012
from tortoise import fields, migrations
from tortoise.migrations import operations as ops


class Migration(migrations.Migration):
    dependencies = [("pushsse", "0001_initial")]

    initial = False

    operations = [
        ops.CreateModel(
            name="WitnessRow",
            fields=[
                ("node", fields.CharField(primary_key=True, unique=True, db_index=True, max_length=255)),
                ("heard_at", fields.DatetimeField(auto_now=False, auto_now_add=False)),
            ],
            options={
                "table": "pushsse_witness",
                "app": "pushsse",
                "pk_attr": "node",
                "table_description": "A node that heard the backplane, and when it last did.",
            },
            bases=["Model"],
        ),
    ]
