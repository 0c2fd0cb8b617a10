"""Whatever a producer, a person or an answerer writes: clients read just that, and no event that nobody sent.

Two parsers read the frames, one of them word by word as the standard has it; so does a browser.
"""

import asyncio
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from httpx_sse import EventSource
from hypothesis import assume, given
from hypothesis import strategies as st

from pushsse import event
from pushsse.backplane.answers import Place, SoFar, deltas_since, units
from pushsse.errors import InvalidInput
from pushsse.event import MAX_FRAME_BYTES, Publication
from pushsse.position import Mark, Position
from pushsse.questions import Answered, By, Link, Question, clean, end_event, status_event
from pushsse.questions.answerers import kafka
from pushsse.stream.frame import frame
from tests.deployed.chromium import chromium
from tests.hardening.event_stream import Dispatched, read
from tests.hardening.fuzz import fuzz, texts, values
from tests.serving import LIMIT_S, Running, serving

AT = datetime(2026, 11, 23, 8, tzinfo=UTC)
PLACE = Position(Mark("abcd", 7), Mark("efgh", 9))
TYPE = re.compile(r"[A-Za-z0-9_.-]{1,64}")
TYPES = st.sampled_from(["news", "alarm", "order.paid", "x" * 64])


class Large(str):
    """A text near a frame's size; an example that fails shows its beginning."""

    def __repr__(self) -> str:
        return f"{self[:40]!r}, {len(self)} characters"


class Body(bytes):
    """The bytes of a body; an example that fails shows its beginning."""

    def __repr__(self) -> str:
        return repr(self[:2000])


def whole(body: bytes) -> object:
    """JSON with each number as it was written, since a client would see another one."""
    return json.loads(
        body, parse_int=lambda text: ("number", text), parse_float=lambda text: ("number", text)
    )


LARGE = st.builds(
    lambda of, size: Large((of or "x") * (size // len(of or "x"))),
    texts(3, sound=True),
    st.integers(5_000, 50_000),
)
RIGHT: Mapping[str, st.SearchStrategy[object]] = {
    "type": TYPES,
    "message": values(sound=True) | LARGE,
    "to": st.sampled_from(["all", {"users": ["ann", "bo"]}, {"users": ["張三", "ann"]}]),
    "id": st.sampled_from(["order-981-paid", "張三", "1" * 128, ": data"]) | st.uuids().map(str),
    "desc": texts(sound=True),
    "ts": st.sampled_from(["2026-11-23T08:00:00Z", "2016-12-31T23:59:60Z"]),
    "campaign": texts(4, sound=True).map(lambda text: text[:128]),
}
WRONG: Mapping[str, st.SearchStrategy[object]] = {
    "type": texts(4) | st.sampled_from(["ready", "message", "pushsse.x", "news\n"]) | values(),
    "message": values(),
    "to": st.builds(lambda name: {"users": ["ann", name]}, texts(3)) | values(),
    "id": texts(4) | values(),
    "desc": texts() | values(),
    "ts": texts(2) | values(),
    "campaign": texts() | values(),
    "key": texts() | values(),
    "no such member\n": values(),
}


@st.composite
def members(draw: st.DrawFn, *, right: bool = False) -> dict[str, object]:
    """Events, every other one with something that may be wrong."""
    optional = draw(st.sets(st.sampled_from(["id", "desc", "ts", "campaign"])))
    loaded = {name: draw(RIGHT[name]) for name in ("type", "message", "to", *sorted(optional))}
    if not right and draw(st.booleans()):
        name = draw(st.sampled_from(sorted(WRONG)))
        loaded[name] = draw(WRONG[name])
    return loaded


@st.composite
def bodies(draw: st.DrawFn) -> Body:
    """The JSON of such events, written in odd ways; some of it cut into by other bytes."""
    loaded = draw(members())
    blank = draw(st.sampled_from(["", " ", "\n", "\r\n", "\r", "\t\n\n"]))
    text = json.dumps(loaded, ensure_ascii=draw(st.booleans()), separators=(f",{blank}", f"{blank}:{blank}"))
    body = (blank + text + blank).encode(errors="surrogatepass")
    if draw(st.integers(0, 4)) == 0:
        at = draw(st.integers(0, len(body)))
        body = (
            body[:at] + draw(texts(3)).encode(errors="surrogatepass") + body[at + draw(st.integers(0, 3)) :]
        )
    return Body(body)


def read_by_both(body: bytes) -> list[Dispatched]:
    """What two parsers read, which is the same."""
    found = read(body).events
    response = httpx.Response(200, headers={"content-type": "text/event-stream"}, content=body)
    others = [Dispatched(each.event, each.data, each.id) for each in EventSource(response).iter_sse()]
    assert others == found
    return found


def only(publication: Publication, *, name: str) -> Any:
    """The data of a publication, which is one event and no other, whatever stands before and after it."""
    for named in (True, False):
        made = frame(publication, PLACE, named=named)
        assert len(made) <= MAX_FRAME_BYTES
        shown = name if named or not publication.switchable else "message"
        own = Dispatched(shown, made.partition(b"data: ")[2].partition(b"\nid: ")[0].decode(), str(PLACE))
        ping = b"event: ping\ndata: {}\nid: 0\n\n"
        beside = Dispatched("ping", "{}", "0")
        assert read_by_both(ping + made + ping) == [beside, own, beside]
    return whole(own.data.encode())


def test_what_a_producer_writes_is_one_event_or_is_refused() -> None:
    outcomes: Counter[str] = Counter()

    @fuzz(250)
    @given(bodies(), st.booleans())
    def check(body: bytes, strangers: bool) -> None:
        # As Kafka's records are read, and as bodies are.
        try:
            found = event.decode(body, ignored=(lambda _: None) if strangers else None)
            made = event.publication(found, event_id=found.id or "topic-0-1", at=AT, max_age_s=60)
        except InvalidInput as error:
            outcomes["refused"] += 1
            # A problem document, and a header of the dead letter, are made of it.
            str(error).encode()
            return
        outcomes["accepted"] += 1
        sent: Any = whole(body.removeprefix(b"\xef\xbb\xbf"))
        assert TYPE.fullmatch(found.type)
        data = only(made, name=sent["type"])
        assert set(data) == {"id", "type", "message", "desc", "ts"}
        assert data["type"] == sent["type"]
        assert data["message"] == sent["message"]
        assert data["desc"] == sent.get("desc", "")
        assert data["id"] == sent.get("id", "topic-0-1")

    check()
    assert min(outcomes["accepted"], outcomes["refused"]) > 30, outcomes


def test_what_is_right_is_not_refused() -> None:
    @fuzz(60)
    @given(members(right=True))
    def check(loaded: dict[str, object]) -> None:
        body = json.dumps(loaded, ensure_ascii=False).encode()
        assume(len(body) < 40_000)
        found = event.decode(body)
        event.publication(found, event_id="1", at=AT, max_age_s=60)

    check()


def asked(text: str, answer: str = "", **more: Any) -> Question:
    """A question of somebody's, with an answer."""
    return Question(
        id="0" * 26, user="ann", conversation="c", text=text, status=more.pop("status", "answered"),
        asked_at=AT, updated_at=AT, deadline_at=AT, answer=answer, **more,
    )  # fmt: skip


def test_what_people_ask_and_answerers_answer_is_one_event_or_is_refused() -> None:
    @fuzz(80)
    @given(texts(), texts() | LARGE, texts(), st.lists(texts(3), max_size=30))
    def check(text: str, answer: str, name: str, suggestions: list[str]) -> None:
        text, name = clean(text), clean(name)
        # As an answerer in this process may give them, and one over Kafka.
        for given_ in (answer, *_from_kafka(answer)):
            answer = clean(given_)
            links = tuple(Link(each, each) for each in map(clean, suggestions))
            question = asked(
                text, answer, by=By("bot", name), links=links, suggestions=tuple(map(clean, suggestions))
            )
            assert only(status_event(question), name="question")["text"] == text
            data = only(end_event(question), name="answer")
            assert data["by"]["name"] == name
            assert answer.startswith(data["text"])
            assert data["truncated"] == (data["text"] != answer)
            at, grown = 0, ""
            for delta in deltas_since(Place(), SoFar(1, 99, answer), question="q", user="ann"):
                piece = only(delta, name="answer.delta")
                assert piece["from"] == ("number", str(at))
                at += units(piece["text"])
                grown += piece["text"]
            assert grown == answer
            failed = asked(text, status="failed", error_code="answerer_error", error_detail=answer[:1000])
            assert only(end_event(failed), name="answer.error")["detail"] == answer[:1000]

    check()


def _from_kafka(text: str) -> list[str]:
    """What a record that says this text is read as; nothing where it is refused."""
    body = json.dumps({"question": "1", "text": text}).encode()
    try:
        says = kafka.read(body)
    except InvalidInput:
        assert text != clean(text)
        return []
    assert says.text == text
    return [str(Answered(By("bot", ""), text).text)]


@dataclass
class Ear:
    """A node, and the ids of the questions that were asked on it, whose answers may come late."""

    runner: asyncio.Runner
    node: Running
    questions: set[str] = field(default_factory=set)

    def run(self, coroutine: Any) -> Any:
        return self.runner.run(coroutine)


@pytest.fixture
def ear(tmp_path: Path) -> Iterator[Ear]:
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        serving_ = serving(tmp_path, questions_per_minute=0, log_bytes_per_minute=0, heartbeat_s=600.0)
        node = runner.run(stack.enter_async_context(serving_))
        try:
            yield Ear(runner, node)
        finally:
            runner.run(stack.aclose())


@dataclass(frozen=True)
class Post:
    """One call that writes what it is given into streams."""

    path: str
    content: bytes
    kind: str

    def __repr__(self) -> str:
        return f"{self.kind} to {self.path}: {self.content[:500]!r}"


def posts() -> st.SearchStrategy[Post]:
    """Every way in by HTTP."""
    return (
        st.builds(lambda body: Post("/v1/events", body, "application/json"), bodies())
        | st.builds(
            lambda two: Post("/v1/events", b"\n".join(two), "application/x-ndjson"), st.lists(bodies())
        )
        | st.builds(
            lambda kind, to, text: Post(
                f"/v1/events?type={quote(kind, errors='replace')}&to={quote(to, errors='replace')}",
                text.encode(errors="surrogatepass"),
                "text/plain",
            ),
            TYPES,
            st.just("ann") | st.just("all") | texts(3),
            texts(sound=True) | texts(),
        )
        | st.builds(
            lambda text: Post(
                "/v1/questions?user=ann", json.dumps({"text": text}).encode(), "application/json"
            ),
            texts(sound=True) | texts(),
        )
    )


def test_over_http_a_stream_has_what_was_accepted_and_nothing_else(ear: Ear) -> None:
    ends = count(1)
    outcomes: Counter[int | str] = Counter()

    @fuzz(40)
    @given(st.lists(posts(), min_size=1, max_size=6))
    def check(given_: list[Post]) -> None:
        ear.run(heard(ear, given_, f"end-{next(ends)}", outcomes))

    check()
    assert outcomes[202] > 20
    assert outcomes[400] + outcomes[422] > 20, outcomes
    assert set(outcomes) <= {202, 400, 422, "delivered"}
    assert outcomes["delivered"] > 20


async def heard(ear: Ear, given_: list[Post], end: str, outcomes: Counter[int | str]) -> None:
    """Posts, and reads a stream up to a last event: events for each id that was given back, and no other."""
    node, expected = ear.node, set[str]()
    async with node.stream("ann") as stream, node.stream("ann", "named=0") as plain:
        await stream.ready()
        await plain.ready()
        for post in given_:
            reply = await node.http.post(post.path, content=post.content, headers={"content-type": post.kind})
            outcomes[reply.status_code] += 1
            if reply.status_code != 202:
                assert reply.headers["content-type"] == "application/problem+json"
                continue
            if "ids" in reply.json():
                expected |= set(reply.json()["ids"])
            else:
                ear.questions.add(reply.json()["id"])
        await node.publish("end", end, "ann")
        for each in (stream, plain):
            async with asyncio.timeout(LIMIT_S):
                while json.dumps(end).encode() not in each.raw:
                    await each.next()
            body = bytes(each.raw)
            found = read_by_both(body[: body.rindex(b"\n\n") + 2])
            ids = []
            for one in found:
                data = json.loads(one.data)
                if one.type in ("question", "answer.delta", "answer", "answer.error"):
                    assert {data.get("id"), data.get("question")} & ear.questions
                elif one.type in ("ready", "ping"):
                    assert "message" not in data
                elif data["type"] != "end":
                    assert one.type == (data["type"] if each is stream else "message")
                    ids.append(data["id"])
            assert len(set(ids)) == len(ids)
            assert set(ids) <= expected
            outcomes["delivered"] += len(ids)


LISTEN = """(() => {
  window.told = {named: [], plain: []};
  const listen = (source, told, types) => {
    const tell = (event) => told.push([event.type, event.data, event.lastEventId]);
    for (const type of [...types, "message", "evil"]) source.addEventListener(type, tell);
  };
  const url = "/v1/stream?user=ann&last_event_id=" + START;
  listen(new EventSource(url), window.told.named, TYPES);
  listen(new EventSource(url + "&named=0"), window.told.plain, TYPES);
})()"""


@pytest.mark.real
@pytest.mark.anyio
async def test_a_browser_reads_what_was_sent(tmp_path: Path) -> None:
    batch: list[dict[str, object]] = []

    @fuzz(100)
    @given(members(right=True))
    def collect(loaded: dict[str, object]) -> None:
        loaded.pop("ts", None)  # It would have expired.
        batch.append(loaded | {"id": f"event-{len(batch)}", "to": "all"})

    collect()
    async with serving(tmp_path) as node, chromium(tmp_path / "chromium") as browser:
        sent: list[tuple[object, Any]] = []
        start = (await node.http.get("/v1/events?user=ann")).json()["position"]
        for loaded in batch:
            body = json.dumps(loaded, ensure_ascii=False).encode()
            reply = await node.http.post("/v1/events", content=body)
            assert reply.status_code in (202, 422)
            if reply.status_code == 202:
                sent.append((loaded["type"], whole(body)))
        assert len(sent) > 50
        async with node.stream("ann", f"last_event_id={start}") as stream:
            await stream.ready()
            await asyncio.wait_for(stream.messages(len(sent)), LIMIT_S)
            read_here = [each for each in read(bytes(stream.raw)).events if each.type != "ready"]
        await browser.open(f"{node.url}/livez")
        types = json.dumps(sorted({str(type_) for type_, _ in sent}))
        await browser.run(LISTEN.replace("TYPES", types).replace("START", json.dumps(start)))
        for kind in ("named", "plain"):
            await browser.until(f"window.told.{kind}.length >= {len(sent)}")
            told = [Dispatched(*each) for each in await browser.run(f"window.told.{kind}")]
            assert [each.data for each in told] == [each.data for each in read_here]
            assert [each.last_event_id for each in told] == [each.last_event_id for each in read_here]
            for each, (type_, event_) in zip(told, sent, strict=True):
                assert each.type == (type_ if kind == "named" else "message")
                data: Any = whole(each.data.encode())
                assert data["message"] == event_["message"]
                assert data["desc"] == event_.get("desc", "")
