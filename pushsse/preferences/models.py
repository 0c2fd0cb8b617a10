"""The tables of the catalogue and the switches. Read and written by `store` alone.

A table's docstring becomes its comment in the database: no semicolon there, Tortoise splits SQL at each.
"""

from tortoise import fields
from tortoise.models import Model


class EventType(Model):
    """One type of the catalogue, in the order in which they joined."""

    id = fields.BigIntField(primary_key=True)
    name = fields.CharField(max_length=64, unique=True)
    title = fields.CharField(max_length=200, db_default="")
    description = fields.TextField(db_default="")
    default_on = fields.BooleanField(db_default=True)
    mandatory = fields.BooleanField(db_default=False)
    hidden = fields.BooleanField(db_default=False)
    created_at = fields.DatetimeField(auto_now_add=True)

    class Meta:
        table = "pushsse_event_type"


class Switch(Model):
    """What a person chose for one type. Without a row the type's default holds."""

    id = fields.BigIntField(primary_key=True)
    user = fields.CharField(max_length=128)
    type = fields.CharField(max_length=64)
    enabled = fields.BooleanField()

    class Meta:
        table = "pushsse_switch"
        unique_together = (("user", "type"),)


class Person(Model):
    """A person who has changed a switch: the number of the last change, and of the last one in the log.

    `logged_epoch` and `logged_number` are the place in the person's shard log of the latter.
    """

    user = fields.CharField(max_length=128, primary_key=True)
    version = fields.BigIntField(db_default=0)
    logged_version = fields.BigIntField(db_default=0)
    logged_epoch = fields.CharField(max_length=12, db_default="")
    logged_number = fields.BigIntField(db_default=0)

    class Meta:
        table = "pushsse_person"


class PreferenceChange(Model):
    """A change on its way into the log: written with the switches, removed once the log has it."""

    id = fields.BigIntField(primary_key=True)
    user = fields.CharField(max_length=128)
    version = fields.BigIntField()
    changed: fields.JSONField[dict[str, bool]] = fields.JSONField()
    before: fields.JSONField[list[str]] = fields.JSONField()
    after: fields.JSONField[list[str]] = fields.JSONField()
    created_at = fields.DatetimeField(auto_now_add=True)

    class Meta:
        table = "pushsse_preference_change"
        unique_together = (("user", "version"),)
