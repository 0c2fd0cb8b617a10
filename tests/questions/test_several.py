"""Answerers in order, and how settings name them."""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pushsse import build
from pushsse.errors import SettingsError, Unavailable
from pushsse.metrics import Metrics
from pushsse.questions import Answered, By, Question, StatusPart, Unanswered
from pushsse.questions.answerers import Answers, Delta, HandOver, NotSure, Piece, SentOff, Several, made
from pushsse.questions.answerers.openai import OpenaiAnswerer
from pushsse.settings import Settings, load
from tests.questions.conftest import NoAnswers
from tests.questions.test_faq import GOOD, question

pytestmark = pytest.mark.anyio


@dataclass
class Says:
    """Says this; an exception is raised."""

    script: list[Piece | Exception]
    asked: int = 0

    async def answer(self, question: Question) -> AsyncGenerator[Piece, None]:
        self.asked += 1
        for piece in self.script:
            if isinstance(piece, Exception):
                raise piece
            yield piece

    async def run(self, answers: Answers) -> None:
        pass


def answered(name: str, text: str | None = None) -> Answered:
    return Answered(By("bot", name), text)


AWAY = Unavailable("away")
STATUS = StatusPart("…")
FIRST, SECOND = answered("first"), answered("second")
SUGGESTS = NotSure(answered("suggests", "Maybe this."))


@pytest.mark.parametrize(
    ("scripts", "heard", "asked"),
    [
        ([[Delta("a"), FIRST], [SECOND]], [Delta("a"), FIRST], 1),
        ([[NotSure()], [Delta("b"), SECOND]], [Delta("b"), SECOND], 2),
        ([[STATUS, NotSure()], [SECOND]], [STATUS, SECOND], 2),
        ([[SUGGESTS], [SECOND]], [SECOND], 2),
        ([[AWAY], [SECOND]], [SECOND], 2),
        ([[STATUS, AWAY], [SECOND]], [STATUS, SECOND], 2),
        ([[SUGGESTS], [AWAY]], [SUGGESTS], 2),
        ([[AWAY], [SUGGESTS]], [SUGGESTS], 2),
        ([[SUGGESTS], [NotSure()]], [SUGGESTS], 2),
        ([[NotSure()], [SUGGESTS]], [SUGGESTS], 2),
        ([[NotSure()], [NotSure()]], [NotSure()], 2),
        ([[SUGGESTS], [HandOver()]], [HandOver()], 2),
        ([[SUGGESTS], [SentOff()]], [SentOff()], 2),
        ([[Unanswered("failed", "x", "y")], [SECOND]], [Unanswered("failed", "x", "y")], 1),
        ([[Delta("a"), SUGGESTS], [SECOND]], [Delta("a"), SUGGESTS], 1),
    ],
)
async def test_the_first_that_is_sure_answers(
    scripts: list[list[Piece | Exception]], heard: list[Piece], asked: int
) -> None:
    several = Several([Says(script) for script in scripts])
    assert [piece async for piece in several.answer(question("?"))] == heard
    assert sum(each.asked for each in several.answerers if isinstance(each, Says)) == asked


@pytest.mark.parametrize(
    "scripts", [[[AWAY]], [[AWAY], [AWAY]], [[NotSure()], [AWAY]], [[Delta("a"), AWAY], [SECOND]]]
)
async def test_where_nobody_is_there_it_is_unavailable(scripts: list[list[Piece | Exception]]) -> None:
    with pytest.raises(Unavailable):
        _ = [piece async for piece in Several([Says(script) for script in scripts]).answer(question("?"))]


async def test_a_bug_is_no_reason_to_ask_the_next() -> None:
    with pytest.raises(LookupError):
        _ = [p async for p in Several([Says([LookupError()]), Says([SECOND])]).answer(question("?"))]


async def test_what_one_does_besides_fails_as_itself_and_ends_the_others() -> None:
    ended = asyncio.Event()

    @dataclass
    class Runs(Says):
        fails: bool = False

        async def run(self, answers: Answers) -> None:
            if self.fails:
                raise LookupError
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

    with pytest.raises(LookupError):
        await Several([Runs([]), Runs([], fails=True)]).run(NoAnswers())
    assert ended.is_set()


def settings_of(folder: Path, text: str) -> Settings:
    file = folder / "pushsse.toml"
    file.write_text(text, encoding="utf-8")
    return load({}, {"database_url": f"sqlite://{folder}/x.db"}, file=file)


def test_the_file_may_name_several_with_options(tmp_path: Path) -> None:
    (tmp_path / "faq.toml").write_text(GOOD, encoding="utf-8")
    (tmp_path / "prompt.txt").write_text("Be brief.\n", encoding="utf-8")
    settings = settings_of(
        tmp_path,
        f"""
        openai_key = "sk-1"
        [[answerer]]
        url = "faq:{tmp_path}/faq.toml"
        [[answerer]]
        url = "openai:http://localhost:11434/v1/?model=a&temperature=0.5"
        model = "b"
        at_once = 3
        system = "{tmp_path}/prompt.txt"
        """,
    )
    build.check(settings)
    assert [each.kind for each in settings.answerers] == ["faq", "openai"]
    answerer = made(settings.answerers[1], settings, Metrics())
    assert isinstance(answerer, OpenaiAnswerer)
    assert answerer.url == "http://localhost:11434/v1"
    assert (answerer.key, answerer.system) == ("sk-1", "Be brief.")
    options = answerer.options
    assert (options.model, options.at_once, options.temperature) == ("b", 3, 0.5)


@pytest.mark.parametrize(
    ("answerer", "says"),
    [
        ("answerer = []", "is empty"),
        ("[[answerer]]\nmodel = 'a'", "answerer 1: the url, which is missing"),
        ("answerer = 'phone:home'", "PUSHSSE_ANSWERER: 'phone:home' is none of"),
        ("answerer = 'faq'", "'faq' is none of"),
        ("answerer = 'kafka:'", "kafka: needs PUSHSSE_KAFKA_BOOTSTRAP"),
        (
            "kafka_bootstrap = 'k:9092'\nanswerer = [{url = 'kafka:'}, {url = 'faq:'}]",
            "answerer 1: kafka: has to be the last",
        ),
        (
            "[[answerer]]\nurl = 'faq:'\n[[answerer]]\nurl = 'faq:'\npace = 1",
            "answerer 2: faq: has no 'pace'",
        ),
        ("answerer = 'openai:http://h/v1'", "missing required field `model`"),
        ("answerer = 'openai:http://h/v1?modle=a'", "has no 'modle': did you mean model"),
        ("answerer = 'openai:http://h/v1?model=a&at_once=no'", r"\$.at_once"),
        ("answerer = 'openai:http://h/v1?model=a&at_once=0'", r"\$.at_once"),
        ("answerer = 'openai:http://h/v1?model'", "isn't NAME=VALUE"),
        ("answerer = 'openai:localhost:11434?model=a'", "isn't http://HOST/PATH"),
        ("answerer = 'openai:http://h:99999/v1?model=a'", "isn't http://HOST/PATH"),
        ("answerer = 'openai:http://[?model=a'", "isn't http://HOST/PATH"),
        ("answerer = 'openai:http://u:hunter2@h/v1?model=a'", "has a password in it"),
        ("answerer = 'openai:http://h/v1?model=a&system=/nowhere'", "system: /nowhere: No such file"),
        ("answerer = 'openai:http://h/v1?model=a&key_env=NOT_THERE'", "the variable NOT_THERE isn't set"),
        (
            "openai_key = 'hunter2\u00fc'\nanswerer = 'openai:http://h/v1?model=a'",
            "characters that no header",
        ),
        (
            "answerer = 'openai:http://h/v1?model=a&key_env=PUSHSSE_JWT_SECRET'",
            "key_env: PUSHSSE_JWT_SECRET begins",
        ),
        ("answerer = 'python:nowhere_at_all:answer'", "no module 'nowhere_at_all'"),
    ],
)
def test_what_cant_be_used_is_named_at_the_start(tmp_path: Path, answerer: str, says: str) -> None:
    with pytest.raises(SettingsError, match=says) as raised:
        build.check(settings_of(tmp_path, answerer))
    assert "hunter2" not in str(raised.value)


def test_a_key_may_be_in_another_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTHER_KEY", "sk-2\n")
    settings = settings_of(tmp_path, "answerer = 'openai:http://h/v1?model=a&key_env=OTHER_KEY'")
    answerer = made(settings.answerers[0], settings, Metrics())
    assert isinstance(answerer, OpenaiAnswerer)
    assert answerer.key == "sk-2"
