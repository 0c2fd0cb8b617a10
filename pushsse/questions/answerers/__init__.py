"""The contract of an answerer, and the answerers that the settings name.

An answerer takes a question and yields its answer piece by piece, or sends it off. `answering` asks it, in
one task a question, and supervises its `run`. `build` and `pushsse doctor` have answerers made. `Several` is
what `answering` asks: the first that is sure answers. The next one is asked where one isn't sure, or can't be
reached, and has said nothing yet. Where nobody is sure, neither are they together: what the last one that had
something to say instead would say is passed on.

Deliberate: the module of an answerer is imported only where it is configured, since `openai` brings an HTTP
client with it that most nodes don't need. Errors name the setting, or the table of `pushsse.toml`.
"""

import asyncio
import difflib
import os
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable
from urllib.parse import parse_qsl

import msgspec
from msgspec import Struct

from pushsse.errors import SettingsError, Unavailable
from pushsse.kafka import connection, one_topic
from pushsse.kafka.consumer import Consumer
from pushsse.kafka.producer import Producer
from pushsse.logs import safe_url
from pushsse.metrics import Metrics
from pushsse.questions import Answered, Ending, Part, Question, StatusPart, Unanswered
from pushsse.settings import PREFIX, AnswererSetting, Option, Settings, is_web_url, seconds, variable


class Delta(Struct, frozen=True):
    """The answer grows by this text."""

    text: str


class SentOff(Struct, frozen=True):
    """The answer comes from elsewhere, through Answers; the last piece."""


class NotSure(Struct, frozen=True):
    """This answerer has no answer that it is sure of; `instead` is what is said if no other has one."""

    instead: Answered | None = None


class HandOver(Struct, frozen=True):
    """People have to answer."""

    reason: str = ""


Piece = Delta | Part | Answered | Unanswered | SentOff | NotSure | HandOver


class Answers(Protocol):
    """Takes answers that come from elsewhere, on any node. `Life` implements it."""

    async def find(self, question_id: str) -> Question | None:
        """A question as it stands; None if there is none. Raises DatabaseUnavailable."""
        ...

    async def add(
        self, question: Question, pieces: Sequence[Delta | Part], piece: int, attempt: int = 0
    ) -> bool:
        """The answer grows by some pieces; `piece` is the number of the last. Raises DatabaseUnavailable.

        `attempt` is the highest that a piece names: where it is a later one than before, the pieces begin the
        answer anew, numbered from 1.
        False if the question has changed since it was read: it is right to read it again.
        """
        ...

    async def hand_over(self, question: Question, reason: str) -> bool:
        """People answer it, and what else is asked in its conversation. Raises DatabaseUnavailable.

        False if the question has changed since it was read.
        """
        ...

    async def end(self, question_id: str, ending: Ending) -> bool:
        """The answer is there, or won't come; False if the question has ended before."""
        ...


class Answerer(Protocol):
    """Answers questions. One that sends them off may be a HearsStops, too."""

    def answer(self, question: Question) -> AsyncGenerator[Piece, None]:
        """Yields Delta and parts any number of times, then exactly one of the others, which ends it.

        A NotSure comes before any Delta: `Several` asks the next answerer then, and nobody has read anything.
        Is closed or cancelled at any point when the question is cancelled or its time is over. Raises
        Unavailable where it can't be reached, after tries that have an end; any exception makes the question
        fail.
        A question may come twice, when the node that answered it died: the answer then starts over.
        """
        ...

    async def run(self, answers: Answers) -> None:
        """What the answerer does besides, for ever; returns immediately if that is nothing."""
        ...


@runtime_checkable
class HearsStops(Protocol):
    """An answerer whose answers come from elsewhere, where somebody can be told to stop."""

    async def stop(self, question: Question, code: str) -> None:
        """A question has ended without its answer, for this reason. Raises Unavailable.

        It may not have been sent off at all, and this may come twice.
        """
        ...


# How long pieces that are all there may follow each other before others get the event loop.
_TURN_S = 0.005


@dataclass(slots=True)
class GivesWay:
    """Lets others have the event loop: an async generator whose pieces are there never waits by itself."""

    _since: float = field(default_factory=time.monotonic)

    async def give_way(self) -> None:
        """Returns at once, or after one turn of the loop where this one has taken long."""
        if time.monotonic() - self._since > _TURN_S:
            await asyncio.sleep(0)
            self._since = time.monotonic()


_MOST_PROMPT_BYTES = 256 * 1024
Options = TypeVar("Options", bound=msgspec.Struct)


@dataclass(frozen=True, slots=True)
class Configured:
    """Who answers, and the producers that have to be closed."""

    answerer: Answerer
    producers: Sequence[Producer] = ()


def configured(settings: Settings, metrics: Metrics) -> Configured:
    """All that the settings name, in their order. Raises SettingsError."""
    producer = Producer(connection(settings)) if settings.asks_kafka else None
    answerers = [made(each, settings, metrics, producer) for each in settings.answerers]
    return Configured(Several(answerers), () if producer is None else (producer,))


def made(
    one: AnswererSetting, settings: Settings, metrics: Metrics, producer: Producer | None = None
) -> Answerer:
    """One answerer. Raises SettingsError."""
    module = import_module(f"{__package__}.{one.kind}")
    answerer: Answerer
    if one.kind == "openai":
        answerer = _openai(module, one, settings, metrics)
    elif one.kind == "kafka":
        assert producer is not None
        answerer = _kafka(module, one, settings, metrics, producer)
    elif one.kind == "python":
        name, _, query = one.url.partition(":")[2].partition("?")
        answerer = module.answerer(name, one.where, _options(one, query, module.PythonOptions))
    else:
        _take_none(one)
        answerer = module.answerer(one.url.partition(":")[2], one.where)
    return answerer


def _openai(module: Any, one: AnswererSetting, settings: Settings, metrics: Metrics) -> Answerer:
    url, _, query = one.url.partition(":")[2].partition("?")
    _check_url(one.where, url)
    options = _options(one, query, module.OpenaiOptions)
    answerer: Answerer = module.OpenaiAnswerer(
        url.rstrip("/"),
        options,
        _key(one, options.key_env, settings),
        _prompt(one, options.system),
        module.tls_for(url),
        metrics,
    )
    return answerer


def _key(one: AnswererSetting, name: str, settings: Settings) -> str:
    """The key of a model server; "" without one, which servers of one's own mostly don't need."""
    own = variable("openai_key")
    if name.upper().startswith(PREFIX) and name != own:
        # Another secret of the service's, perhaps; and workers don't have these variables.
        raise SettingsError(
            f"{one.where}: key_env: {name} begins with {PREFIX}, take {own} or a name of your own"
        )
    key = (settings.openai_key if name == own else os.environ.get(name, "")).strip()
    if not key and name != own:
        raise SettingsError(f"{one.where}: key_env: the variable {name} isn't set")
    if not (key.isascii() and key.isprintable()):
        raise SettingsError(f"{one.where}: the key in {name} has characters that no header can have")
    return key


def _prompt(one: AnswererSetting, file: str) -> str:
    """The system prompt."""
    if not file:
        return ""
    try:
        if Path(file).stat().st_size > _MOST_PROMPT_BYTES:
            raise SettingsError(f"{one.where}: system: {file} has more than {_MOST_PROMPT_BYTES} bytes")
        return Path(file).read_text(encoding="utf-8-sig").strip()
    except OSError as error:
        raise SettingsError(f"{one.where}: system: {file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SettingsError(f"{one.where}: system: {file} isn't UTF-8") from None


def _kafka(
    module: Any, one: AnswererSetting, settings: Settings, metrics: Metrics, producer: Producer
) -> Answerer:
    _take_none(one)
    consumer = Consumer(
        connection(settings),
        topics=one_topic(
            settings.answers_topic,
            # An older answer can't belong to an open question.
            start=f"{max(settings.answer_timeout_s, seconds('10m')):.0f}s",
            dlq_topic=settings.answers_dlq_topic,
        ),
        group=f"{settings.group}.answers",
        metrics=metrics,
        skip_refused=settings.kafka_dlq_refused == "skip",
        pace=module.PACE,
    )
    answerer: Answerer = module.KafkaAnswerer(
        questions=producer, questions_topic=settings.questions_topic, consumer=consumer, metrics=metrics
    )
    return answerer


def _take_none(one: AnswererSetting) -> None:
    for name in one.options:
        raise SettingsError(f"{one.where}: {one.kind}: has no {name!r}")


def _options(one: AnswererSetting, query: str, kind: type[Options]) -> Options:
    """What the query of the URL and the table say together."""
    try:
        said = dict(parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query)))
    except ValueError:
        raise SettingsError(f"{one.where}: {query!r} isn't NAME=VALUE&NAME=VALUE") from None
    given: Mapping[str, Option] = {**said, **one.options}
    known = [field.name for field in msgspec.structs.fields(kind)]
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"it may have {', '.join(known)}"
            raise SettingsError(f"{one.where}: {one.kind}: has no {name!r}: {hint}")
    try:
        return msgspec.convert(dict(given), kind, strict=False)
    except msgspec.ValidationError as error:
        raise SettingsError(f"{one.where}: {error}") from None


def _check_url(where: str, url: str) -> None:
    if is_web_url(url) and "#" not in url:
        return
    if "@" in url.partition("://")[2].partition("/")[0]:
        raise SettingsError(f"{where}: {safe_url(url)!r} has a password in it: the key belongs into key_env")
    example = "openai:http://localhost:11434/v1?model=NAME"
    raise SettingsError(
        f"{where}: {safe_url(url)!r} isn't http://HOST/PATH or https://HOST/PATH, as in {example}"
    )


@dataclass(frozen=True, slots=True)
class Several:
    """One or more answerers that are one."""

    answerers: Sequence[Answerer]

    async def answer(self, question: Question) -> AsyncGenerator[Piece, None]:
        """What the first that is sure says. Raises Unavailable where one is away and no other has a word."""
        instead: Answered | None = None
        away: Unavailable | None = None
        for answerer in self.answerers:
            said = False
            try:
                async with aclosing(answerer.answer(question)) as pieces:
                    async for piece in pieces:
                        if isinstance(piece, NotSure):
                            instead = piece.instead or instead
                            break
                        # Where another goes on, nobody has to take back what a status has said.
                        said = said or not isinstance(piece, StatusPart)
                        yield piece
                    else:
                        return
            except Unavailable as error:
                if said:
                    raise
                away = error
            if said:
                break
        if away is not None and instead is None:
            raise away
        yield NotSure(instead)

    async def stop(self, question: Question, code: str) -> None:
        """Told to those whose answers come from elsewhere: one of them has it. Raises Unavailable."""
        for answerer in self.answerers:
            if isinstance(answerer, HearsStops):
                await answerer.stop(question, code)

    async def run(self, answers: Answers) -> None:
        """What they do besides."""
        try:
            async with asyncio.TaskGroup() as group:
                for answerer in self.answerers:
                    group.create_task(answerer.run(answers))
        except ExceptionGroup as failed:
            # The others were cancelled because of it.
            raise failed.exceptions[0] from None
