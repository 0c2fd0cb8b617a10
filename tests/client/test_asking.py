"""Questions, switches and what was read, with pushsse.js in Chromium."""

from collections.abc import AsyncIterator
from itertools import pairwise

import pytest

from tests.client import answering
from tests.client.conftest import World, token
from tests.deployed.chromium import Browser
from tests.waiting import eventually

pytestmark = [pytest.mark.real, pytest.mark.anyio]
# Follows an answer to its end, and keeps all that it was.
FOLLOW = """
globalThis.follow = async (asked) => {
  globalThis.asked = asked;
  globalThis.was = [];
  globalThis.end = "";
  try {
    for await (const answer of asked) was.push(answer);
    globalThis.end = was.at(-1).status;
  } catch (error) {
    globalThis.end = `${error.name} ${error.status} ${error.code}`;
  }
};
"""


@pytest.fixture(autouse=True)
async def pace(world: World) -> AsyncIterator[None]:
    answering.go_on.clear()
    yield
    answering.go_on.set()


async def ask(tab: Browser, text: str, more: str = "") -> None:
    await tab.run(f"{FOLLOW} void follow(push.ask('{text}'{more}))")


async def test_an_answer_grows_up_to_its_end_also_across_a_cut(world: World) -> None:
    tab = await world.tab()
    await ask(tab, "wait: one two three")
    await tab.until("was.at(-1)?.doing === 'thinking'")
    assert await tab.run("was.at(-1).text") == "one "
    world.gate.cut()
    await tab.until("push.state === 'connecting'")
    answering.go_on.set()
    await tab.until("end === 'answered'")
    assert await tab.run("was.at(-1).text") == "one two three "
    assert await tab.run("was.at(-1).parts") == [{"type": "source", "title": "A book", "url": "/book"}]
    assert await tab.run("was.at(-1).by.name") == "tests.client.answering"
    # It only grows.
    texts = await tab.run("was.map((each) => each.text)")
    assert all(later.startswith(earlier) for earlier, later in pairwise(texts))
    assert await tab.run("was.at(-1).doing") == ""


async def test_a_tab_that_follows_asks_as_well_and_one_that_joins_has_what_grows(world: World) -> None:
    first, second = await world.tab(), await world.tab()
    await ask(second, "wait: one two", ", { conversation: 'together' }")
    await second.until("was.at(-1)?.text === 'one '")
    assert await second.run("was.at(-1).conversation") == "together"
    third = await world.tab()
    answering.go_on.set()
    for tab in (first, second, third):
        await tab.until("told.text === 'one two '")
    await second.until("end === 'answered'")
    await world.until_streams(1)


async def test_it_can_be_stopped_and_keeps_what_has_come(world: World) -> None:
    tab = await world.tab()
    await ask(tab, "wait: one two")
    await tab.until("was.at(-1)?.text === 'one '")
    await tab.run("asked.stop()")
    await tab.until("end !== ''")
    assert await tab.run("[end, was.at(-1).text]") == ["cancelled", "one "]


async def test_what_went_wrong_is_an_error_with_its_code(world: World) -> None:
    tab = await world.tab()
    await ask(tab, "fail: please")
    await tab.until("end !== ''")
    assert await tab.run("end") == "PushError 0 answerer_error"
    await ask(tab, "")
    await tab.until("end !== ''")
    assert await tab.run("end") == "PushError 422 invalid"
    await ask(tab, "wait: one two")
    await tab.until("was.at(-1)?.text === 'one '")
    await tab.run("push.close(); 0")
    await tab.until("end !== ''")
    assert await tab.run("end") == "PushError 0 closed"


async def test_a_question_is_asked_once_however_often_it_has_to_be_sent(world: World) -> None:
    tab = await world.tab()
    world.gate.loses = {"/v1/questions"}
    await ask(tab, "say: once")
    await tab.until("end === 'answered'")
    assert world.gate.count("/v1/questions") == 2
    headers = {"Authorization": f"Bearer {token('ann')}"}
    listed = (await world.node.http.get("/v1/questions", headers=headers)).json()["questions"]
    assert [each["text"] for each in listed].count("say: once") == 1


async def test_an_answer_that_came_while_no_line_was_there_is_found(world: World) -> None:
    tab = await world.tab(listens=False)
    # The question is asked before there is a position, and answered before the stream begins.
    world.gate.withholds = True
    await tab.run("void listen({ share: false }); 0")
    await ask(tab, "say: early")
    await tab.run("asked.id")
    headers = {"Authorization": f"Bearer {token('ann')}"}
    question = await tab.run("asked.id")

    async def is_answered() -> bool:
        reply = await world.node.http.get(f"/v1/questions/{question}", headers=headers)
        return bool(reply.json()["status"] == "answered")

    await eventually(is_answered)
    world.gate.withholds = False
    world.gate.cut()
    await tab.until("end === 'answered'")
    assert await tab.run("was.at(-1).text") == "early "


async def test_switches_are_read_and_changed_and_all_tabs_hear_of_it(world: World) -> None:
    first, second = await world.tab(), await world.tab()
    await world.publish("so that the type is known")
    await first.until("told.seen.length === 1")
    for tab in (first, second):
        await tab.run(
            "globalThis.changes = []; push.on('preferences', ({ types }) => changes.push(types)); 0"
        )

    async def known() -> bool:
        return bool(await first.run("push.preferences.get().then(({ types }) => types.length)"))

    await eventually(known)
    changed = await second.run("push.preferences.set({ types: { news: false } }).then(({ types }) => types)")
    assert [(each["name"], each["enabled"]) for each in changed] == [("news", False)]
    for tab in (first, second):
        await tab.until("changes.length === 1")
        assert await tab.run("changes") == [{"news": False}]
    await first.run("push.preferences.set({ types: { news: true } })")
    refused = "push.preferences.set({ types: { nothing: true } }).catch((error) => error.errors.length)"
    assert await first.run(refused) == 1


async def test_what_is_read_in_one_tab_is_read_in_all(world: World) -> None:
    first, second = await world.tab(), await world.tab()
    for tab in (first, second):
        await tab.run("globalThis.acks = []; push.on('ack', (ack) => acks.push(ack)); 0")
    for ack in ("read(['a', 'b'])", "readUpTo()", "clicked(['a'])"):
        await second.run(f"push.acks.{ack}")
    for tab in (first, second):
        await tab.until("acks.length === 3")
        told = await tab.run("acks")
        assert told[0] == {"state": "read", "ids": ["a", "b"]}
        assert set(told[1]) == {"state", "up_to"}
        assert told[2] == {"state": "clicked", "ids": ["a"]}
