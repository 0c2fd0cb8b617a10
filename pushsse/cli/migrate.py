"""`pushsse migrate`: brings the database's tables to this version. Before nodes start."""

import asyncio
from pathlib import Path

import click

from pushsse.cli.options import BadSetting, Failed, read_settings, with_settings
from pushsse.cli.terminal import say
from pushsse.database import Database
from pushsse.errors import DatabaseUnavailable, SettingsError
from pushsse.shown import shown


@click.command()
@with_settings("database_url")
def migrate(config: Path | None, **options: object) -> None:
    """Apply what is pending to the database, and say what."""
    url = read_settings(config, options).database_url
    try:
        applied = asyncio.run(_migrate(url))
    except SettingsError as error:
        raise BadSetting(str(error)) from None
    except DatabaseUnavailable as error:
        raise Failed(f"{shown(url)}: {error}") from None
    for name in applied:
        say(f"applied {name}")
    if not applied:
        say("nothing to do: the database is up to date")


async def _migrate(url: str) -> tuple[str, ...]:
    async with Database(url) as database:
        return await database.migrate()
