"""An answer while it grows: its deltas and parts, who joins in the middle, and what is lost on the way."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import pairwise

import msgspec
import pytest

from pushsse.api.identity import EVERY_SCOPE, Identity
from pushsse.backplane import Draft, HeardLive
from pushsse.backplane.answers import Grew, Growth
from pushsse.errors import BackplaneUnavailable
from pushsse.event import MAX_FRAME_BYTES
from pushsse.hub import HubParts
from pushsse.hub.opening import From, StreamOptions
from pushsse.kicks import Kicked
from pushsse.questions import (
    MAX_PARTS,
    Answered,
    By,
    DataPart,
    Part,
    Question,
    SourcePart,
    StatusPart,
    end_event,
    fit,
    is_url,
)
from pushsse.questions.answerers import Delta, Piece
from pushsse.questions.following import Following, Grown, Parted, QuestionEnded, Restarted, Update
from pushsse.questions.life import QuestionPace
from pushsse.questions.pieces import Pieces
from pushsse.questions.service import Asking, Questions
from tests.hub.running_hub import ListSink
from tests.questions.conftest import FAST, Nodes, Scripted, data, grown_text, running, running_hub
from tests.waiting import eventually

pytestmark = pytest.mark.anyio
BOT = By("bot", "test")
ANN = Identity("ann", EVERY_SCOPE)
WORDS = [f"wort{number} 事件😀 " for number in range(30)]
SOURCE = SourcePart("Invoices", "/account/invoices")
DATA = DataPart("order", {"id": 7, "of": ["a", None]})


@dataclass
class Told:
    """An answerer that says what it is told to."""

    pieces: asyncio.Queue[Piece] = field(default_factory=asyncio.Queue)

    def say(self, *pieces: Piece | str) -> None:
        for piece in pieces:
            self.pieces.put_nowait(Delta(piece) if isinstance(piece, str) else piece)

    async def script(self, question: Question) -> AsyncGenerator[Piece, None]:
        while True:
            piece = await self.pieces.get()
            yield piece
            if isinstance(piece, Answered):
                return


@dataclass
class Place:
    """A node with its hub, and an answerer that says what the test tells it."""

    nodes: Nodes
    service: Questions
    parts: HubParts
    told: Told
    draining: bool = False

    async def ask(self) -> Question:
        return await self.service.ask("ann", Asking("say it"))

    async def open(self, position: str = "") -> ListSink:
        sink = ListSink()
        async with self.parts.opener.opening("ann", From()) as opening:
            sink.subscriber = self.parts.opener.begin(opening, sink, StreamOptions())
        return sink

    async def answered(self) -> None:
        await self.nodes.until_told("ann", "answer")

    def following(self) -> Following:
        return Following(self.service, self.parts.hub, self, Kicked())


@asynccontextmanager
async def placed(nodes: Nodes, pace: QuestionPace = FAST) -> AsyncIterator[Place]:
    told = Told()
    service = nodes.node(Scripted(lambda question: told.script(question)), pace=pace)
    async with running_hub(nodes, service) as parts, running(service.run()):
        yield Place(nodes, service, parts, told)


@pytest.fixture
async def place(nodes: Nodes) -> AsyncIterator[Place]:
    async with placed(nodes) as found:
        yield found


def deltas(sink: ListSink) -> list[dict[str, object]]:
    return [json.loads(each) for each in sink.data("answer.delta")]


def text_of(sink: ListSink) -> str:
    return grown_text(deltas(sink))


async def until_text(sink: ListSink, text: str) -> None:
    await eventually(lambda: text_of(sink) == text)


async def until_ended(sink: ListSink) -> None:
    await eventually(lambda: sink.data("answer", "answer.error"))


def numbers(sink: ListSink) -> list[object]:
    return [delta["seq"] for delta in deltas(sink)]


async def test_every_device_gets_each_delta_once_and_in_order(place: Place) -> None:
    sinks = [await place.open(), await place.open()]
    await place.ask()
    for word in WORDS:
        place.told.say(word)
        await asyncio.sleep(0.005)
    place.told.say(Answered(BOT))
    for sink in sinks:
        await until_ended(sink)
        assert text_of(sink) == "".join(WORDS)
        assert numbers(sink) == list(range(1, len(numbers(sink)) + 1))
        assert sink.frames[-1][0] == "answer"


async def test_deltas_are_joined_to_so_many_a_second(place: Place) -> None:
    sink = await place.open()
    loop = asyncio.get_running_loop()
    await place.ask()
    began = loop.time()
    for word in WORDS * 5:
        place.told.say(word)
        await asyncio.sleep(0.002)
    place.told.say(Answered(BOT))
    await until_ended(sink)
    # The pace of these tests is 0.02 s; the first and the last delta don't wait.
    assert len(deltas(sink)) <= (loop.time() - began) / 0.02 + 3


@pytest.mark.parametrize(("store_s", "is_stored"), [(600.0, False), (0.01, True)])
async def test_the_database_gets_an_answer_now_and_then_and_at_its_end_but_no_delta(
    nodes: Nodes, store_s: float, is_stored: bool
) -> None:
    async with placed(nodes, replace(FAST, store_s=store_s)) as place:
        sink = await place.open()
        question = await place.ask()

        async def stored() -> str:
            found = await place.service.life.find(question.id)
            return "" if found is None else found.answer

        for at, word in enumerate(WORDS[:10]):
            place.told.say(word)
            await until_text(sink, "".join(WORDS[: at + 1]))
        if is_stored:
            await eventually(stored)
        else:
            assert await stored() == ""
        place.told.say(Answered(BOT))
        await until_ended(sink)
        assert await stored() == "".join(WORDS[:10])


async def test_a_device_that_joins_gets_one_delta_with_the_text_so_far_then_the_rest(place: Place) -> None:
    first = await place.open()
    await place.ask()
    for at, word in enumerate(WORDS[:20]):
        place.told.say(word)
        await until_text(first, "".join(WORDS[: at + 1]))
    joined = await place.open()
    await until_text(joined, "".join(WORDS[:20]))
    assert len(deltas(joined)) == 1
    assert deltas(joined)[0] | {"text": ""} == deltas(first)[-1] | {"from": 0, "text": ""}
    place.told.say(*WORDS[20:], Answered(BOT))
    for sink in (first, joined):
        await until_ended(sink)
        assert text_of(sink) == "".join(WORDS)
        assert [after - before for before, after in pairwise(map(int, map(str, numbers(sink))))] == [1] * (
            len(numbers(sink)) - 1
        )


async def test_devices_that_join_at_any_moment_miss_and_repeat_nothing(place: Place) -> None:
    await place.ask()
    sinks: list[ListSink] = []
    for word in WORDS:
        place.told.say(word)
        sinks.append(await place.open())
        await asyncio.sleep(0.003)
    place.told.say(Answered(BOT))
    for sink in sinks:
        await until_ended(sink)
        # `grown_text` refuses a gap; a repeat would begin at 0 once more.
        assert text_of(sink) in ("", "".join(WORDS))
        assert [delta["from"] for delta in deltas(sink)].count(0) <= 1


async def test_a_node_that_hears_of_an_answer_in_the_middle_reads_what_came_before(nodes: Nodes) -> None:
    """Nobody of the person's is there at first, on any node."""
    async with placed(nodes) as place:
        asked = await place.ask()
        place.told.say(*WORDS[:10])

        async def grown() -> bool:
            found = await nodes.backplane.so_far([asked.id])
            return asked.id in found and found[asked.id].text == "".join(WORDS[:10])

        await eventually(grown)
        sink = await place.open()
        place.told.say(*WORDS[10:], Answered(BOT))
        await until_ended(sink)
        assert text_of(sink) == "".join(WORDS)


async def test_deltas_that_were_lost_are_read_and_sent_in_one(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with placed(nodes) as place:
        sinks = [await place.open(), await place.open()]
        # What a stream reads when it opens would tell it of what is lost below.
        await eventually(lambda: not any("growing" in each.get_name() for each in asyncio.all_tasks()))
        await place.ask()
        place.told.say("one ")
        for sink in sinks:
            await until_text(sink, "one ")
        lost: list[object] = []
        deliver = place.parts.delivery.deliver

        def deaf(hearings: Sequence[object]) -> None:
            lost.extend(each for each in hearings if isinstance(each, HeardLive))
            deliver([each for each in hearings if not isinstance(each, HeardLive)])  # type: ignore[misc]

        monkeypatch.setattr(place.parts.delivery, "deliver", deaf)
        for word in ("two ", "three ", "four "):
            before = len(lost)
            place.told.say(word)
            while len(lost) == before:
                await asyncio.sleep(0.01)
        monkeypatch.undo()
        place.told.say("five")
        for sink in sinks:
            await until_text(sink, "one two three four five")
            assert [delta["text"] for delta in deltas(sink)][:2] == ["one ", "two three four five"]
            assert numbers(sink) == [1, 5]
        place.told.say(" six", Answered(BOT))
        for sink in sinks:
            await until_ended(sink)
            assert text_of(sink) == "one two three four five six"


async def test_a_slow_device_gets_what_it_missed_when_it_has_room_again(place: Place) -> None:
    quick, slow = await place.open(), await place.open()
    await place.ask()
    place.told.say("one ")
    await until_text(slow, "one ")
    slow.subscriber.paused()
    for text in ("one two ", "one two three "):
        place.told.say(text.split()[-1] + " ")
        await until_text(quick, text)
    assert text_of(slow) == "one "
    slow.resume()
    await until_text(slow, "one two three ")
    place.told.say("four", Answered(BOT))
    for sink in (quick, slow):
        await until_ended(sink)
        assert text_of(sink) == "one two three four"
    assert numbers(slow) == [1, 3, 4]


async def test_another_attempt_begins_at_zero_and_everything_before_is_void(nodes: Nodes) -> None:
    async def first(question: Question) -> AsyncGenerator[Piece, None]:
        yield Delta("the first attempt says 事件")
        yield SOURCE
        await asyncio.Event().wait()

    async def second(question: Question) -> AsyncGenerator[Piece, None]:
        assert question.attempt == 2
        await may_answer.wait()
        yield Delta("the ")
        yield DATA
        await asyncio.sleep(0.1)
        yield Delta("second")
        yield Answered(BOT)

    may_answer = asyncio.Event()
    dead = nodes.node(Scripted(first), name="dead")
    async with placed(nodes) as place:
        sink = await place.open()
        # Only its answering runs, so nothing renews its lease: as if its process hung.
        hanging = asyncio.create_task(dead.answering.run())
        place.told.script = second  # type: ignore[method-assign]
        asked = await dead.ask("ann", Asking("who answers?"))
        heir = nodes.node(Scripted(second), name="heir")
        await until_text(sink, "the first attempt says 事件")
        updates: list[Update] = []

        async def follow() -> None:
            async with aclosing(place.following().updates(asked, ANN)) as following:
                async for update in following:
                    updates.append(update)

        following = asyncio.create_task(follow())
        await eventually(lambda: any(isinstance(update, Parted) for update in updates))
        async with nodes.running(heir):
            await eventually(lambda: heir.answering.leased or place.service.answering.leased)
            # Whoever joins now gets nothing of the attempt that is void.
            joined = await place.open()
            may_answer.set()
            for each in (sink, joined):
                await until_ended(each)
                assert text_of(each) == "the second"
            await following
        hanging.cancel()
        await asyncio.gather(hanging, return_exceptions=True)
    began = [delta for delta in deltas(sink) if delta["seq"] == 1]
    assert [delta["from"] for delta in began] == [0, 0]
    assert deltas(joined)[0]["from"] == 0
    assert deltas(joined)[0]["seq"] == 1
    at = next(at for at, update in enumerate(updates) if isinstance(update, Restarted))
    assert [update.part for update in updates[:at] if isinstance(update, Parted)] == [SOURCE]
    assert [update.part for update in updates[at:] if isinstance(update, Parted)] == [DATA]
    assert "".join(update.text for update in updates[at:] if isinstance(update, Grown)) == "the second"


async def test_a_late_end_of_the_answer_before_ends_nothing_of_the_new_one(place: Place) -> None:
    sink = await place.open()
    asked = await place.ask()
    place.told.say("old", Answered(BOT))
    await until_ended(sink)
    old = await place.service.get("ann", asked.id)
    again = await place.service.regenerate("ann", asked.id)
    assert old is not None
    assert again is not None
    updates: list[Update] = []

    async def follow() -> None:
        async with aclosing(place.following().updates(again, ANN)) as following:
            async for update in following:
                updates.append(update)

    following = asyncio.create_task(follow())
    place.told.say("new ")
    await until_text(sink, "new ")
    await eventually(lambda: Grown("new ") in updates)
    await place.nodes.backplane.publish_to("ann", (Draft(end_event(old)),))
    await eventually(lambda: len(sink.data("answer")) == 2)
    place.told.say("one", Answered(BOT))
    await eventually(lambda: len(sink.data("answer")) == 3)
    assert text_of(sink) == "new one"
    await following
    assert [update.text for update in updates if isinstance(update, Grown)] == ["new ", "one"]


async def test_without_the_backplane_the_answer_still_comes_at_the_end(
    place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    grow = place.nodes.backplane.grow
    away: list[str] = []

    async def refuse(growth: Growth) -> Grew:
        away.append(growth.text)
        raise BackplaneUnavailable("away")

    sink = await place.open()
    await place.ask()
    place.told.say("one ")
    await until_text(sink, "one ")
    monkeypatch.setattr(place.nodes.backplane, "grow", refuse)
    place.told.say("two ")
    await eventually(lambda: len(away) >= 2)
    place.told.say("three ")
    monkeypatch.setattr(place.nodes.backplane, "grow", grow)
    # The same growth again, and then what came meanwhile: no number is left out.
    await until_text(sink, "one two three ")
    assert numbers(sink) == [1, 2, 3]
    assert len([record for record in caplog.records if "deltas wait" in record.getMessage()]) == 1
    monkeypatch.setattr(place.nodes.backplane, "grow", refuse)
    place.told.say("four", Answered(BOT))
    await until_ended(sink)
    assert json.loads(sink.data("answer")[0])["text"] == "one two three four"


async def test_a_backplane_that_has_forgotten_the_answer_gets_all_of_it(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = await place.open()
    asked = await place.ask()
    place.told.say("one ", SOURCE, "two ")
    await until_text(sink, "one two ")
    grow, forgotten = place.nodes.backplane.grow, [True]

    async def forget_once(growth: Growth) -> Grew:
        return Grew.MISSING if not growth.whole and forgotten and forgotten.pop() else await grow(growth)

    monkeypatch.setattr(place.nodes.backplane, "grow", forget_once)
    place.told.say("three")
    await until_text(sink, "one two three")
    assert not forgotten
    found = (await place.nodes.backplane.so_far([asked.id]))[asked.id]
    assert (found.text, len(found.parts)) == ("one two three", 1)


# Parts


async def test_parts_come_in_their_places_and_are_kept_but_for_the_status(place: Place) -> None:
    sink = await place.open()
    asked = await place.ask()
    place.told.say(StatusPart("looking up your order…"))
    await eventually(lambda: deltas(sink))
    place.told.say("See ", SOURCE, DATA, "there.")
    await until_text(sink, "See there.")
    joined = await place.open()
    await until_text(joined, "See there.")
    place.told.say(StatusPart("almost"))
    late = await place.open()
    await eventually(lambda: [part_of(delta) for delta in deltas(late)][-1:] == ["status"])
    assert [part_of(delta) for delta in deltas(late)] == ["", "source", "data", "status"]
    place.told.say(Answered(BOT))
    await until_ended(sink)
    parts = [part_of(delta) for delta in deltas(sink)]
    assert parts == ["status", "", "source", "data", "", "status"]
    assert [delta["from"] for delta in deltas(sink)] == [0, 0, 4, 4, 4, 10]
    assert all(not delta["text"] for delta in deltas(sink) if "part" in delta)
    assert deltas(sink)[2]["part"] == {"type": "source", "title": "Invoices", "url": "/account/invoices"}
    assert deltas(sink)[3]["part"] == {"type": "data", "name": "order", "data": {"id": 7, "of": ["a", None]}}
    # Who joined after the status got the text in one, and each part that is kept.
    assert [part_of(delta) for delta in deltas(joined)][:3] == ["", "source", "data"]
    end = json.loads(sink.data("answer")[0])
    assert [part["type"] for part in end["parts"]] == ["source", "data"]
    found = await place.service.get("ann", asked.id)
    assert found is not None
    assert found.parts == (SOURCE, DATA)


async def test_a_follower_is_told_the_parts_once_wherever_it_begins(place: Place) -> None:
    asked = await place.ask()

    async def follow() -> list[Update]:
        async with aclosing(place.following().updates(asked, ANN)) as following:
            return [update async for update in following]

    followers = [asyncio.create_task(follow())]
    sink = await place.open()
    place.told.say("See ", SOURCE, "there.")
    await until_text(sink, "See there.")
    followers.append(asyncio.create_task(follow()))
    await asyncio.sleep(0.1)
    place.told.say(DATA, Answered(BOT, parts=(SourcePart("Late", "/late"),)))
    followers.append(asyncio.create_task(follow()))
    for updates in await asyncio.gather(*followers):
        assert "".join(update.text for update in updates if isinstance(update, Grown)) == "See there."
        parts = [update.part for update in updates if isinstance(update, Parted)]
        assert parts == [SOURCE, DATA, SourcePart("Late", "/late")]
        assert not any(isinstance(update, Restarted) for update in updates)
        assert isinstance(updates[-1], QuestionEnded)


def part_of(delta: dict[str, object]) -> object:
    part = delta.get("part", {})
    assert isinstance(part, dict)
    return part.get("type", "")


@pytest.mark.parametrize(
    ("part", "why"),
    [
        (StatusPart("x" * 201), "200"),
        (StatusPart("\ud800"), "JSON"),
        (SourcePart("x" * 201, "/a"), "200"),
        (SourcePart("a", "javascript:alert(1)"), "URL"),
        (SourcePart("a", "java\nscript:alert(1)"), "URL"),
        (SourcePart("a", "data:text/html,x"), "URL"),
        (SourcePart("a", "//elsewhere/x"), "URL"),
        (SourcePart("a", "http://[x"), "URL"),
        (SourcePart("a", ""), "URL"),
        (SourcePart("a", "/" + "x" * 2_000), "URL"),
        (DataPart("a b", 1), "name"),
        (DataPart("", 1), "name"),
        (DataPart("x" * 65, 1), "name"),
        (DataPart("a", "x" * 16_400), "bytes"),
        (DataPart("a", {"x": object()}), "JSON"),
        (DataPart("a", "\ud800"), "JSON"),
        (DataPart("a", "\x00"), "NUL"),
        (DataPart("a", msgspec.json.decode(b"[" * 70 + b"]" * 70)), "deep"),
    ],
)
async def test_a_part_that_breaks_a_rule_is_left_out_and_logged(
    part: Part, why: str, question: Question, caplog: pytest.LogCaptureFixture
) -> None:
    pieces = Pieces(question)
    for piece in (Delta("a"), part, Delta("b")):
        pieces.add(piece)
    assert len(caplog.records) == 1
    assert why in caplog.records[0].getMessage()
    assert "".join(growth.text for growth in pieces.growths()) == "ab"
    assert pieces.told.parts == ()


async def test_of_very_many_parts_that_are_left_out_few_are_logged(
    question: Question, caplog: pytest.LogCaptureFixture
) -> None:
    pieces = Pieces(question)
    for number in range(1_000):
        pieces.add(SourcePart("a", f"/{number}"))
    assert len(pieces.parts) == MAX_PARTS
    assert 1 <= len(caplog.records) <= 10


@pytest.mark.parametrize(
    "url", ["/a", "a/b?c=d#e", "?x", "#x", "https://example.com/ä", "HTTP://example.com", "../up", "./a:b"]
)
def test_pages_may_link_to_what_is_http_or_relative(url: str) -> None:
    assert is_url(url)
    assert isinstance(fit(SourcePart("a", url)), bytes)


@pytest.fixture
def question() -> Question:
    now = datetime.now(UTC)
    return Question(
        id="01ARZ3NDEKTSV4RRFFQ69G5FAV",
        user="ann",
        conversation="c",
        text="?",
        status="answering",
        asked_at=now,
        updated_at=now,
        deadline_at=now,
    )


async def test_only_so_many_parts_are_kept_and_only_the_last_status_is_told(
    question: Question, caplog: pytest.LogCaptureFixture
) -> None:
    pieces = Pieces(question)
    for number in range(MAX_PARTS + 3):
        pieces.add(DataPart("n", number))
    for number in range(9):
        pieces.add(StatusPart(f"step {number}"))
    growths = list(pieces.growths())
    assert sum(len(growth.parts) for growth in growths) == MAX_PARTS
    assert len(caplog.records) == 3
    assert growths[-1].status == b'{"type":"status","text":"step 8"}'
    seqs = [data(delta)["seq"] for growth in growths for delta in growth.publications]
    assert seqs == list(range(1, MAX_PARTS + 2))
    assert [growth.after for growth in growths][1:] == [growth.seq for growth in growths][:-1]


@pytest.mark.parametrize("text", ["x" * 200_000, "事件😀" * 60_000, '"\x01\n' * 60_000])
async def test_a_long_text_has_as_few_deltas_as_frames_hold(question: Question, text: str) -> None:
    pieces = Pieces(question)
    pieces.add(Delta(text))
    told = [delta for growth in pieces.growths() for delta in growth.publications]
    assert grown_text([data(delta) for delta in told]) == text
    assert all(len(delta.frame()) < MAX_FRAME_BYTES for delta in told)
    encoded = len(msgspec.json.encode(text))
    assert len(told) <= encoded // (MAX_FRAME_BYTES - 4096) + 1


async def test_parts_that_have_no_room_in_the_event_are_in_the_call(place: Place) -> None:
    sink = await place.open()
    asked = await place.ask()
    many = tuple(DataPart("n", "x" * 3_000) for _ in range(20))
    place.told.say("t" * 40_000, *many, Answered(BOT))
    await until_ended(sink)
    end = json.loads(sink.data("answer")[0])
    assert end["truncated"] is True
    assert 3 < len(end["parts"]) < 20
    found = await place.service.get("ann", asked.id)
    assert found is not None
    assert found.parts == many
