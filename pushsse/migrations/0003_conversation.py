# ruff: noqa: RUF012
from tortoise import migrations
from tortoise.indexes import Index
from tortoise.migrations import operations as ops


class Migration(migrations.Migration):
    dependencies = [("pushsse", "0002_witness")]

    initial = False

    operations = [
        ops.AddIndex(model_name="QuestionRow", index=Index(fields=["conversation", "id"])),
    ]
