"""pushsse.js in several tabs of Chromium: one stream for all, whichever of them goes."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable

import pytest

from tests.client.conftest import LOSES, LOSES_NOTHING, World
from tests.deployed.chromium import INSECURE_HOST, Browser
from tests.waiting import eventually

pytestmark = [pytest.mark.real, pytest.mark.anyio]
# In a secure context a Web Lock says who leads, elsewhere a lease in localStorage.
BOTH = pytest.mark.parametrize("host", ["127.0.0.1", INSECURE_HOST])
# Until another tab has noticed, has a stream, and an event has come: 2 s, and what a busy machine needs.
TAKEOVER_S = 4.0


async def seen_by(world: World, tabs: list[Browser], wanted: list[object]) -> None:
    for tab in tabs:
        await tab.until(f"told.seen.length >= {len(wanted)}")
        assert await tab.run("told.seen") == wanted


@BOTH
async def test_all_tabs_have_one_stream_and_go_on_when_the_one_that_leads_is_closed(
    world: World, host: str
) -> None:
    tabs = [await world.tab(host) for _ in range(4)]
    assert await tabs[0].run("isSecureContext") == (host != INSECURE_HOST)
    # A tab that joins has the state at once, and no stream of its own.
    await world.until_streams(1)
    await world.publish(1)
    await seen_by(world, tabs, [1])
    closed = tabs.pop(0)
    world.tabs.remove(closed)
    await closed.close()
    began = time.monotonic()
    await world.publish(2)
    await seen_by(world, tabs, [1, 2])
    assert time.monotonic() - began < TAKEOVER_S
    await world.until_streams(1)
    for tab in tabs:
        assert await tab.run("told.gaps") == 0


@BOTH
async def test_another_tab_leads_when_one_is_frozen_and_that_one_follows_when_it_thaws(
    world: World, host: str
) -> None:
    first, second, third = [await world.tab(host) for _ in range(3)]
    # It stops in the middle of what it does, as a page does that the system has frozen.
    await first.call("Debugger.enable")
    await first.call("Debugger.pause")
    began = time.monotonic()
    await world.publish(1)
    await seen_by(world, [second, third], [1])
    took = time.monotonic() - began
    await world.publish(2)
    await first.call("Debugger.disable")
    await seen_by(world, [first, second, third], [1, 2])
    # The one that was frozen has let go of its stream.
    await world.until_streams(1)
    for tab in (first, second, third):
        assert await tab.run("told.gaps") == 0
    assert took < TAKEOVER_S


async def test_another_tab_leads_when_one_has_crashed(world: World) -> None:
    first, second = await world.tab(), await world.tab()
    first.send("Page.crash")
    began = time.monotonic()
    await world.publish(1)
    await seen_by(world, [second], [1])
    assert time.monotonic() - began < TAKEOVER_S


async def test_nothing_is_lost_or_comes_twice_while_events_flow_and_tabs_come_and_go(world: World) -> None:
    tabs = [await world.tab(user="'flo'") for _ in range(3)]
    published = 0

    async def publish(count: int) -> None:
        nonlocal published
        for _ in range(count):
            published += 1
            await world.publish(published - 1, "flo")

    async def close_first() -> None:
        closed = tabs.pop(0)
        world.tabs.remove(closed)
        await closed.close()

    async with asyncio.TaskGroup() as group:
        for disturb in (close_first, close_first, cut(world)):
            group.create_task(publish(20))
            await asyncio.sleep(0.02)
            await disturb()
            tabs.append(await world.tab(user="'flo'"))
    last = tabs[0]
    await last.until(f"told.seen.length >= {published}")
    assert sorted(await last.run("told.seen")) == list(range(published))
    for tab in tabs[1:]:
        # From where it joined, and each once.
        await tab.until(f"push.position === {json.dumps(await last.run('push.position'))}")
        seen = await tab.run("told.seen")
        assert len(set(seen)) == len(seen)
        assert await tab.run("told.gaps") == 0
    await world.until_streams(1)


def cut(world: World) -> Callable[[], Awaitable[None]]:
    async def cuts() -> None:
        world.gate.cut()

    return cuts


async def test_tabs_of_different_people_never_share(world: World) -> None:
    ann, bo = await world.tab(), await world.tab(user="'bo'")
    await world.until_streams(2)
    await world.publish("for ann", "ann")
    await world.publish("for bo", "bo")
    await seen_by(world, [ann], ["for ann"])
    await seen_by(world, [bo], ["for bo"])
    assert await ann.run("push.user") == "ann"
    assert await bo.run("push.user") == "bo"


async def test_a_tab_that_comes_with_a_snapshot_has_what_the_others_had_before(world: World) -> None:
    first = await world.tab()
    before = await first.run("push.position")
    for number in range(3):
        await world.publish(number)
    await seen_by(world, [first], [0, 1, 2])
    second = await world.tab(position=json.dumps(before))
    await world.publish(3)
    await seen_by(world, [first, second], [0, 1, 2, 3])
    await world.until_streams(1)


async def test_a_tab_that_begins_in_the_past_has_it_though_another_leads(world: World) -> None:
    first = await world.tab(user="'pat'")
    for number in range(3):
        await world.publish(number, "pat")
    await seen_by(world, [first], [0, 1, 2])
    second = await world.tab(user="'pat'", since="'1h'")
    await world.publish(3, "pat")
    await seen_by(world, [second], [0, 1, 2, 3])
    await world.until_streams(1)


async def test_a_tab_that_missed_what_the_others_heard_reads_it_by_itself(world: World) -> None:
    first, second = await world.tab(), await world.tab()
    await first.run(LOSES)
    await world.publish(1)
    await seen_by(world, [first, second], [1])
    await world.publish(2)
    await first.until("told.seen.length === 2")
    await first.run(LOSES_NOTHING)
    await world.publish(3)
    await seen_by(world, [first, second], [1, 2, 3])
    assert await second.run("told.gaps") == 0


async def test_a_component_that_mounts_twice_has_one_stream(world: World) -> None:
    """React's strict mode mounts, unmounts and mounts; a module that is replaced closes and connects."""
    tab = await world.tab(listens=False)
    await tab.run("listen().close(); void listen()")
    await tab.until("push.state === 'live'")
    await world.until_streams(1)
    await world.publish(1)
    await seen_by(world, [tab], [1])
    # Two components of one page share as two tabs do, and the one that stays goes on.
    await tab.run("globalThis.first = push; void listen()")
    await tab.until("push.state === 'live'")
    await world.until_streams(1)
    await tab.run("first.close(); told.seen.length = 0")
    await world.publish(2)
    await seen_by(world, [tab], [2])
    assert await tab.run("first.state") == "closed"


async def test_a_tab_says_to_all_that_the_service_is_to_be_tried_again(world: World) -> None:
    first, second = await world.tab(), await world.tab()
    world.gate.refuses = True
    world.gate.cut()
    for tab in (first, second):
        await tab.until("push.state === 'connecting'")
    # Of several pauses one is long enough to be seen to end.
    await first.run("Math.random = () => 1; 0")
    await eventually(lambda: first.run("push.state === 'connecting'"))
    world.gate.refuses = False
    began = time.monotonic()
    await second.run("push.reconnect(); 0")
    await second.until("push.state === 'live'")
    assert time.monotonic() - began < TAKEOVER_S
    assert await second.run("told.gaps") == 0


async def test_a_page_may_have_a_stream_of_its_own(world: World) -> None:
    await world.tab()
    alone = await world.tab(share="false")
    await world.until_streams(2)
    await world.publish(1)
    await seen_by(world, [alone], [1])
