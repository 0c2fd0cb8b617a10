"""For whoever runs the service: `doctor`, `migrate`, `token` and `outbox sql`.

`doctor` tries each dependency that is configured and says what it found, what weighs most first, with what
to do: each check yields Findings, a fault makes the exit status 1, and nothing is changed anywhere. `migrate`
brings the database's tables to this version. `token` signs a JWT with this machine's PUSHSSE_JWT_SECRET
(HS256). `outbox sql` prints the table that an application writes into, as SQL for psql or a migration.
"""

import asyncio
import logging
import os
import resource
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import click
import redis.asyncio as redis
from redis.exceptions import NoPermissionError, RedisError

from pushsse.api.identity import SCOPE_PREFIX, SCOPES
from pushsse.api.identity.remote import KeyServer, Remote, RemoteUnavailable
from pushsse.api.identity.tokens import SECRET_BYTES, signed
from pushsse.backplane.redis.commands import probe
from pushsse.cli import BadSetting, Failed, one_line, read_settings, say, say_json, with_settings
from pushsse.cli.serve import base_url, internal_url
from pushsse.cli.terminal import Style, busy, is_terminal, print_grid, print_line
from pushsse.database import Database
from pushsse.errors import DatabaseUnavailable, SettingsError, Unavailable
from pushsse.event import is_user
from pushsse.intake import topics_of
from pushsse.intake.outbox.tables import OutboxTables
from pushsse.intake.outbox.tables import sql as sql_of
from pushsse.kafka import configurations, existing_topics
from pushsse.kafka.dead_letters import about_dead_letters
from pushsse.logs import safe_url
from pushsse.metrics import Metrics
from pushsse.questions.answerers import made
from pushsse.settings import (
    PREFIX,
    AnswererSetting,
    OutboxSource,
    Settings,
    is_loopback,
    seconds,
    unknown,
    variable,
)

_REDIS_S = 3.0
_CHECK_S = 20.0
_FILES = 4096
_OLDEST_REDIS = 7


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    part: str
    verdict: Literal["ok", "warning", "fault"]
    text: str


Check = Callable[[Settings], AsyncIterator[Finding]]
# By weight.
_STYLES: Mapping[str, Style] = {"fault": "fault", "warning": "warning", "ok": "good"}
_as_json = click.option("--json", "as_json", is_flag=True, help="as JSON, a line each")


@click.command()
@_as_json
@with_settings()
def doctor(config: Path | None, as_json: bool, **options: object) -> None:
    """Try each dependency and say what is wrong, what weighs most first."""
    settings = read_settings(config, options)
    # What the libraries log, the findings say.
    logging.disable()
    found = asyncio.run(_examine(settings))
    weights = list(_STYLES)
    found.sort(key=lambda finding: weights.index(finding.verdict))
    if as_json:
        for finding in found:
            say_json(one_line(asdict(finding)))
    else:
        _print(found)
    sys.exit(1 if any(finding.verdict == "fault" for finding in found) else 0)


async def _examine(settings: Settings) -> list[Finding]:
    found: list[Finding] = []
    for part, check in _CHECKS.items():
        try:
            with busy(f"trying: {part}"):
                async with asyncio.timeout(_CHECK_S):
                    found += [finding async for finding in check(settings)]
        except SettingsError as error:
            raise BadSetting(str(error)) from None
        except TimeoutError:
            found.append(Finding(part, "fault", f"no answer within {_CHECK_S:.0f} s"))
    return found


def _print(found: Sequence[Finding]) -> None:
    if is_terminal():
        print_grid(
            [((each.verdict, _STYLES[each.verdict]), (each.part, "bold"), each.text) for each in found]
        )
    else:
        for each in found:
            say(f"{each.verdict:<8}{each.part:<10}{each.text}")
    counts = Counter(each.verdict for each in found)
    wrong = [
        f"{counts[each]} {each}{'s' * (counts[each] > 1)}" for each in ("fault", "warning") if counts[each]
    ]
    print_line((", ".join(wrong), "bold") if wrong else ("nothing is wrong", "good"), err=True)


async def _settings(settings: Settings) -> AsyncIterator[Finding]:
    unused = unknown(os.environ)
    for line in unused:
        yield Finding("settings", "warning", line)
    if not unused:
        yield Finding("settings", "ok", f"every {PREFIX} variable is a setting")


async def _database(settings: Settings) -> AsyncIterator[Finding]:
    url = settings.database_url
    where = safe_url(url)
    try:
        async with Database(url, timeout_s=5.0) as database:
            await database.check()
            pending = await database.pending_migrations()
            faults = [] if pending else await database.faults()
    except DatabaseUnavailable as error:
        look = "see whether PUSHSSE_DATABASE_URL is right" + (
            "" if settings.is_sqlite else ", and it runs there"
        )
        yield Finding("database", "fault", f"{where}: {error}: {look}")
        return
    if pending and not settings.is_sqlite:
        yield Finding("database", "fault", f"{where} lacks {', '.join(pending)}: run `pushsse migrate`")
    elif pending:
        yield Finding("database", "ok", f"{where}: `pushsse serve` will apply {', '.join(pending)}")
    for fault in faults:
        yield Finding("database", "fault", f"{where} {fault}")
    if not pending and not faults:
        pooled = "; through a pooler, so no statement is kept prepared" if database.pooled else ""
        yield Finding("database", "ok", f"{where} answers, can be written, and is up to date{pooled}")


async def _redis(settings: Settings) -> AsyncIterator[Finding]:
    if not settings.redis_url:
        yield Finding("redis", "ok", "not set: one process alone, with the embedded log")
        return
    where = safe_url(settings.redis_url)
    if missing := await probe(settings.redis_url, settings.redis_prefix):
        yield Finding("redis", "fault", f"{where}: {missing}")
        return
    try:
        async with redis.Redis.from_url(
            settings.redis_url,
            socket_timeout=_REDIS_S,
            socket_connect_timeout=_REDIS_S,
            decode_responses=True,
        ) as client:
            found: Mapping[str, object] = await client.info()
    except NoPermissionError:
        text = f"{where} works; INFO isn't allowed, so look yourself: version 7 or newer, noeviction"
        yield Finding("redis", "warning", text)
        return
    except (RedisError, OSError) as error:
        yield Finding("redis", "fault", f"{where}: {error}")
        return
    for finding in _about_redis(found, where):
        yield finding


def _about_redis(found: Mapping[str, object], where: str) -> list[Finding]:
    version = str(found.get("redis_version", "0"))
    findings = []
    if int(version.partition(".")[0]) < _OLDEST_REDIS:
        findings.append(Finding("redis", "fault", f"{where} is version {version}: it has to be 7 or newer"))
    policy = found.get("maxmemory_policy")
    if policy != "noeviction":
        text = f"{where} has maxmemory-policy {policy}: set it to noeviction, or logs vanish under load"
        findings.append(Finding("redis", "fault", text))
    if str(found.get("aof_enabled")) != "1":
        text = f"{where} has no append-only file: a restart forgets the logs; set appendonly yes"
        findings.append(Finding("redis", "warning", text))
    return findings or [
        Finding("redis", "ok", f"{where} answers, version {version}, noeviction, append-only")
    ]


async def _kafka(settings: Settings) -> AsyncIterator[Finding]:
    if not settings.kafka_bootstrap:
        yield Finding("kafka", "ok", "not set: POST /v1/events is the intake")
        return
    where = safe_url(settings.kafka_bootstrap)
    try:
        there = await existing_topics(settings)
    except OSError as error:
        text = f"{where}: {error}: see whether it runs there, and whether PUSHSSE_KAFKA_BOOTSTRAP is right"
        yield Finding("kafka", "fault", text)
        return
    yield Finding("kafka", "ok", f"{where} answers")
    read = topics_of(settings)
    found = sorted(read.among(there)) or [settings.kafka_topic]
    if not settings.kafka:
        found = [settings.kafka_topic]
    for topic in read.missing(there):
        if settings.kafka:
            yield Finding("kafka", "warning", f"the topic {topic} isn't there yet, or may not be read")
    wanted = [*found, *sorted({read.dead_letters_of(topic) for topic in found})]
    if settings.asks_kafka:
        wanted += [settings.questions_topic, settings.answers_topic]
    if settings.outcomes != "off":
        wanted.append(settings.outcomes_topic)
    for topic in wanted:
        if topic not in there:
            text = f"the topic {topic} isn't there, or may not be read: make it"
            yield Finding("kafka", "fault", text)
        else:
            yield Finding("kafka", "ok", f"the topic {topic} has {there[topic]} partitions")
    dead = sorted({read.dead_letters_of(topic) for topic in found} & there.keys())
    try:
        set_to = await configurations(settings, dead) if dead else {}
    except OSError as error:
        yield Finding("kafka", "warning", f"the settings of {', '.join(dead)} can't be asked: {error}")
        return
    for dlq_topic in dead:
        for line in about_dead_letters(set_to.get(dlq_topic, {}), dlq_topic):
            yield Finding("kafka", "warning", line)


async def _outboxes(settings: Settings) -> AsyncIterator[Finding]:
    for source in settings.outbox:
        url = source.database_url or settings.database_url
        where = f"{source.table} in {safe_url(url)}"
        tables = OutboxTables(source, url)
        try:
            async with tables.database:
                await tables.database.check()
                faults = await tables.faults()
                triggered = not faults and await tables.is_triggered()
                lacks = [] if faults else await tables.lacks()
                pooled = tables.database.pooled
                waiting = None if faults else await tables.waiting()
                dead = 0 if faults else await tables.dead()
        except DatabaseUnavailable as error:
            yield Finding("outbox", "fault", f"{where}: {error}")
            continue
        for fault in faults:
            yield Finding("outbox", "fault", f"{where}: {fault}")
        if waiting is None:
            continue
        if not triggered:
            text = (
                f"{where}: no trigger tells of new rows, so they wait for up to {source.poll_s:g} s (poll_s)"
            )
            yield Finding("outbox", "warning", f"{text}; `pushsse outbox sql` has it")
        if lacks:
            text = f"{where}: an older release made it, without {' and '.join(lacks)}"
            yield Finding(
                "outbox", "warning", f"{text}; `pushsse outbox sql --table {source.table} | psql …` adds them"
            )
        if pooled:
            text = (
                f"{where}: through a pooler; in transaction mode it passes no notification on, and new rows"
            )
            yield Finding("outbox", "warning", f"{text} wait for up to {source.poll_s:g} s (poll_s)")
        if dead:
            text = f"{where}: {dead} rows are dead: see their column error, and mend or delete them"
            yield Finding("outbox", "warning", text)
        text = f"{where}: {waiting.depth} rows wait, the oldest for {waiting.lag_s:.0f} s"
        yield Finding("outbox", "ok", text)


async def _answerers(settings: Settings) -> AsyncIterator[Finding]:
    if not settings.answerers:
        yield Finding("answerer", "ok", "people alone" if settings.people_answer_all else "nobody answers")
    for each in settings.answerers:
        if each.kind == "kafka":
            yield Finding("answerer", "ok", "kafka: the service behind the topics above")
        elif each.kind == "openai":
            yield await _model_server(each, settings)
        else:
            made(each, settings, Metrics())
            yield Finding("answerer", "ok", f"{safe_url(each.url)} can be used")


async def _model_server(one: AnswererSetting, settings: Settings) -> Finding:
    """What becomes of a question to a model server."""
    # Imported where it is configured, and only there.
    answerer: Any = made(one, settings, Metrics())
    where, model = safe_url(one.url), answerer.options.model
    try:
        fault = await answerer.fault()
    except Unavailable as error:
        return Finding("answerer", "fault", f"{where}: {error}")
    if fault:
        return Finding("answerer", "fault", f"{where}: {fault}")
    if answerer.key and _is_open(answerer.url):
        text = f"{where} isn't https, so whoever is on the way reads the key of {answerer.options.key_env}"
        return Finding("answerer", "warning", text)
    return Finding("answerer", "ok", f"{where} has the model {model}")


async def _identity(settings: Settings) -> AsyncIterator[Finding]:
    if settings.development:
        yield Finding("identity", "warning", "development: everybody on this machine may do everything")
        return
    for name in ("jwt_secret", "jwt_secret_old"):
        size = len(getattr(settings, name).encode())
        if 0 < size < SECRET_BYTES:
            text = f"{variable(name)} has {size} bytes: take at least {SECRET_BYTES}, at random"
            yield Finding("identity", "fault", text)
        elif size:
            yield Finding("identity", "ok", f"JWT, {variable(name)} has {size} bytes")
    if settings.jwks_url:
        yield await _keys(settings.jwks_url)
    if settings.auth_url:
        yield await _sessions(settings.auth_url)


async def _sessions(url: str) -> Finding:
    """What the server of sessions says of somebody without one."""
    async with Remote(url, at_once=1) as remote:
        try:
            status = (await remote.get()).status
        except RemoteUnavailable as error:
            return Finding("identity", "fault", f"PUSHSSE_AUTH_URL: {error}")
    if status != HTTPStatus.UNAUTHORIZED:
        text = f"PUSHSSE_AUTH_URL: {safe_url(url)} answers {status} to a request without a session, not 401"
        return Finding("identity", "fault", text)
    if _is_open(url):
        text = (
            f"PUSHSSE_AUTH_URL: {safe_url(url)} isn't https, so whoever is on the way reads people's cookies"
        )
        return Finding("identity", "warning", text)
    return Finding("identity", "ok", f"sessions, {safe_url(url)} answers 401 to a request without one")


def _is_open(url: str) -> bool:
    """Whether others can read what goes to a URL."""
    return url.lower().startswith("http:") and not is_loopback(urlsplit(url).hostname or "")


async def _keys(url: str) -> Finding:
    """What becomes of the keys of tokens."""
    async with Remote(url, at_once=1) as remote:
        try:
            keys = await KeyServer(remote).fetch()
        except RemoteUnavailable as error:
            return Finding("identity", "fault", f"PUSHSSE_JWKS_URL: {error}")
    if _is_open(url):
        text = f"PUSHSSE_JWKS_URL: {safe_url(url)} isn't https, so whoever is on the way can sign tokens"
        return Finding("identity", "warning", text)
    return Finding("identity", "ok", f"JWT, {len(keys)} keys at {safe_url(url)}: {keys}")


async def _addresses(settings: Settings) -> AsyncIterator[Finding]:
    public, internal = base_url(settings, settings.port), internal_url(settings)
    if internal is None:
        alone = "" if is_loopback(settings.host) else ", calls of administrators and /metrics too"
        yield Finding("addresses", "ok", f"{public}: everything{alone} (PUSHSSE_INTERNAL_LISTEN is not set)")
        return
    yield Finding("addresses", "ok", f"{public}: streams and people's calls")
    where = f"{internal}: calls of administrators, /metrics, /readyz"
    if (host := settings.internal_listen.rpartition(":")[0]) in ("0.0.0.0", "[::]"):  # nosec B104 # compared
        text = f"{where}, on every network of this machine ({host}): let nobody from outside reach that port"
        yield Finding("addresses", "warning", text)
    else:
        yield Finding("addresses", "ok", where)


async def _files(settings: Settings) -> AsyncIterator[Finding]:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    wanted = max(_FILES, settings.max_streams + 100)
    if limit != resource.RLIM_INFINITY and limit < wanted:
        text = f"{limit} open files, so fewer streams: raise the limit to {wanted} or more (ulimit -n)"
        yield Finding("files", "warning", text)
    else:
        yield Finding("files", "ok", f"{limit} open files, one for each stream")


_CHECKS: Mapping[str, Check] = {
    "settings": _settings,
    "database": _database,
    "redis": _redis,
    "kafka": _kafka,
    "outbox": _outboxes,
    "answerer": _answerers,
    "identity": _identity,
    "addresses": _addresses,
    "files": _files,
}


@click.command()
@_as_json
@with_settings("database_url")
def migrate(config: Path | None, as_json: bool, **options: object) -> None:
    """Apply what is pending to the database, and say what."""
    url = read_settings(config, options).database_url
    try:
        with busy("applying migrations"):
            applied = asyncio.run(_migrate(url))
    except SettingsError as error:
        raise BadSetting(str(error)) from None
    except DatabaseUnavailable as error:
        raise Failed(f"{safe_url(url)}: {error}") from None
    if as_json:
        say_json(one_line({"applied": applied}))
        return
    for name in applied:
        say(f"applied {name}")
    if not applied:
        say("nothing to do: the database is up to date")


async def _migrate(url: str) -> tuple[str, ...]:
    async with Database(url) as database:
        return await database.migrate()


@click.command()
@click.option("--user", required=True, help="whom it is for")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    help=f"what it allows, of {' '.join(SCOPES)}; several by spaces  [default: the first three]",
)
@click.option("--expires", default="1h", metavar="AGE", help="how long it holds  [default: 1h]")
@click.option("--json", "as_json", is_flag=True, help="as JSON, with the claims")
@with_settings(
    "jwt_secret", "jwks_url", "auth_url", "auth_user_claim", "jwt_audience", "jwt_issuer", "token_max_s"
)
def token(
    user: str,
    scopes: tuple[str, ...],
    expires: str,
    as_json: bool,
    config: Path | None,
    **options: object,
) -> None:
    """Make a token for --user."""
    settings = read_settings(config, options)
    if settings.lan == "on":
        raise Failed("PUSHSSE_LAN: only the running service has the key, and prints tokens when it starts")
    if not settings.jwt_secret:
        why = "the service has development identity, where --user is enough"
        if not settings.development:
            why = "whoever has the keys of PUSHSSE_JWKS_URL makes the tokens"
        raise Failed(f"PUSHSSE_JWT_SECRET isn't set: {why}")
    if len(settings.jwt_secret.encode()) < SECRET_BYTES:
        raise Failed(f"PUSHSSE_JWT_SECRET has fewer than {SECRET_BYTES} bytes")
    if not is_user(user):
        raise click.UsageError(f"--user {user!r} isn't 1–128 characters without white space")
    if (age_s := _age(expires)) > settings.token_max_s:
        most_s = settings.token_max_s
        raise click.UsageError(
            f"--expires: no token is valid for more than {most_s:.0f} s (PUSHSSE_TOKEN_MAX_S)"
        )
    text, claims = signed(settings, user, scope=" ".join(_named(scopes)), lives_s=int(age_s))
    if as_json:
        say_json(one_line({"token": text, "claims": claims}))
    else:
        click.echo(text)


def _age(text: str) -> float:
    try:
        return seconds(text)
    except ValueError as error:
        raise click.UsageError(f"--expires: {error}") from None


def _named(scopes: tuple[str, ...]) -> list[str]:
    words = [word.removeprefix(SCOPE_PREFIX) for each in scopes for word in each.replace(",", " ").split()]
    for word in words:
        if word not in SCOPES:
            raise click.UsageError(f"--scope {word!r} is none of {', '.join(SCOPES)}")
    return [SCOPE_PREFIX + word for word in words]


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
