"""`python:PACKAGE:FUNCTION`: an async generator of the operator's own, in the node's process.

Asked by `answering`. The function gets an `Asked` and yields text, or a dict with one of the members of
`Yielded`. Deliberate: it runs on the node's event loop, so a function that holds the loop holds up every
stream of the node; that is measured at each step, and logged. What it raises fails its question alone.
"""

import asyncio
import inspect
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar, cast

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from pushsse.errors import SettingsError
from pushsse.functions import LoopWatch, function
from pushsse.questions import (
    Answered,
    By,
    DataPart,
    Link,
    Part,
    Question,
    SourcePart,
    StatusPart,
    Turn,
    Unanswered,
)
from pushsse.questions.answerers import Answers, Delta, GivesWay, HandOver, NotSure, Piece

logger = logging.getLogger(__name__)
# A step that holds the loop for longer is logged, at most once in a while.
HELD_S = 0.1
# For what the function does when its question is cancelled.
_CLOSE_S = 5.0
T = TypeVar("T")


class Asked(Struct, frozen=True, kw_only=True):
    """What the function gets. `turns` are the conversation's last questions and answers, oldest first.

    `attempt` counts from 1: it is more where a node died while it answered, and the answer begins again.
    """

    id: str
    text: str
    user: str
    conversation: str
    context: dict[str, object] | None
    turns: tuple[Turn, ...]
    attempt: int


class NamedValue(Struct, frozen=True, forbid_unknown_fields=True):
    """A JSON value for the page, by name."""

    name: Annotated[str, Meta(min_length=1, max_length=128)]
    data: Any


class Yielded(Struct, frozen=True, forbid_unknown_fields=True):
    """What the function may yield beside text; exactly one of these. `links` go with what comes at the end.

    `unsure` lets the next answerer try, as long as no text has come; `handover` leaves the question to
    people; False for either says nothing. `error` ends it without an answer, and whoever asked reads it.
    """

    text: str | UnsetType = UNSET
    status: str | UnsetType = UNSET
    source: Link | UnsetType = UNSET
    data: NamedValue | UnsetType = UNSET
    links: tuple[Link, ...] | UnsetType = UNSET
    suggestions: tuple[str, ...] | UnsetType = UNSET
    usage: dict[str, int] | UnsetType = UNSET
    unsure: bool | UnsetType = UNSET
    handover: bool | str | UnsetType = UNSET
    error: str | UnsetType = UNSET


class PythonOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What may stand after the `?` of the URL, or in its table of `pushsse.toml`."""

    # Who has answered, as people see it.
    name: Annotated[str, Meta(max_length=128)] = ""


AnswerFunction = Callable[[Asked], AsyncGenerator[Any, None]]


@dataclass(slots=True)
class PythonAnswerer:
    """Asks a function; `name` is the one that people see."""

    name: str
    function: AnswerFunction
    _watch: "_Watch" = field(init=False)

    def __post_init__(self) -> None:
        advice = "await what takes long, or call it in asyncio.to_thread"
        self._watch = _Watch(LoopWatch(self.name, HELD_S, advice))

    async def answer(self, question: Question) -> AsyncGenerator[Piece, None]:
        """What the function yields, as pieces. Raises what it raises; TypeError for what it may not yield."""
        asked = Asked(
            id=question.id,
            text=question.text,
            user=question.user,
            conversation=question.conversation,
            context=question.context,
            turns=question.turns,
            attempt=question.attempt,
        )
        answered = Answered(By("bot", self.name))
        steps, fairness, has_ended = self.function(asked).__aiter__(), GivesWay(), False
        try:
            while True:
                try:
                    yielded = await self._watch.step(steps.__anext__())
                except StopAsyncIteration:
                    has_ended = True
                    break
                await fairness.give_way()
                piece = _understood(yielded, answered)
                if isinstance(piece, Answered):
                    answered = piece
                    continue
                yield piece
                if isinstance(piece, Unanswered | NotSure | HandOver):
                    return
        finally:
            if not has_ended:
                await self._close(steps)
        yield answered

    async def run(self, answers: Answers) -> None:
        """Nothing besides."""

    async def _close(self, steps: AsyncIterator[Any]) -> None:
        """Lets the function end where it is; one that doesn't is left behind, so that its node can stop."""
        if not isinstance(steps, AsyncGenerator):
            return
        try:
            async with asyncio.timeout(_CLOSE_S):
                await self._watch.step(steps.aclose())
        except TimeoutError:
            logger.error("python: %s doesn't end within %g s of its question's end", self.name, _CLOSE_S)
        except Exception:
            # It yields while it is closed, or its cleaning up fails; its question has ended all the same.
            logger.exception("python: %s doesn't end well with its question", self.name)


def answerer(name: str, where: str, options: PythonOptions) -> PythonAnswerer:
    """Finds PACKAGE:FUNCTION, also in the folder that the process was started in. Raises SettingsError."""
    found = function(name, where)
    if not _is_generator(found):
        raise SettingsError(
            f"{where}: python:{name} isn't an async generator function (`async def` with `yield`)"
        )
    return PythonAnswerer(options.name or name.partition(":")[0], cast(AnswerFunction, found))


def _is_generator(found: object) -> bool:
    if not callable(found):
        return False
    plain = inspect.unwrap(found)
    call = getattr(type(plain), "__call__", None)  # noqa: B004 # an object's own, which may be a generator
    return inspect.isasyncgenfunction(plain) or inspect.isasyncgenfunction(call)


def _understood(yielded: object, answered: Answered) -> Piece:
    """A piece of what was yielded; Answered for what goes with the end. Raises TypeError."""
    if isinstance(yielded, str):
        return Delta(yielded)
    if isinstance(yielded, Part):
        return yielded
    try:
        said = msgspec.convert(yielded, Yielded)
    except msgspec.ValidationError as error:
        raise TypeError(f"the function yields {type(yielded).__name__}: {error}") from None
    given = [name for name in Yielded.__struct_fields__ if getattr(said, name) is not UNSET]
    if len(given) != 1:
        raise TypeError(
            f"the function yields a dict with {' and '.join(given) or 'nothing'}, not with one member"
        )
    return _piece(said, answered)


def _piece(said: Yielded, answered: Answered) -> Piece:
    piece: Piece
    if said.text is not UNSET:
        piece = Delta(said.text)
    elif said.status is not UNSET:
        piece = StatusPart(said.status)
    elif said.source is not UNSET:
        piece = SourcePart(said.source.title, said.source.url)
    elif said.data is not UNSET:
        piece = DataPart(said.data.name, _json(said.data.data))
    elif said.error is not UNSET:
        piece = Unanswered("failed", "answerer_error", said.error[:1000])
    elif said.handover is False or said.unsure is False:
        piece = answered
    elif said.handover is not UNSET:
        piece = HandOver(said.handover if isinstance(said.handover, str) else "")
    elif said.unsure is not UNSET:
        piece = NotSure(answered if answered.suggestions else None)
    else:
        piece = msgspec.structs.replace(
            answered,
            links=answered.links if said.links is UNSET else said.links,
            suggestions=answered.suggestions if said.suggestions is UNSET else said.suggestions,
            usage=answered.usage if said.usage is UNSET else said.usage,
        )
    return piece


def _json(value: object) -> Any:
    """A value as JSON has it: neither shared with the function any more, nor anything that can't be sent."""
    try:
        return msgspec.json.decode(msgspec.json.encode(value))
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(f"the function yields data that isn't JSON: {error}") from None


@dataclass(slots=True)
class _Watch:
    """Runs steps of a function, and notices where one holds the loop, or goes on after it was cancelled."""

    held: LoopWatch

    async def step(self, step: Awaitable[T]) -> T:
        """The result of a step. Raises what it raises, CancelledError also where the step swallows it."""
        task = asyncio.current_task()
        before = 0 if task is None else task.cancelling()
        result = await _Timed(step, self.held.ran)
        if task is not None and task.cancelling() > before:
            raise asyncio.CancelledError
        return result


@dataclass(frozen=True, slots=True)
class _Timed(Awaitable[T]):
    """An awaitable, with the time between two of its waits told."""

    inner: Awaitable[T]
    ran: Callable[[float], None]

    def __await__(self) -> Generator[Any, Any, T]:
        # As `yield from` does it (PEP 380), with a clock around each step.
        inner = self.inner.__await__()
        value: Any = None
        error: BaseException | None = None
        while True:
            began = time.perf_counter()
            try:
                waits_for = inner.send(value) if error is None else inner.throw(error)
            except StopIteration as done:
                return cast(T, done.value)
            finally:
                # An exception that is kept here would keep this frame.
                error = None
                self.ran(time.perf_counter() - began)
            try:
                value = yield waits_for
            except BaseException as thrown:  # noqa: BLE001 # goes on to where it belongs, into the step
                error = thrown
