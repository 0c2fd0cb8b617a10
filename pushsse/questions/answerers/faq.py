"""`faq:FILE`: the best match from a question file, TOML or JSON; without FILE the one that pushsse ships.

Asked by `answering`, which supervises `run`. Loaded when the process starts, and again when the file has
changed. Never calls anything: for what isn't in the file it has the closest questions to suggest.
"""

import asyncio
import gc
import logging
import re
import tomllib
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta, Struct

from pushsse import strictjson
from pushsse.errors import InvalidInput, SettingsError
from pushsse.questions import Answered, By, Link, Question
from pushsse.questions.answerers import Answers, Delta, NotSure, Piece
from pushsse.questions.answerers.matching import Matcher, is_answer, is_ideographic

SHIPPED = Path(__file__).parent.parent / "faq.toml"
logger = logging.getLogger(__name__)
LOOK_S = 2.0
_SUGGESTED = 3
_MAX_FILE_BYTES = 4 * 1024 * 1024
_SENTENCE = re.compile(r".+?(?:[.!?](?=\s)|[。！？]|\Z)\s*", re.DOTALL)
T = TypeVar("T")
Line = Annotated[str, Meta(min_length=1, max_length=500)]
Word = Annotated[str, Meta(min_length=1, max_length=40)]
Language = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z]{2,3}(-[A-Za-z0-9]{1,8})*\Z",
        description="a language tag (BCP 47)",
        examples=["zh-CN"],
    ),
]


class Wording(Struct, frozen=True, forbid_unknown_fields=True):
    """A question in one language: how people ask it, and its answer."""

    ask: Annotated[tuple[Line, ...], Meta(min_length=1, max_length=100)]
    answer: Annotated[str, Meta(min_length=1, max_length=20_000)]
    links: Annotated[tuple[Link, ...], Meta(max_length=10)] = ()


@dataclass(frozen=True, slots=True)
class Phrasing:
    """One way to ask, with what it leads to."""

    text: str
    language: str
    wording: Wording


@dataclass(frozen=True, slots=True)
class Faq:
    """Answers from a file; sentences follow each other at `pace_s`."""

    name: str
    phrasings: tuple[Phrasing, ...]
    matcher: Matcher
    nothing: dict[str, str]
    pace_s: float = 0.06

    async def answer(self, question: Question) -> AsyncGenerator[Piece, None]:
        """The answer of the closest question by sentences; else it isn't sure, and has suggestions."""
        found = self.match(question.text)
        if isinstance(found, Answered):
            yield NotSure(found)
            return
        for sentence in _SENTENCE.findall(found.answer):
            yield Delta(sentence)
            await asyncio.sleep(self.pace_s)
        yield Answered(By("bot", self.name), found.answer, found.links)

    def match(self, text: str) -> Wording | Answered:
        """The wording that a question is close enough to, or what is said when there is none."""
        close = self.matcher.closest(text)
        found = [self.phrasings[each.place] for each in close]
        if is_answer(close):
            return found[0].wording
        language = self._language(text)
        closest = [phrasing for phrasing in found if phrasing.language == language]
        # Where little is close, what the file begins with: its most common questions.
        others = (phrasing for phrasing in self.phrasings if phrasing.language == language)
        suggested: dict[str, None] = {}
        for phrasing in (*closest, *others):
            suggested.setdefault(phrasing.wording.ask[0])
            if len(suggested) == _SUGGESTED:
                break
        return Answered(By("bot", self.name), self.nothing[language], suggestions=tuple(suggested))

    def _language(self, text: str) -> str:
        """Of the file's languages the first that is written the way the question is."""
        kind = is_ideographic(text)
        fitting = (language for language, word in self.nothing.items() if is_ideographic(word) == kind)
        return next(fitting, next(iter(self.nothing)))


class FaqAnswerer:
    """Answers from a file as it is now. Where that can't be used, as it was before."""

    def __init__(self, path: Path, where: str, *, look_s: float = LOOK_S) -> None:
        """Reads the file. Raises SettingsError."""
        self._path = path
        self._where = where
        self._look_s = look_s
        # Before it is read: a change meanwhile is seen at the next look.
        self._seen = _stamp(path)
        self.faq = _read(path, where)

    def answer(self, question: Question) -> AsyncGenerator[Piece, None]:
        """What the file says. A question that is being answered when the file changes keeps its answer."""
        return self.faq.answer(question)

    async def run(self, answers: Answers) -> None:
        """Looks at the file, for ever; the one that is shipped doesn't change."""
        while self._path != SHIPPED:
            await asyncio.sleep(self._look_s)
            # A thread each time, since a disk may be slow and a file takes up to some seconds.
            await asyncio.to_thread(self._look)

    def _look(self) -> None:
        stamp = _stamp(self._path)
        if stamp == self._seen:
            return
        # Told once of each state, whether it is good or bad.
        self._seen = stamp
        try:
            with _uncollected():
                self.faq = _read(self._path, self._where)
        except SettingsError as error:
            logger.error("%s; questions are answered by the file as it was before", error)
        else:
            logger.info("%s: read again, %d phrasings", self._path, len(self.faq.phrasings))


@contextmanager
def _uncollected() -> Iterator[None]:
    """Walks over what is made meanwhile neither now nor later: a large file has a million objects.

    One walk would hold the event loop for half a second. They have no cycles, and go when nobody has them.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if collecting:
            gc.enable()


Stamp = tuple[int, int, int] | None


def _stamp(path: Path) -> Stamp:
    """What tells a file from the one that was there before; None if there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


class _File(Struct, frozen=True, forbid_unknown_fields=True):
    nothing: Annotated[dict[Language, Line], Meta(min_length=1)]
    entry: Annotated[tuple[dict[str, object], ...], Meta(min_length=1, max_length=5_000)]
    name: Annotated[str, Meta(min_length=1, max_length=128)] = "faq"
    same: Annotated[
        tuple[Annotated[tuple[Word, ...], Meta(min_length=2, max_length=100)], ...], Meta(max_length=500)
    ] = ()


def answerer(file: str, where: str) -> FaqAnswerer:
    """Answers from a question file; "" is the shipped one. Raises SettingsError that names file and entry."""
    path = Path(file) if file else SHIPPED
    return FaqAnswerer(path, f"{where}: {path}")


def load(file: str) -> Faq:
    """Reads a question file, as `answerer` does."""
    return answerer(file, "PUSHSSE_ANSWERER").faq


def _read(path: Path, where: str) -> Faq:
    return _made(_bytes(path, where), path.suffix, where)


# A start asks twice: first whether the settings can be used, then for the answerer.
@lru_cache(maxsize=1)
def _made(body: bytes, suffix: str, where: str) -> Faq:
    read = _convert(_parsed(body, suffix, where), _File, where)
    phrasings: list[Phrasing] = []
    entries: list[int] = []
    wordings = 0
    for number, entry in enumerate(read.entry, 1):
        name = entry.get("id", f"number {number}")
        for language, wording in _wordings(entry, f"{where}: entry {name}").items():
            if language not in read.nothing:
                raise SettingsError(f"{where}: entry {name}: [nothing] has no {language!r}")
            phrasings += [Phrasing(ask, language, wording) for ask in wording.ask]
            entries += [wordings] * len(wording.ask)
            wordings += 1
    matcher = Matcher([phrasing.text for phrasing in phrasings], entries, read.same)
    return Faq(read.name, tuple(phrasings), matcher, read.nothing)


def _wordings(entry: dict[str, object], where: str) -> dict[str, Wording]:
    languages = {key: value for key, value in entry.items() if key != "id"}
    if not languages:
        raise SettingsError(f"{where}: has no language")
    return {key: _convert(value, Wording, f"{where}: {key}") for key, value in languages.items()}


def _bytes(path: Path, where: str) -> bytes:
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise SettingsError(f"{where}: has more than {_MAX_FILE_BYTES} bytes")
        return path.read_bytes()
    except OSError as error:
        raise SettingsError(f"{where}: {error.strerror}") from None


def _parsed(body: bytes, suffix: str, where: str) -> object:
    try:
        return _json(body) if suffix == ".json" else tomllib.loads(body.decode())
    except (InvalidInput, ValueError) as error:
        raise SettingsError(f"{where}: {error}") from None


def _json(body: bytes) -> object:
    """Without the looks of `strictjson` at all bytes, which would hold the event loop of a thread's node."""
    try:
        return msgspec.json.decode(body.removeprefix(strictjson.BOM))
    except strictjson.REFUSALS as error:
        strictjson.refuse(body, error)


def _convert(value: object, to: type[T], where: str) -> T:
    try:
        return strictjson.convert(value, to)
    except InvalidInput as error:
        raise SettingsError(f"{where}: {error}") from None
