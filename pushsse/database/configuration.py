"""Tortoise's configuration for a database URL. Used by `database`, and by Tortoise's command line."""

from typing import Any

from tortoise.backends.base.config_generator import expand_db_url
from tortoise.exceptions import ConfigurationError

from pushsse.errors import SettingsError

APP = "pushsse"
_POSTGRES = frozenset(
    [
        "user",
        "password",
        "database",
        "host",
        "port",
        "ssl",
        "schema",
        "application_name",
        "minsize",
        "maxsize",
        "timeout",
        "command_timeout",
        "statement_cache_size",
        "max_inactive_connection_lifetime",
        "target_session_attrs",
    ]
)


async def _keep(_connection: object) -> None:
    """Nothing to put back: no session leaves settings behind, and asyncpg's reset is a round trip."""


async def _prepare(connection: Any) -> None:
    """A statement by itself is a transaction, too; see `_postgres_transaction`."""
    await connection.execute("SET default_transaction_isolation TO 'read committed'")


def configuration(url: str, *, pool_size: int = 8, timeout_s: float = 1.5) -> dict[str, Any]:
    """Tortoise's configuration for a URL. Raises SettingsError."""
    try:
        connection = expand_db_url(url)
    except (ConfigurationError, ValueError) as error:
        raise SettingsError(f"PUSHSSE_DATABASE_URL: {error}") from None
    credentials = connection["credentials"]
    # Tortoise keeps prepared SQL per name of a connection, so each kind of database has a name of its own.
    name = connection["engine"].rpartition(".")[2]
    if name not in ("sqlite", "asyncpg"):
        raise SettingsError(f"PUSHSSE_DATABASE_URL: {name} is neither SQLite nor PostgreSQL")
    if name == "sqlite":
        # Less than a query's limit, so that a locked file is an error and not a thread that is stuck.
        credentials.setdefault("busy_timeout", int(timeout_s * 600))
    else:
        connection["credentials"] = _postgres(credentials, pool_size=pool_size, timeout_s=timeout_s)
    models = ["pushsse.preferences.models", "pushsse.questions.models", "pushsse.database.witness"]
    app = {"models": models, "default_connection": name, "migrations": "pushsse.migrations"}
    return {"connections": {name: connection}, "apps": {APP: app}}


def _postgres(given: dict[str, Any], *, pool_size: int, timeout_s: float) -> dict[str, Any]:
    if "sslmode" in given:
        # libpq's word; asyncpg takes its values as `ssl`.
        given["ssl"] = given.pop("sslmode")
    if unknown := given.keys() - _POSTGRES:
        raise SettingsError(f"PUSHSSE_DATABASE_URL: unknown parameter {min(unknown)!r}")
    # No connection until the first query: a node starts while its database is away.
    defaults = {"minsize": 0, "maxsize": pool_size, "timeout": timeout_s, "application_name": APP}
    return defaults | given | {"reset": _keep, "init": _prepare}


# For Tortoise's command line: `tortoise -c pushsse.database.TORTOISE makemigrations`.
TORTOISE = configuration("sqlite://:memory:")
