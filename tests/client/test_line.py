"""pushsse.js in Chromium: a page that is never deaf, hears nothing twice and misses nothing."""

import pytest

from tests.client.conftest import World

pytestmark = [pytest.mark.real, pytest.mark.anyio]


async def test_events_come_and_go_on_after_a_cut_without_a_loss(world: World) -> None:
    tab = await world.tab()
    await world.publish(1)
    await tab.until("told.seen.length === 1")
    world.gate.cut()
    await world.publish(2)
    await tab.until("told.seen.length === 2")
    world.gate.cut()
    # Cut once more before any event came: the position is that of `ready`.
    await world.until_streams(1)
    await world.publish(3)
    await tab.until("told.seen.length === 3")
    assert await tab.run("told.seen") == [1, 2, 3]
    assert await tab.run("told.begun[0]") == "new"
    assert set(await tab.run("told.begun.slice(1)")) == {"complete"}
    assert await tab.run("told.gaps") == 0
    assert await tab.run("told.states.join()") == "live,connecting,live,connecting,live"
