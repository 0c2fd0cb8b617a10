"""`pushsse outbox sql`: the table that an application writes into, as SQL for psql or a migration."""

from pathlib import Path

import click

from pushsse.cli import Failed, read_settings, say, with_settings
from pushsse.intake.outbox.tables import sql as sql_of
from pushsse.settings import OutboxSource


@click.group()
def outbox() -> None:
    """Tables of PostgreSQL whose rows become events."""


@outbox.command()
@click.option("--table", help="the table, of those in the settings or any  [default: those in the settings]")
@with_settings("outbox", "database_url")
def sql(table: str | None, config: Path | None, **options: object) -> None:
    """Print the SQL of the outbox: its tables, the index, the trigger that tells nodes of new rows."""
    if table is not None:
        options["outbox"] = table
        # Any will do: nothing is opened.
        options["database_url"] = "postgres://"
    tables = [each.table for each in read_settings(config, options).outbox] or [OutboxSource().table]
    if len(tables) > 1:
        raise Failed(f"there are {len(tables)} outboxes: say which by --table: {', '.join(tables)}")
    say(sql_of(tables[0]), nl=False, lines=True)
