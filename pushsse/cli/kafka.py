"""What is in topics, and becomes of it: `pushsse try`, and `pushsse dead` for what couldn't be used.

`try` shows the last records of a topic beside the events that they become, or would. It reads without a
group, commits nothing and publishes nothing; it needs no configuration. What is configured for the topic is
used; for any other a table [[kafka]] is proposed, tried on the records, and on request written to a file.

`dead` looks through the dead letters of a topic, and sends them again after a fix.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import click
import msgspec

from pushsse import settings as settings_of
from pushsse.backplane import Draft
from pushsse.cli import BadSetting, Failed, one_line, read_settings, say, say_json, with_settings
from pushsse.cli.terminal import Cell, Style, busy, print_line, progress
from pushsse.errors import InvalidInput, SettingsError, Unavailable
from pushsse.intake import AllTypes, Decode, Drafter, format_of, sources_of, topics_of
from pushsse.intake.proposing import Proposal, proposal, registry_id
from pushsse.kafka import Record, TopicReader, connection, reader
from pushsse.kafka.dead_letters import RESEND_BATCH, DeadLetter, DeadLetterTopic, Sent, place_of
from pushsse.kafka.producer import Producer
from pushsse.logs import safe_url
from pushsse.metrics import Metrics
from pushsse.settings import DLQ_SUFFIX, FORMATS, KafkaMap, KafkaSource, Settings

_MOST = 1000
_SHOWN = 2_000
# The words that have a plural.
_COUNTED = frozenset({"event", "dead letter"})
_TIMEOUT_S = 20.0


Fate = Literal["event", "expired", "skipped", "dead letter"]
_STYLES: Mapping[Fate, Style] = {
    "event": "good",
    "expired": "dim",
    "skipped": "dim",
    "dead letter": "fault",
}


@dataclass(frozen=True, slots=True)
class Tried:
    """What becomes of a record: its events, or why there are none."""

    record: Record
    fate: Fate
    detail: str = ""
    drafts: Sequence[Draft] = ()

    def fates(self) -> list[Fate]:
        """Of each of its events, or of the record itself."""
        return [_fate(draft) for draft in self.drafts] or [self.fate]


@click.command(name="try")
@click.option("--kafka", metavar="HOST:PORT,…", help="the same as --kafka-bootstrap")
@click.option("--topic", "names", multiple=True, help="a topic; repeat it  [default: those of the sources]")
@click.option(
    "--limit",
    type=click.IntRange(1, _MOST),
    default=5,
    show_default=True,
    help="so many of a topic's last records",
)
@click.option("--format", "format_", help=f"try this format: {', '.join(FORMATS)}:PACKAGE:FUNCTION")
@click.option(
    "--write", type=click.Path(path_type=Path, dir_okay=False), help="write the proposed table to this file"
)
@click.option("--json", "as_json", is_flag=True, help="each record as one line of JSON")
@with_settings(
    "kafka_bootstrap",
    "kafka_topic",
    "kafka_security_protocol",
    "kafka_sasl_mechanism",
    "kafka_sasl_username",
    "kafka_sasl_password",
    "kafka_ssl_cafile",
)
def try_(
    kafka: str | None,
    names: tuple[str, ...],
    limit: int,
    format_: str | None,
    write: Path | None,
    as_json: bool,
    config: Path | None,
    **options: object,
) -> None:
    """Show what becomes of a topic's last records. Nothing is published, nothing is committed."""
    settings = _with_kafka(kafka, config, options)
    if write is not None and len(names) != 1:
        raise click.UsageError("--write needs --topic, once")
    _run(settings, _try(settings, names, _How(limit, format_, write, as_json)))


def _with_kafka(kafka: str | None, config: Path | None, options: dict[str, object]) -> Settings:
    """The settings of a command that reads topics."""
    if kafka is not None:
        options["kafka_bootstrap"] = kafka
    settings = read_settings(config, options)
    if not settings.kafka_bootstrap:
        raise click.UsageError("--kafka HOST:PORT is missing, and PUSHSSE_KAFKA_BOOTSTRAP isn't set")
    return settings


def _run(settings: Settings, work: Coroutine[None, None, None]) -> None:
    """Runs what a command does with Kafka to its end. Raises BadSetting and Failed."""
    # What the libraries log, the errors say.
    logging.disable()
    try:
        asyncio.run(work)
    except SettingsError as error:
        raise BadSetting(str(error)) from None
    except (OSError, Unavailable) as error:
        raise Failed(f"Kafka at {safe_url(settings.kafka_bootstrap)}: {error}") from None


@dataclass(frozen=True, slots=True)
class _How:
    """What `try` was asked for."""

    limit: int
    format: str | None
    write: Path | None
    as_json: bool


async def _try(settings: Settings, names: Sequence[str], how: _How) -> None:
    async with reader(connection(settings)) as kafka:
        there = await kafka.topics()
        configured = topics_of(settings)
        wanted = list(names) or sorted(configured.among(there))
        if not wanted:
            raise Failed("none of the sources' topics is there: name one by --topic")
        if not names:
            for topic in configured.missing(there):
                say(f"{topic}: isn't there yet", err=True)
        for topic in wanted:
            if topic not in there:
                listed = ", ".join(there[:20]) or "there is none"
                raise Failed(f"there is no topic {topic!r}, or it may not be read. Topics: {listed}")
        for topic in wanted:
            await _try_topic(kafka, settings, topic, how)


async def _try_topic(kafka: TopicReader, settings: Settings, topic: str, how: _How) -> None:
    with busy(f"reading {topic}"):
        records = await kafka.last(topic, how.limit)
    decode, proposed = _decode(settings, topic, records, how.format)
    if proposed is None:
        say(f"{topic}: as it is configured", err=True)
    elif how.format is not None:
        say(f"{topic}: as format {how.format} reads it", err=True)
    else:
        say(f"{topic}: no source has this topic, so this is how the table below would read it", err=True)
    counts: Counter[Fate] = Counter()
    for record in records:
        tried = _tried(record, decode)
        counts.update(tried.fates())
        _say_tried(tried, as_json=how.as_json)
    one = "record" if len(records) == 1 else "records"
    say(f"{topic}: {len(records)} {one}: {_summary(counts)}", err=True)
    if proposed is None:
        if how.write is not None:
            raise Failed(f"{topic} is configured already: there is nothing to write")
        return
    if how.as_json:
        say_json(one_line({"topic": topic, "proposed": proposed.toml()}))
    else:
        say("")
        say(proposed.toml(), nl=False, lines=True)
    if how.write is not None:
        _write(how.write, proposed, topic, settings.kafka_bootstrap)


def _summary(counts: Counter[Fate]) -> str:
    told = []
    for fate in _STYLES:
        count = counts[fate]
        if count:
            told.append(f"{count} {fate}" + ("s" if fate in _COUNTED and count > 1 else ""))
    return ", ".join(told) or "nothing to show"


def _decode(
    settings: Settings, topic: str, records: Sequence[Record], format_: str | None
) -> tuple[Decode | None, Proposal | None]:
    """What reads the records, None where that is still to be written; and a proposal without a source."""
    drafter = Drafter(types=AllTypes(), max_age_s=settings.event_max_age_s)
    metrics = Metrics()
    configured = topics_of(settings).group_of(topic) is not None
    if format_ is not None:
        kind = format_.partition(":")[0]
        if kind not in FORMATS or (kind == "python") != (":" in format_):
            raise click.UsageError(f"--format: {format_!r} is none of {', '.join(FORMATS)}:PACKAGE:FUNCTION")
        table = KafkaSource(topics=(topic,), format=format_, where="--format")
        if format_ == "mapped":
            found = proposal(topic, records)
            mapped = found.table.map if found.table is not None else None
            table = msgspec.structs.replace(table, map=mapped or KafkaMap(type=f"'{topic}'", to="'all'"))
        return format_of(table, metrics=metrics, drafter=drafter), Proposal(table)
    if configured:
        return sources_of(settings, metrics=metrics, drafter=drafter, now_ms=int), None
    proposed = proposal(topic, records)
    table = proposed.table or KafkaSource(topics=(topic,))
    if table.format == "python:PACKAGE:FUNCTION":
        return None, proposed
    return format_of(table, metrics=metrics, drafter=drafter), proposed


def _tried(record: Record, decode: Decode | None) -> Tried:
    if decode is None:
        return Tried(record, "dead letter", "no format reads this yet")
    try:
        made = decode(record, "")
    except InvalidInput as error:
        return Tried(record, "dead letter", str(error))
    except Exception as error:  # noqa: BLE001 - as the consumer has it: a dead letter
        return Tried(record, "dead letter", f"the decoder failed: {type(error).__name__}: {error}")
    if made is None:
        return Tried(record, "skipped", "it has no value" if record.value is None else "the source says so")
    drafts = made if isinstance(made, list) else [made]
    return Tried(record, "event", drafts=drafts) if drafts else Tried(record, "skipped", "it has no events")


def _fate(draft: Draft) -> Fate:
    return "expired" if draft.publication.expires_ms <= time.time() * 1000 else "event"


def _schema(record: Record) -> str:
    """What to do about a value that a schema registry's serializer wrote; empty for any other."""
    number = registry_id(record.value)
    if number is None:
        return ""
    return (
        f"the value begins with a schema registry's magic byte 0x00 and schema {number}: Avro, Protobuf or"
        " JSON Schema. Write a function for format python:PACKAGE:FUNCTION, which reads it with that"
        " registry's deserializer"
    )


def _say_tried(tried: Tried, *, as_json: bool) -> None:
    """Prints one record, and what becomes of it."""
    record, value = tried.record, tried.record.value
    if as_json:
        say_json(one_line(_members(tried)))
        return
    size = "no value" if value is None else f"{len(value)} bytes"
    key = f", key {_text(record.key)}" if record.key is not None else ""
    print_line((place_of(record), "bold"), f"  {_at(record.timestamp)}{key}, {size}")
    for name, content in record.headers:
        _say_member("header", f"{name}: {_text(content or b'')}")
    if value is not None:
        _say_member("record", _text(value))
    if schema := _schema(record):
        _say_member("schema", schema)
    for draft in tried.drafts:
        fate = _fate(draft)
        _say_member(fate, _described(draft), _STYLES[fate])
    if not tried.drafts:
        _say_member(tried.fate, tried.detail, _STYLES[tried.fate])


def _say_member(name: str, content: str, style: Style = "dim") -> None:
    label: Cell = (f"  {name:<12} ", style)
    print_line(label, content)


def _described(draft: Draft) -> str:
    publication = draft.publication
    users = publication.users
    to = "everybody" if users is None else ", ".join(users[:5])
    more = f" and {len(users) - 5} more" if users is not None and len(users) > 5 else ""
    return f"{publication.name} to {to}{more}: {_text(publication.data)}"


def _members(tried: Tried) -> dict[str, object]:
    """A record and what becomes of it, for JSON; what isn't UTF-8 is escaped."""
    record = tried.record
    events = [
        {
            "type": draft.publication.name,
            "to": "all" if draft.publication.users is None else list(draft.publication.users),
            "expired": _fate(draft) == "expired",
            "data": draft.publication.data.decode("utf-8", "backslashreplace"),
        }
        for draft in tried.drafts
    ]
    return {
        "topic": record.topic,
        "partition": record.partition,
        "offset": record.offset,
        "timestamp": _at(record.timestamp),
        "key": _decoded(record.key),
        "headers": [[name, _decoded(content)] for name, content in record.headers],
        "value": _decoded(record.value),
        "fate": tried.fate.replace(" ", "_"),
        "detail": tried.detail,
        "schema": registry_id(record.value),
        "events": events,
    }


def _decoded(content: bytes | None) -> str | None:
    return None if content is None else content.decode("utf-8", "backslashreplace")


def _text(content: bytes) -> str:
    """Bytes for people: as text where they are one, and not all of many."""
    text = content[:_SHOWN].decode("utf-8", "backslashreplace")
    if not text.isprintable():
        text = "".join(
            each if each.isprintable() else each.encode("unicode_escape").decode() for each in text
        )
    return text + ("…" if len(content) > _SHOWN else "")


def _at(timestamp_ms: int) -> str:
    try:
        return datetime.fromtimestamp(timestamp_ms / 1000, UTC).isoformat(timespec="milliseconds")
    except (OverflowError, ValueError, OSError):
        return f"timestamp {timestamp_ms}"


def _write(file: Path, proposed: Proposal, topic: str, bootstrap: str) -> None:
    """Writes the table to a new file, or to the end of one that is there. Raises Failed."""
    if proposed.table is None:
        raise Failed("there is nothing to write: no table could be proposed")
    text = proposed.toml()
    try:
        if file.exists():
            before = file.read_text(encoding="utf-8-sig")
            text = f"{before.rstrip()}\n\n{text}" if before.strip() else text
        else:
            text = f'kafka_bootstrap = "{bootstrap}"\n\n{text}'
        # As `serve` would read it, before anything is written: the topic may be there already.
        with_it = file.with_name(f"{file.name}.new")
        with_it.write_text(text, encoding="utf-8")
        try:
            settings_of.load({"PUSHSSE_KAFKA_BOOTSTRAP": bootstrap}, file=with_it)
        except SettingsError as error:
            with_it.unlink()
            raise Failed(
                f"{file} isn't changed: with the table for {topic} it can't be used: {error}"
            ) from None
        with_it.replace(file)
    except OSError as error:
        raise Failed(f"{file} can't be written: {error.strerror}") from None
    say(f"written to {file}", err=True)


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which letters."""

    topic: str
    limit: int
    partition: int | None
    offset: int | None
    as_json: bool


@click.command()
@click.option("--kafka", metavar="HOST:PORT,…", help="the same as --kafka-bootstrap")
@click.option("--topic", required=True, help="the topic whose records they are, or a dead-letter topic")
@click.option(
    "--limit", type=click.IntRange(1), default=None, help="so many letters  [default: 20, or all with --send]"
)
@click.option(
    "--partition", type=click.IntRange(0), default=None, help="of this partition of the dead-letter topic"
)
@click.option("--offset", type=click.IntRange(0), default=None, help="from this offset on; needs --partition")
@click.option("--send", is_flag=True, help="send them again to the topic that they come from")
@click.option("--json", "as_json", is_flag=True, help="each letter as one line of JSON")
@with_settings(
    "kafka_bootstrap",
    "kafka_dlq_topic",
    "kafka_group",
    "kafka_security_protocol",
    "kafka_sasl_mechanism",
    "kafka_sasl_username",
    "kafka_sasl_password",
    "kafka_ssl_cafile",
)
def dead(
    kafka: str | None,
    topic: str,
    limit: int | None,
    partition: int | None,
    offset: int | None,
    *,
    send: bool,
    as_json: bool,
    config: Path | None,
    **options: object,
) -> None:
    """Look through the dead letters of a topic; with --send, send them again after a fix."""
    settings = _with_kafka(kafka, config, options)
    if offset is not None and partition is None:
        raise click.UsageError("--offset needs --partition")
    if limit is None:
        limit = 20 if not send else 1_000_000_000
    _run(settings, _dead(settings, Wanted(topic, limit, partition, offset, as_json), send=send))


async def _dead(settings: Settings, wanted: Wanted, *, send: bool) -> None:
    is_theirs = wanted.topic.endswith(DLQ_SUFFIX) or wanted.topic == settings.kafka_dlq_topic
    topic = wanted.topic if is_theirs else settings.dlq_topic_of(wanted.topic)
    where = connection(settings)
    async with reader(where) as kafka:
        if topic not in await kafka.topics():
            raise Failed(
                f"there is no topic {topic!r}, or it may not be read: no record of it was ever a dead letter"
            )
        letters = DeadLetterTopic(
            where,
            kafka,
            topic,
            group=f"{settings.kafka_group}.dead",
            source=None if is_theirs else wanted.topic,
        )
        sent = await letters.sent()
        if wanted.partition is not None and wanted.partition not in sent:
            raise Failed(f"{topic} has no partition {wanted.partition}, it has {len(sent)}")
        if send:
            await _send_letters(letters, sent, wanted, Producer(where, timeout_s=_TIMEOUT_S))
        else:
            await _list_letters(letters, sent, wanted)


async def _list_letters(letters: DeadLetterTopic, sent: dict[int, Sent], wanted: Wanted) -> None:
    count = 0
    async for letter in letters.letters(sent, partition=wanted.partition, offset=wanted.offset):
        if count == wanted.limit:
            say(f"{letters.topic}: there are more; --limit shows them", err=True)
            break
        count += 1
        _show_letter(letter, as_json=wanted.as_json)
    say(f"{letters.topic}: {count} dead letters that weren't sent again", err=True)


def _show_letter(letter: DeadLetter, *, as_json: bool) -> None:
    record = letter.record
    size = len(record.value or b"")
    if as_json:
        members = {
            "topic": record.topic,
            "partition": record.partition,
            "offset": record.offset,
            "place": letter.place,
            "bytes": size,
            "can_be_sent": letter.can_be_sent,
            "error": letter.error,
        }
        say_json(one_line(members))
        return
    cut = ", cut: it can't be sent again" if letter.truncated else ""
    place = f"{record.topic}-{record.partition}-{record.offset}"
    print_line((place, "bold"), f"  {letter.place}, {size} bytes{cut}")
    print_line(("  " + (letter.error or "without a reason"), "warning"))


async def _send_letters(
    letters: DeadLetterTopic, sent: dict[int, Sent], wanted: Wanted, producer: Producer
) -> None:
    count = left = 0
    batch: list[DeadLetter] = []

    async def send() -> None:
        nonlocal count
        await letters.send(batch, sent, producer)
        count += len(batch)
        advance(len(batch))
        batch.clear()

    try:
        async with producer:
            with progress("sent again: letters", prints=True) as advance:
                async for letter in letters.letters(sent, partition=wanted.partition, offset=wanted.offset):
                    if count + len(batch) == wanted.limit:
                        break
                    if not letter.can_be_sent:
                        left += 1
                        _show_letter(letter, as_json=wanted.as_json)
                        continue
                    if batch and _is_full(batch, letter):
                        await send()
                    batch.append(letter)
                if batch:
                    await send()
    finally:
        more = f", {left} can't be" if left else ""
        say(f"{letters.topic}: {count} dead letters were sent again{more}", err=True)


def _is_full(batch: Sequence[DeadLetter], letter: DeadLetter) -> bool:
    """Whether a batch goes before this letter: it has as many as one may, or those of another partition."""
    return len(batch) == RESEND_BATCH or batch[0].record.partition != letter.record.partition
