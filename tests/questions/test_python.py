"""The answerer that is a function: what it gets and may yield, how it is found, and what it may do wrong."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path

import msgspec
import pytest

from pushsse.errors import SettingsError
from pushsse.questions import Answered, By, DataPart, Link, SourcePart, StatusPart, Turn, Unanswered
from pushsse.questions.answerers import Delta, HandOver, NotSure, Piece, python
from pushsse.questions.answerers.python import Asked, PythonAnswerer, PythonOptions
from tests.questions.test_faq import question

pytestmark = pytest.mark.anyio
NAME = "agent"
ANSWERED = Answered(By("bot", NAME))


def saying(*yielded: object) -> PythonAnswerer:
    async def answer(asked: Asked) -> AsyncGenerator[object, None]:
        for each in yielded:
            yield each

    return PythonAnswerer(NAME, answer)


async def pieces(answerer: PythonAnswerer) -> list[Piece]:
    return [piece async for piece in answerer.answer(question("hello?"))]


async def test_the_function_gets_the_question_with_its_turns() -> None:
    got: list[Asked] = []

    async def answer(asked: Asked) -> AsyncGenerator[str, None]:
        got.append(asked)
        yield "yes"

    turns = (Turn("before?", "no"),)
    asked = msgspec.structs.replace(question("hello?"), turns=turns, context={"page": "/"}, attempt=2)
    assert [piece async for piece in PythonAnswerer(NAME, answer).answer(asked)] == [Delta("yes"), ANSWERED]
    assert got == [
        Asked(
            id="Q", text="hello?", user="ann", conversation="c", context={"page": "/"}, turns=turns, attempt=2
        )
    ]


async def test_text_and_parts_become_pieces() -> None:
    found = await pieces(
        saying(
            {"status": "looking it up"},
            "It is ",
            {"text": "here"},
            {"source": {"title": "Here", "url": "/here"}},
            {"data": {"name": "order", "data": {"id": 7, "tags": ("a",)}}},
            StatusPart("a part itself"),
            {"links": [{"title": "More", "url": "/more"}]},
            {"suggestions": ["And now?"]},
            {"usage": {"tokens": 7}},
        )
    )
    assert found == [
        StatusPart("looking it up"),
        Delta("It is "),
        Delta("here"),
        SourcePart("Here", "/here"),
        DataPart("order", {"id": 7, "tags": ["a"]}),
        StatusPart("a part itself"),
        Answered(By("bot", NAME), None, (Link("More", "/more"),), ("And now?",), usage={"tokens": 7}),
    ]


@pytest.mark.parametrize(
    ("yielded", "ending"),
    [
        ({"unsure": True}, NotSure()),
        ({"handover": True}, HandOver()),
        ({"handover": "angry"}, HandOver("angry")),
        ({"error": "no orders today"}, Unanswered("failed", "answerer_error", "no orders today")),
    ],
)
async def test_an_ending_is_the_last_that_is_heard(yielded: object, ending: Piece) -> None:
    closed = asyncio.Event()

    async def answer(asked: Asked) -> AsyncGenerator[object, None]:
        try:
            yield yielded
            yield "more"
        finally:
            closed.set()

    assert await pieces(PythonAnswerer(NAME, answer)) == [ending]
    assert closed.is_set()


@pytest.mark.parametrize("yielded", [{"unsure": False}, {"handover": False}], ids=repr)
async def test_what_is_false_says_nothing(yielded: object) -> None:
    assert await pieces(saying(yielded, "yes", yielded)) == [Delta("yes"), ANSWERED]


async def test_one_that_isnt_sure_may_suggest() -> None:
    (ending,) = await pieces(saying({"suggestions": ["This?"]}, {"unsure": True}))
    assert ending == NotSure(Answered(By("bot", NAME), suggestions=("This?",)))


@pytest.mark.parametrize(
    "yielded",
    [
        None,
        7,
        b"bytes",
        {},
        {"text": "a", "status": "b"},
        {"txt": "a"},
        {"text": 7},
        {"source": "/here"},
        {"data": {"name": "x", "data": 1j}},
        {"data": {"name": "", "data": 1}},
    ],
    ids=repr,
)
async def test_what_may_not_be_yielded_is_the_functions_mistake(yielded: object) -> None:
    with pytest.raises(TypeError, match="the function yields"):
        await pieces(saying(yielded))


async def test_what_it_raises_is_raised() -> None:
    async def answer(asked: Asked) -> AsyncGenerator[str, None]:
        yield "so far"
        raise LookupError("a bug")

    with pytest.raises(LookupError, match="a bug"):
        await pieces(PythonAnswerer(NAME, answer))


@pytest.mark.parametrize("how", ["closed", "cancelled", "cancelled and swallowed"])
async def test_stopping_stops_it_where_it_is(how: str) -> None:
    stopped = asyncio.Event()
    begun = asyncio.Event()

    async def answer(asked: Asked) -> AsyncGenerator[str, None]:
        try:
            yield "one"
            begun.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                if how != "cancelled and swallowed":
                    raise
            yield "two"
        finally:
            # An end that has to wait may do so.
            await asyncio.sleep(0.01)
            stopped.set()

    answerer = PythonAnswerer(NAME, answer)
    if how == "closed":
        async with aclosing(answerer.answer(question("?"))) as heard:
            assert await anext(heard) == Delta("one")
    else:
        reading = asyncio.create_task(pieces(answerer))
        await begun.wait()
        reading.cancel()
        await asyncio.wait((reading,))
        assert reading.cancelled()
    assert stopped.is_set()


@pytest.mark.parametrize("how", ["hangs", "fails", "yields"])
async def test_one_that_doesnt_stop_is_left_behind(
    how: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(python, "_CLOSE_S", 0.05)

    async def answer(asked: Asked) -> AsyncGenerator[str, None]:
        try:
            yield "one"
        finally:
            if how == "hangs":
                await asyncio.Event().wait()
            elif how == "fails":
                raise LookupError
            else:
                yield "two"

    async with asyncio.timeout(5):
        async with aclosing(PythonAnswerer(NAME, answer).answer(question("?"))) as heard:
            await anext(heard)
    assert "doesn't end" in caplog.text


async def test_holding_the_loop_is_noticed_and_waiting_isnt(caplog: pytest.LogCaptureFixture) -> None:
    async def waits(asked: Asked) -> AsyncGenerator[str, None]:
        await asyncio.sleep(0.2)
        yield "good"
        await asyncio.to_thread(time.sleep, 0.2)

    async def holds(asked: Asked) -> AsyncGenerator[str, None]:
        await asyncio.sleep(0)
        time.sleep(0.15)  # noqa: ASYNC251 # what it mustn't do
        yield "bad"
        time.sleep(0.15)  # noqa: ASYNC251 # what it mustn't do

    caplog.set_level(logging.WARNING)
    await pieces(PythonAnswerer(NAME, waits))
    assert not caplog.messages
    await pieces(PythonAnswerer(NAME, holds))
    # Told once in a while.
    (message,) = caplog.messages
    assert "held the event loop for 0.1" in message


@pytest.mark.parametrize("yielded", ["", {"status": "…"}], ids=repr)
async def test_one_that_never_waits_holds_nobody_up_and_can_be_stopped(yielded: object) -> None:
    async def answer(asked: Asked) -> AsyncGenerator[object, None]:
        while True:
            yield yielded

    async def read() -> None:
        async for _ in PythonAnswerer(NAME, answer).answer(question("?")):
            pass

    reading = asyncio.create_task(read())
    for _ in range(20):
        began = time.thread_time()
        await asyncio.sleep(0)
        assert time.thread_time() - began < 0.05
    assert not reading.done()
    reading.cancel()
    await asyncio.wait((reading,))
    assert reading.cancelled()


async def test_limits_of_time_work_within_it() -> None:
    async def answer(asked: Asked) -> AsyncGenerator[str, None]:
        try:
            async with asyncio.timeout(0.01):
                await asyncio.Event().wait()
        except TimeoutError:
            yield "too slow"
        async with asyncio.TaskGroup() as group:
            task = group.create_task(asyncio.sleep(0, "both"))
        yield task.result()

    assert await pieces(PythonAnswerer(NAME, answer)) == [Delta("too slow"), Delta("both"), ANSWERED]


MODULE = """
import functools

async def answer(question):
    yield "hello"

def wrapping(function):
    @functools.wraps(function)
    def wrapper(*given):
        return function(*given)
    return wrapper

wrapped = wrapping(answer)

class Agent:
    async def answer(self, question):
        yield "from a method"
    async def __call__(self, question):
        yield "from an object"

agent = Agent()

async def coroutine(question):
    return "hello"

def plain(question):
    return "hello"

number = 7
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    (tmp_path / "my_agent_of_tests.py").write_text(MODULE)
    (tmp_path / "broken_agent_of_tests.py").write_text("1 / 0")
    (tmp_path / "needy_agent_of_tests.py").write_text("import not_installed_anywhere")
    return tmp_path


def load(name: str) -> PythonAnswerer:
    return python.answerer(name, "PUSHSSE_ANSWERER", PythonOptions())


@pytest.mark.parametrize("function", ["answer", "wrapped", "agent", "agent.answer"])
async def test_a_function_is_found_in_the_folder_of_the_process(folder: Path, function: str) -> None:
    answerer = load(f"my_agent_of_tests:{function}")
    first, last = await pieces(answerer)
    assert isinstance(first, Delta)
    assert last == Answered(By("bot", "my_agent_of_tests"))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("", "isn't python:PACKAGE:FUNCTION"),
        ("my_agent_of_tests", "isn't python:PACKAGE:FUNCTION"),
        ("my_agent_of_tests:", "isn't python:PACKAGE:FUNCTION"),
        ("nowhere_at_all:answer", "no module 'nowhere_at_all'"),
        ("needy_agent_of_tests:answer", "no module 'not_installed_anywhere'"),
        ("broken_agent_of_tests:answer", "can't be imported: ZeroDivisionError"),
        ("my_agent_of_tests:answers", "my_agent_of_tests has no answers"),
        ("my_agent_of_tests:agent.ask", "my_agent_of_tests has no agent.ask"),
        ("my_agent_of_tests:coroutine", "isn't an async generator"),
        ("my_agent_of_tests:plain", "isn't an async generator"),
        ("my_agent_of_tests:number", "isn't an async generator"),
        ("my_agent_of_tests:Agent.missing", "has no Agent.missing"),
    ],
)
def test_a_wrong_name_is_one_clear_error(folder: Path, name: str, says: str) -> None:
    with pytest.raises(SettingsError, match=f"PUSHSSE_ANSWERER: python:{name}.*{says}"):
        load(name)
