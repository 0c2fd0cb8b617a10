"""`pushsse dead`: looks through the dead letters of a topic, and sends them again after a fix."""

import asyncio
import logging
from dataclasses import dataclass
from pathlib import Path

import click

from pushsse.cli import BadSetting, Failed, read_settings, say, with_settings
from pushsse.errors import SettingsError, Unavailable
from pushsse.kafka import connection
from pushsse.kafka.dead_letters import RESEND_BATCH, DeadLetter, DeadLetterTopic, Sent
from pushsse.kafka.producer import Producer
from pushsse.kafka.reading import reader
from pushsse.logs import shown
from pushsse.settings import DLQ_SUFFIX, Settings

_TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which letters."""

    topic: str
    limit: int
    partition: int | None
    offset: int | None


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
    config: Path | None,
    **options: object,
) -> None:
    """Look through the dead letters of a topic; with --send, send them again after a fix."""
    if kafka is not None:
        options["kafka_bootstrap"] = kafka
    settings = read_settings(config, options)
    if not settings.kafka_bootstrap:
        raise click.UsageError("--kafka HOST:PORT is missing, and PUSHSSE_KAFKA_BOOTSTRAP isn't set")
    if offset is not None and partition is None:
        raise click.UsageError("--offset needs --partition")
    if limit is None:
        limit = 20 if not send else 1_000_000_000
    # What the libraries log, the errors say.
    logging.disable()
    try:
        asyncio.run(_dead(settings, Wanted(topic, limit, partition, offset), send=send))
    except SettingsError as error:
        raise BadSetting(str(error)) from None
    except (OSError, Unavailable) as error:
        raise Failed(f"Kafka at {shown(settings.kafka_bootstrap)}: {error}") from None


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
            await _send(letters, sent, wanted, Producer(where, timeout_s=_TIMEOUT_S))
        else:
            await _list(letters, sent, wanted)


async def _list(letters: DeadLetterTopic, sent: dict[int, Sent], wanted: Wanted) -> None:
    count = 0
    async for letter in letters.letters(sent, partition=wanted.partition, offset=wanted.offset):
        if count == wanted.limit:
            say(f"{letters.topic}: there are more; --limit shows them", err=True)
            break
        count += 1
        _show(letter)
    say(f"{letters.topic}: {count} dead letters that weren't sent again", err=True)


def _show(letter: DeadLetter) -> None:
    record = letter.record
    size = len(record.value or b"")
    cut = ", cut: it can't be sent again" if letter.truncated else ""
    say(f"{record.topic}-{record.partition}-{record.offset}  {letter.place}, {size} bytes{cut}")
    say(f"  {letter.error or 'without a reason'}")


async def _send(letters: DeadLetterTopic, sent: dict[int, Sent], wanted: Wanted, producer: Producer) -> None:
    count = left = 0
    batch: list[DeadLetter] = []
    try:
        async with producer:
            async for letter in letters.letters(sent, partition=wanted.partition, offset=wanted.offset):
                if count + len(batch) == wanted.limit:
                    break
                if not letter.can_be_sent:
                    left += 1
                    _show(letter)
                    continue
                if batch and (
                    len(batch) == RESEND_BATCH or batch[0].record.partition != letter.record.partition
                ):
                    await letters.send(batch, sent, producer)
                    count += len(batch)
                    batch = []
                batch.append(letter)
            if batch:
                await letters.send(batch, sent, producer)
                count += len(batch)
    finally:
        more = f", {left} can't be" if left else ""
        say(f"{letters.topic}: {count} dead letters were sent again{more}", err=True)
