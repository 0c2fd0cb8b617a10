"""Tortoise's configuration for a database URL. Used by `database`, and by Tortoise's command line."""

from typing import Any

from tortoise.backends.base.config_generator import expand_db_url
from tortoise.exceptions import ConfigurationError

from pushsse.database.postgres_url import credentials
from pushsse.errors import SettingsError
from pushsse.logs import shown

APP = "pushsse"


async def _keep(_connection: object) -> None:
    """Nothing to put back: no session leaves settings behind, and asyncpg's reset is a round trip."""


def configuration(url: str, *, pool_size: int = 8, timeout_s: float = 1.5) -> dict[str, Any]:
    """Tortoise's configuration for a URL. Raises SettingsError."""
    scheme = url.partition(":")[0].lower()
    # Tortoise keeps prepared SQL per name of a connection, so each kind of database has a name of its own.
    if scheme in ("postgres", "postgresql", "asyncpg"):
        name = "asyncpg"
        # No connection until the first query: a node starts while its database is away.
        defaults = {"minsize": 0, "maxsize": pool_size, "timeout": timeout_s, "application_name": APP}
        own = {"reset": _keep}
        connection = {"engine": "tortoise.backends.asyncpg", "credentials": defaults | credentials(url) | own}
    else:
        name, connection = "sqlite", _sqlite(url, timeout_s=timeout_s)
    models = ["pushsse.preferences.models", "pushsse.questions.models", "pushsse.database.witness"]
    app = {"models": models, "default_connection": name, "migrations": "pushsse.migrations"}
    return {"connections": {name: connection}, "apps": {APP: app}}


def _sqlite(url: str, *, timeout_s: float) -> dict[str, Any]:
    try:
        connection = expand_db_url(url)
    except (ConfigurationError, ValueError) as error:
        raise SettingsError(f"PUSHSSE_DATABASE_URL: {error}") from None
    if not connection["engine"].endswith(".sqlite"):
        raise SettingsError(f"PUSHSSE_DATABASE_URL: {shown(url)} is neither SQLite nor PostgreSQL")
    # Less than a query's limit, so that a locked file is an error and not a thread that is stuck.
    connection["credentials"].setdefault("busy_timeout", int(timeout_s * 600))
    return connection


# For Tortoise's command line: `tortoise -c pushsse.database.TORTOISE makemigrations`.
TORTOISE = configuration("sqlite://:memory:")
