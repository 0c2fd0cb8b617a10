"""`faq:FILE`: the best match from a question file, TOML or JSON; without FILE the one that pushsse ships.

Loaded when the process starts, asked by `answering`. Never calls anything: what isn't in the file is answered
with the closest questions.
"""

import asyncio
import re
import tomllib
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, TypeVar

from msgspec import Meta, Struct

from pushsse import strictjson
from pushsse.errors import InvalidInput, SettingsError
from pushsse.questions import Answered, By, Link, Question
from pushsse.questions.answerers import Answers, Delta, Piece
from pushsse.questions.answerers.matching import Matcher, is_answer, is_ideographic

SHIPPED = Path(__file__).parent.parent / "faq.toml"
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
        """The answer of the closest question sentence by sentence; else a polite word and suggestions."""
        found = self.match(question.text)
        text = found.answer if isinstance(found, Wording) else found.text or ""
        for sentence in _SENTENCE.findall(text):
            yield Delta(sentence)
            await asyncio.sleep(self.pace_s)
        if isinstance(found, Wording):
            yield Answered(By("bot", self.name), text, found.links)
        else:
            yield found

    async def run(self, answers: Answers) -> None:
        """Nothing besides."""

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


class _File(Struct, frozen=True, forbid_unknown_fields=True):
    nothing: Annotated[dict[Language, Line], Meta(min_length=1)]
    entry: Annotated[tuple[dict[str, object], ...], Meta(min_length=1, max_length=5_000)]
    name: Annotated[str, Meta(min_length=1, max_length=128)] = "faq"
    same: Annotated[
        tuple[Annotated[tuple[Word, ...], Meta(min_length=2, max_length=100)], ...], Meta(max_length=500)
    ] = ()


def load(file: str) -> Faq:
    """Reads a question file; "" is the shipped one. Raises SettingsError that names file and entry."""
    path = Path(file) if file else SHIPPED
    where = f"PUSHSSE_ANSWERER: {path}"
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
        return strictjson.loads(body) if suffix == ".json" else tomllib.loads(body.decode())
    except (InvalidInput, ValueError) as error:
        raise SettingsError(f"{where}: {error}") from None


def _convert(value: object, to: type[T], where: str) -> T:
    try:
        return strictjson.convert(value, to)
    except InvalidInput as error:
        raise SettingsError(f"{where}: {error}") from None
