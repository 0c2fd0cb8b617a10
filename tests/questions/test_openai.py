"""The answerer for chat completions against a server over real HTTP: what servers send, and how they fail."""

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from deploy.parts import PartMissing
from deploy.parts.certificate import Certificate, make_certificate
from pushsse.errors import Overloaded, Unavailable
from pushsse.metrics import Metrics
from pushsse.questions import MAX_PARTS, Answered, By, DataPart, SourcePart, StatusPart, Turn
from pushsse.questions.answerers import Delta, Piece, openai
from pushsse.questions.answerers.openai import MOST_TRIES, OpenaiAnswerer, OpenaiOptions
from tests.parts import missing
from tests.questions.conftest import NoAnswers, running
from tests.questions.model_server import MODEL, Call, ModelServer, Script, model_server
from tests.questions.test_faq import question
from tests.waiting import eventually

pytestmark = pytest.mark.anyio
KEY = "sk-very-secret"
ANSWERED = Answered(By("bot", MODEL))


def counted(prompt: int, completion: int) -> Answered:
    """The end of an answer whose tokens were counted."""
    usage = {"prompt_tokens": prompt, "completion_tokens": completion}
    return msgspec.structs.replace(ANSWERED, usage=usage)


@asynccontextmanager
async def asking(
    script: Script | None = None,
    *,
    system: str = "",
    key: str = KEY,
    certificate: Certificate | None = None,
    **options: object,
) -> AsyncIterator[tuple[OpenaiAnswerer, ModelServer]]:
    """An answerer that runs, and its server."""
    async with model_server(script, key=key, certificate=certificate) as server:
        given = msgspec.convert({"model": MODEL, **options}, OpenaiOptions, strict=False)
        tls = openai.tls_for(server.url)
        answerer = OpenaiAnswerer(server.url, given, key, system, tls, Metrics(), backoff_s=0.01)
        async with running(answerer.run(NoAnswers())):
            yield answerer, server


async def pieces(answerer: OpenaiAnswerer, text: str = "hello?") -> list[Piece]:
    async with asyncio.timeout(20):
        return [piece async for piece in answerer.answer(question(text))]


def text_of(found: list[Piece]) -> str:
    return "".join(piece.text for piece in found if isinstance(piece, Delta))


async def test_an_answer_comes_word_by_word_and_its_tokens_are_counted() -> None:
    async with asking(key=KEY) as (answerer, server):
        found = await pieces(answerer, "[words 3]")
    assert found == [Delta("word0 "), Delta("word1 "), Delta("word2 "), counted(1, 3)]
    (call,) = server.calls
    assert call.path == "/v1/chat/completions"
    assert call.headers["authorization"] == f"Bearer {KEY}"
    assert call.body == {
        "model": MODEL,
        "messages": [{"role": "user", "content": "[words 3]"}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    assert answerer.metrics.answer_tokens == {"prompt": 1, "completion": 3}


async def test_the_system_prompt_and_the_turns_go_before_the_question() -> None:
    asked = msgspec.structs.replace(
        question("and now?"), turns=(Turn("first?", "yes"), Turn("second?", "no"))
    )
    options: dict[str, Any] = {"temperature": "0.5", "max_tokens": "7", "usage": "0"}
    async with asking(system="Be brief.", key="", **options) as (answerer, server):
        async for _ in answerer.answer(asked):
            pass
    (call,) = server.calls
    assert "authorization" not in call.headers
    assert [tuple(message.values()) for message in call.body["messages"]] == [
        ("system", "Be brief."),
        ("user", "first?"),
        ("assistant", "yes"),
        ("user", "second?"),
        ("assistant", "no"),
        ("user", "and now?"),
    ]
    assert (call.body["temperature"], call.body["max_tokens"]) == (0.5, 7)
    assert "stream_options" not in call.body


async def test_messages_of_staff_follow_what_was_said_without_an_empty_question() -> None:
    turns = (Turn("", "Welcome."), Turn("first?", "yes"), Turn("", "This is Sam."), Turn("", "Bye."))
    asked = msgspec.structs.replace(question("and now?"), turns=turns)
    async with asking() as (answerer, server):
        async for _ in answerer.answer(asked):
            pass
    (call,) = server.calls
    # Some models take no two messages of the same role in a row.
    assert [tuple(message.values()) for message in call.body["messages"]] == [
        ("assistant", "Welcome."),
        ("user", "first?"),
        ("assistant", "yes\n\nThis is Sam.\n\nBye."),
        ("user", "and now?"),
    ]


GOOD = b'data: {"choices":[{"delta":{"content":"good"},"finish_reason":null}]}\n\n'
STOP = b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n'
DONE = b"data: [DONE]\n\n"
STREAMS = {
    "as it should be": (GOOD + STOP + DONE, "good"),
    "no [DONE]": (GOOD + STOP, "good"),
    "no finish_reason": (GOOD + DONE, "good"),
    "no space after the colon": ((GOOD + STOP + DONE).replace(b"data: ", b"data:"), "good"),
    "CRLF": ((GOOD + STOP + DONE).replace(b"\n", b"\r\n"), "good"),
    "CR": ((GOOD + STOP + DONE).replace(b"\n", b"\r"), "good"),
    "comments": (b": hello\n\n" + GOOD + b": PROCESSING\n\n" + STOP + DONE, "good"),
    "an event of another name": (b"event: ping\nid: 7\n\n" + GOOD + STOP + DONE, "good"),
    "choices empty": (b'data: {"choices":[]}\n\n' + GOOD + STOP + DONE, "good"),
    "choices null": (b'data: {"choices":null}\n\n' + GOOD + STOP + DONE, "good"),
    "choices absent": (b'data: {"id":"x"}\n\n' + GOOD + STOP + DONE, "good"),
    "choices of another kind": (b'data: {"choices":{"0":1}}\n\n' + GOOD + STOP + DONE, "good"),
    "delta null": (b'data: {"choices":[{"delta":null}]}\n\n' + GOOD + STOP + DONE, "good"),
    "content null": (b'data: {"choices":[{"delta":{"content":null}}]}\n\n' + GOOD + STOP + DONE, "good"),
    "content a number": (b'data: {"choices":[{"delta":{"content":7}}]}\n\n' + GOOD + STOP + DONE, "good"),
    "usage of another kind": (GOOD + STOP + b'data: {"choices":[],"usage":"much"}\n\n' + DONE, "good"),
    "usage with null": (
        GOOD + STOP + b'data: {"choices":[],"usage":{"prompt_tokens":null}}\n\n' + DONE,
        "good",
    ),
    "a message in place of a delta": (
        b'data: {"choices":[{"message":{"content":"good"},"finish_reason":"stop"}]}\n\n' + DONE,
        "good",
    ),
    "content in parts": (
        b'data: {"choices":[{"delta":{"content":[{"type":"thinking","thinking":[]},'
        b'{"type":"text","text":"good"}]}}]}\n\n' + STOP + DONE,
        "good",
    ),
    "not JSON": (b"data: {nonsense\n\n" + GOOD + STOP + DONE, "good"),
    "no object": (b"data: 17\n\ndata: []\n\n" + GOOD + STOP + DONE, "good"),
    "too deep": (b"data: " + b"[" * 20_000 + b"\n\n" + GOOD + STOP + DONE, "good"),
    "not UTF-8": (GOOD.replace(b"good", b"g\xffd") + STOP + DONE, "g\ufffdd"),
    "a character in two packets": (None, "gr\u00fc\u00df"),
    "a lone surrogate": (
        b'data: {"choices":[{"delta":{"content":"\\ud800"}}]}\n\n' + GOOD + STOP + DONE,
        "good",
    ),
}


@pytest.mark.parametrize("name", STREAMS)
async def test_streams_of_all_kinds_are_understood(name: str) -> None:
    body, expected = STREAMS[name]

    async def script(call: Call) -> None:
        await call.begin(chunked=name != "no [DONE]")
        if body is None:
            raw = GOOD.replace(b"good", "gr\u00fc\u00df".encode()) + STOP + DONE
            for at in range(len(raw)):
                await call.send(raw[at : at + 1])
        else:
            await call.send(body)
        await call.end()

    async with asking(script) as (answerer, _):
        found = await pieces(answerer)
    assert text_of(found) == expected
    assert found[-1] == ANSWERED


@pytest.mark.parametrize("encoding", ["utf-16", "zlib", "rot13", "nonsense"])
async def test_the_encoding_that_a_server_names_counts_for_nothing(encoding: str) -> None:
    async def script(call: Call) -> None:
        await call.begin(kind=f"text/event-stream; charset={encoding}")
        await call.send(GOOD + STOP)
        await call.end()

    async with asking(script) as (answerer, _):
        assert text_of(await pieces(answerer)) == "good"


async def test_what_a_model_cites_is_a_source() -> None:
    async def script(call: Call) -> None:
        await call.begin()
        await call.say("good")
        cited = {"url": "https://example.com/", "title": "Example", "start_index": 0, "end_index": 4}
        odd: list[Any] = [None, {}, {"url_citation": 7}, {"url_citation": {"url": None}}]
        untitled = {"type": "url_citation", "url_citation": {"url": "/here", "title": ""}}
        await call.delta(annotations=[*odd, {"type": "url_citation", "url_citation": cited}, untitled])
        await call.delta(annotations="none")
        await call.done()

    async with asking(script) as (answerer, _):
        sources = [SourcePart("Example", "https://example.com/"), SourcePart("/here", "/here")]
        assert await pieces(answerer) == [Delta("good"), *sources, ANSWERED]


async def test_thoughts_are_a_status_and_no_text() -> None:
    async with asking() as (answerer, _):
        found = await pieces(answerer, "[think 3] [words 1]")
    assert found == [StatusPart("…"), Delta("word0 "), counted(1, 1)]
    async with asking(thinking="") as (answerer, _):
        assert await pieces(answerer, "[think 3] [words 1]") == [Delta("word0 "), counted(1, 1)]


@pytest.mark.parametrize(
    ("asked", "ending"),
    [
        ("[length]", [DataPart("ending", {"reason": "length"}), counted(1, 6)]),
        ("[refuse]", [DataPart("ending", {"reason": "refusal"}), ANSWERED]),
        ("[filter]", [openai.WITHHELD]),
        ("[words 0]", [openai.EMPTY]),
        ("[cut]", [openai.BROKEN_OFF]),
        ("[status 400]", [openai.REFUSED]),
        ("[status 413]", [openai.REFUSED]),
    ],
)
async def test_endings_are_told(asked: str, ending: list[Piece]) -> None:
    async with asking() as (answerer, server):
        found = await pieces(answerer, asked)
    assert [piece for piece in found if not isinstance(piece, Delta)] == ending
    assert len(server.calls) == 1
    if asked == "[refuse]":
        assert text_of(found) == "I'd rather not."


async def test_an_end_that_nobody_announced_is_a_cut() -> None:
    async def script(call: Call) -> None:
        await call.begin(chunked=False)
        await call.say("half of")
        await call.end()

    async with asking(script) as (answerer, server):
        assert await pieces(answerer) == [Delta("half of"), openai.BROKEN_OFF]
    assert len(server.calls) == 1


async def test_a_connection_that_stays_open_after_the_end_holds_nothing_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(openai, "_USAGE_S", 0.05)

    async def script(call: Call) -> None:
        await call.begin()
        await call.say("good")
        await call.delta("stop")
        await asyncio.Event().wait()

    async with asking(script) as (answerer, server):
        assert await pieces(answerer) == [Delta("good"), ANSWERED]
        await eventually(lambda: server.open == 0)


async def a_failure(call: Call, kind: str) -> None:
    """Fails before the first text."""
    if kind.isdecimal():
        await call.whole(int(kind), b"try later", Retry_After="0")
    elif kind == "reset":
        call.cut()
    elif kind == "cut":
        await call.begin()
        await call.delta(role="assistant", content="")
        call.cut()
    else:
        await call.begin()
        await call.chunk(error={"message": "overloaded", "code": 503})
        await call.end()


@pytest.mark.parametrize("kind", ["429", "408", "500", "502", "503", "529", "reset", "cut", "error"])
async def test_what_fails_before_the_first_text_is_asked_again(kind: str) -> None:
    async def script(call: Call) -> None:
        if len(server.calls) < 3:
            await a_failure(call, kind)
            return
        await call.begin()
        await call.say("good")
        await call.done()

    async with asking(script) as (answerer, server):
        assert await pieces(answerer) == [Delta("good"), ANSWERED]
    assert len(server.calls) == 3


@pytest.mark.parametrize("kind", ["429", "503", "reset", "cut", "error"])
async def test_what_goes_on_failing_is_unavailable(kind: str) -> None:
    async with asking(lambda call: a_failure(call, kind)) as (answerer, server):
        with pytest.raises(Unavailable):
            await pieces(answerer)
    assert len(server.calls) == MOST_TRIES


async def test_a_server_that_isnt_there_is_unavailable_and_asked_when_it_comes() -> None:
    async with asking() as (answerer, server):
        await server.down()
        with pytest.raises(Unavailable, match="can't be reached"):
            await pieces(answerer)
        await server.up()
        assert (await pieces(answerer))[-1] == counted(1, 6)


@pytest.mark.parametrize("kind", ["301", "307", "401", "403", "404"])
async def test_a_server_that_is_set_up_wrongly_is_asked_once(kind: str) -> None:
    async def script(call: Call) -> None:
        await call.whole(int(kind), b"", Location=f"{server.url}/elsewhere")

    async with asking(script) as (answerer, server):
        with pytest.raises(Unavailable, match=kind):
            await pieces(answerer)
    assert [call.path for call in server.calls] == ["/v1/chat/completions"]


@pytest.mark.parametrize("kind", ["html", "gzip"])
async def test_what_isnt_a_stream_is_unavailable(kind: str) -> None:
    async def script(call: Call) -> None:
        if kind == "html":
            await call.whole(200, b"<html>", "text/html")
        else:
            await call.begin(headers={"Content-Encoding": "gzip"})
            await call.end()

    async with asking(script) as (answerer, server):
        with pytest.raises(Unavailable, match="stream"):
            await pieces(answerer)
    assert len(server.calls) == 1


async def test_a_server_that_says_when_is_asked_then_and_not_much_later() -> None:
    async def script(call: Call) -> None:
        if len(server.calls) == 1:
            await call.whole(429, b"", Retry_After="1")
        elif len(server.calls) == 2:
            # Dates have whole seconds.
            soon = datetime.now(UTC) + timedelta(seconds=2)
            await call.whole(429, b"", Retry_After=format_datetime(soon, usegmt=True))
        elif len(server.calls) == 3:
            await call.whole(429, b"", Retry_After="3600")

    async with asking(script) as (answerer, server):
        began = time.monotonic()
        with pytest.raises(Unavailable, match="429"):
            await pieces(answerer)
        took_s = time.monotonic() - began
    assert len(server.calls) == 3
    assert took_s > 2


async def test_silence_before_the_first_text_is_unavailable_and_later_a_cut() -> None:
    async def script(call: Call) -> None:
        await call.begin()
        if call.text == "later":
            await call.say("half of")
        await asyncio.Event().wait()

    async with asking(script, first_token_s=0.3, between_tokens_s=0.3) as (answerer, server):
        with pytest.raises(Unavailable, match="within"):
            await pieces(answerer)
        assert await pieces(answerer, "later") == [Delta("half of"), openai.BROKEN_OFF]
        # Either way the server is told.
        await eventually(lambda: server.open == 0)
    assert len(server.calls) == 2


async def test_comments_without_a_text_are_silence() -> None:
    async def script(call: Call) -> None:
        await call.begin()
        while True:
            await call.send(b": PROCESSING\n\n")
            await asyncio.sleep(0.01)

    async with asking(script, first_token_s=0.3) as (answerer, _):
        with pytest.raises(Unavailable, match="within"):
            await pieces(answerer)


async def test_thinking_takes_longer_than_the_first_text_may() -> None:
    async def script(call: Call) -> None:
        await call.begin()
        for _ in range(8):
            await call.delta(reasoning="hm")
            await asyncio.sleep(0.2)
        await call.say("good")
        await call.done()

    async with asking(script, first_token_s=1.2, between_tokens_s=5) as (answerer, _):
        assert text_of(await pieces(answerer)) == "good"


@pytest.mark.parametrize("how", ["closed", "cancelled"])
async def test_stopping_closes_the_connection(how: str) -> None:
    async def script(call: Call) -> None:
        await call.begin()
        await call.say("one ")
        await asyncio.Event().wait()

    async with asking(script) as (answerer, server):
        if how == "closed":
            async with aclosing(answerer.answer(question("?"))) as answer:
                assert await anext(answer) == Delta("one ")
        else:
            heard = asyncio.Event()

            async def read() -> None:
                async with aclosing(answerer.answer(question("?"))) as answer:
                    async for _ in answer:
                        heard.set()

            reading = asyncio.create_task(read())
            await heard.wait()
            reading.cancel()
            await asyncio.wait((reading,))
            assert reading.cancelled()
        await eventually(lambda: server.open == 0)


@pytest.mark.parametrize("is_trusted", [True, False])
async def test_only_a_server_whose_certificate_is_good_gets_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_trusted: bool
) -> None:
    try:
        certificate = make_certificate(tmp_path)
    except PartMissing as error:
        missing(error)
    if is_trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate.authority))
    async with asking(certificate=certificate) as (answerer, server):
        if is_trusted:
            assert text_of(await pieces(answerer, "[words 2]")) == "word0 word1 "
        else:
            with pytest.raises(Unavailable, match="CERTIFICATE_VERIFY_FAILED"):
                await pieces(answerer)
            assert server.calls == []


async def test_questions_at_once_are_bounded() -> None:
    async with asking(at_once=2) as (answerer, server):
        found = await asyncio.gather(*(pieces(answerer, "[words 3] [pace 0.03]") for _ in range(6)))
    assert all(each[-1] == counted(1, 3) for each in found)
    assert server.most_busy == 2


async def test_whoever_waits_too_long_for_a_turn_is_told() -> None:
    async with asking(at_once=1, first_token_s=0.2) as (answerer, _):
        first = answerer.answer(question("[pace 2]"))
        async with aclosing(first):
            await anext(first)
            with pytest.raises(Overloaded):
                await pieces(answerer)
        # The turn was given back.
        assert (await pieces(answerer))[-1] == counted(1, 6)


@pytest.mark.parametrize("kind", ["one event", "many lines", "garbage"])
async def test_a_stream_without_end_is_broken_off(kind: str) -> None:
    async def script(call: Call) -> None:
        await call.begin()
        await call.say("so far")
        await call.send(b"data: ")
        block = {"one event": b"x", "many lines": b"data: x\n", "garbage": b"data: x\n\n"}[kind] * 5_000
        while True:
            await call.send(block)

    async with asking(script) as (answerer, server):
        assert await pieces(answerer) == [Delta("so far"), openai.BROKEN_OFF]
        await eventually(lambda: server.open == 0)


async def test_what_a_server_says_of_a_failure_is_logged_short_and_without_the_key(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def script(call: Call) -> None:
        await call.whole(400, f"no, {KEY} {'x' * 100_000}".encode())

    caplog.set_level(logging.DEBUG)
    async with asking(script) as (answerer, _):
        (ending,) = await pieces(answerer)
    assert ending == openai.REFUSED
    assert "no, (the key) xxx" in caplog.text
    assert KEY not in caplog.text
    assert "x" * 201 not in caplog.text


async def test_what_is_wrong_with_a_server_is_one_line() -> None:
    async def script(call: Call) -> None:
        await call.whole(int(call.text == "Hi") * 200 or 500, b'{"choices": []}')

    async with asking(script) as (answerer, server):
        assert await answerer.fault() == ""
        server.models = ["large", f"{MODEL}:latest"]
        assert await answerer.fault() == ""
        server.models = [f"m{number}" for number in range(9)]
        assert await answerer.fault() == f"has no model {MODEL!r}; it has m0, m1, m2, m3, m4, …"
        server.key = "another"
        assert await answerer.fault() == "refuses the key of PUSHSSE_OPENAI_KEY (status 401)"
        server.key, server.models = "", None
        assert await answerer.fault() == ""
        assert server.calls[-1].body["max_tokens"] == 1
        server.script = lambda call: call.whole(404, b"")
        assert await answerer.fault() == "answers POST /v1/chat/completions with status 404"
        await server.down()
        with pytest.raises(Unavailable):
            await answerer.fault()


async def test_of_very_many_citations_an_answer_has_as_many_as_it_keeps() -> None:
    async def script(call: Call) -> None:
        await call.begin()
        await call.say("good")
        for start in range(0, 3_000, 1_000):
            cited = [{"url_citation": {"url": f"/{number}"}} for number in range(start, start + 1_000)]
            await call.delta(annotations=cited)
        await call.done()

    async with asking(script) as (answerer, _):
        sources = [SourcePart(f"/{number}", f"/{number}") for number in range(MAX_PARTS)]
        assert await pieces(answerer) == [Delta("good"), *sources, ANSWERED]


@pytest.mark.parametrize(
    "event",
    ["data: {}\n\n", "event: x\n\n", ": x\n\n", "data: word\n\n", "\n\n", 15 * "a\n", 30 * "\r", 15 * ":\n"],
    ids=repr,
)
async def test_no_stream_holds_the_loop(event: str) -> None:
    word = json.dumps({"choices": [{"delta": {"content": "word "}}]})

    async def script(call: Call) -> None:
        await call.begin()
        await call.send(event.replace("word", word).encode() * 20_000)
        await call.say("word ")
        await call.done()

    async with asking(script) as (answerer, _):
        reading = asyncio.create_task(pieces(answerer))
        turns_s: list[float] = []
        while not reading.done():
            began = time.thread_time()
            await asyncio.sleep(0)
            turns_s.append(time.thread_time() - began)
    assert text_of(reading.result()).endswith("word ")
    # Two aren't its own: the server sends all at once in this loop, too, and the collector may run.
    assert sorted(turns_s)[-3] < 0.03
