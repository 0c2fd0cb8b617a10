"""The tables of the catalogue, and of what people have chosen.

Used by `store`, `catalogue` and `transfer`, which own the SQL.
"""

from tortoise import fields
from tortoise.models import Model


class EventType(Model):
    """One type of the catalogue, in the order in which they joined.

    `titles` and `descriptions` are JSON by language, empty where there is one text for all; the text for
    everybody else is in `title` and `description`. `place` comes before the order of joining. `revision` is
    the catalogue's with which default, mandatory or category last changed.
    """

    id = fields.BigIntField(primary_key=True)
    name = fields.CharField(max_length=64, unique=True)
    title = fields.CharField(max_length=200, db_default="")
    description = fields.TextField(db_default="")
    default_on = fields.BooleanField(db_default=True)
    mandatory = fields.BooleanField(db_default=False)
    hidden = fields.BooleanField(db_default=False)
    created_at = fields.DatetimeField(auto_now_add=True)
    titles = fields.TextField(db_default="")
    descriptions = fields.TextField(db_default="")
    category = fields.CharField(max_length=64, db_default="")
    place = fields.IntField(db_default=0)
    urgent = fields.BooleanField(db_default=False)
    from_file = fields.BooleanField(db_default=False)
    revision = fields.BigIntField(db_default=0)

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


class CategorySwitch(Model):
    """What a person chose for the types of a category that have no switch of their own."""

    id = fields.BigIntField(primary_key=True)
    user = fields.CharField(max_length=128)
    category = fields.CharField(max_length=64)
    enabled = fields.BooleanField()

    class Meta:
        table = "pushsse_category_switch"
        unique_together = (("user", "category"),)


class CatalogueRow(Model):
    """The one row of the catalogue: how often its rules have changed, and when a type was last removed."""

    id = fields.SmallIntField(primary_key=True)
    revision = fields.BigIntField(db_default=0)
    removed_revision = fields.BigIntField(db_default=0)

    class Meta:
        table = "pushsse_catalogue"


class PersonRow(Model):
    """A person who has changed a switch: the number of the last change, and of the last one in the log.

    `logged_epoch` and `logged_number` are the place in the person's shard log of the latter. `quiet` is the
    schedule of quiet hours as text.
    """

    user = fields.CharField(max_length=128, primary_key=True)
    version = fields.BigIntField(db_default=0)
    logged_version = fields.BigIntField(db_default=0)
    logged_epoch = fields.CharField(max_length=12, db_default="")
    logged_number = fields.BigIntField(db_default=0)
    quiet = fields.TextField(db_default="")

    class Meta:
        table = "pushsse_person"


class PreferenceChange(Model):
    """A change on its way into the log: written with the switches, removed once the log has it.

    `told` are the categories that changed.
    """

    id = fields.BigIntField(primary_key=True)
    user = fields.CharField(max_length=128)
    version = fields.BigIntField()
    changed: fields.JSONField[dict[str, bool]] = fields.JSONField()
    before: fields.JSONField[list[str]] = fields.JSONField()
    after: fields.JSONField[list[str]] = fields.JSONField()
    created_at = fields.DatetimeField(auto_now_add=True)
    revision = fields.BigIntField(db_default=0)
    told: fields.JSONField[dict[str, bool | None]] = fields.JSONField(null=True)
    quiet = fields.TextField(null=True)

    class Meta:
        table = "pushsse_preference_change"
        unique_together = (("user", "version"),)
