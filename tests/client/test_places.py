"""pushsse.js wherever it may run: on another origin with a ticket, in a worker, under a strict policy."""

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from pushsse.errors import CloseReason
from tests.client.conftest import APP, LOSES, LOSES_NOTHING, PAGE, SECRET, World, token
from tests.client.gate import gate
from tests.deployed.chromium import Browser
from tests.serving import serving
from tests.waiting import eventually

pytestmark = [pytest.mark.real, pytest.mark.anyio]
WORKER = """
import { connect } from "/pushsse.js";
onmessage = ({ data: token }) => {
  const push = connect({ token });
  for (const name of ["event", "state"]) push.on(name, (data) => postMessage([name, data]));
};
postMessage(["loaded"]);
"""


@dataclass
class Elsewhere:
    """A page of another origin, and the tickets that its backend has for it."""

    world: World
    page: str
    tickets: list[str]

    async def tab(self, options: str) -> Browser:
        """A tab with it, which listens."""
        opened = await self.world.browser.another()
        await opened.open(self.page)
        await opened.until("globalThis.loaded === true")
        await opened.run(f"void listen({{ {options} }})")
        await opened.until("push.state === 'live'")
        return opened


@pytest.fixture(scope="module")
async def elsewhere(tmp_path_factory: pytest.TempPathFactory, shared: World) -> AsyncIterator["Elsewhere"]:
    """A page of another origin: what it loads from the node, and calls there, is named in its policy."""
    folder = tmp_path_factory.mktemp("elsewhere")
    async with gate(0) as site:
        origin = f"http://localhost:{site.port}"
        async with (
            serving(folder, jwt_secret=SECRET, heartbeat_s=1.0, allowed_origins=(origin,)) as node,
            gate(node.port) as made,
        ):
            world = World(node, made, shared.browser)
            policy = f"default-src 'none'; script-src 'self' {made.url}; connect-src 'self' {made.url}"
            site.pages["/app"] = (PAGE, "text/html", policy)
            site.pages["/app.js"] = (
                APP.replace("/pushsse.js", f"{made.url}/pushsse.js"),
                "text/javascript",
                "",
            )
            site.made["/ticket"] = lambda query: (200, tickets.pop(0))
            tickets: list[str] = []
            yield Elsewhere(world, f"{origin}/app", tickets)


async def ticket(world: World, user: str = "ann", lives_s: float = 600.0) -> str:
    headers = {"Authorization": f"Bearer {token(user, lives_s=lives_s)}"}
    reply = await world.node.http.post("/v1/tickets", headers=headers)
    assert reply.status_code == 200
    return reply.text


async def test_a_page_of_another_origin_listens_with_tickets(elsewhere: Elsewhere) -> None:
    world, tickets = elsewhere.world, elsewhere.tickets
    # Whose ticket it is says who shares: two tabs have asked for one each, and opened one.
    tickets += [await ticket(world), await ticket(world), await ticket(world)]
    await world.publish("before the page was there, and after its ticket")
    fetched = "ticket: () => fetch('/ticket').then((reply) => reply.json())"
    tabs = [await elsewhere.tab(fetched) for _ in range(2)]
    await world.until_streams(1)
    # The same ticket opens the stream again.
    world.end_streams(CloseReason.LIFETIME)
    await tabs[0].until("told.states.length >= 3 && push.state === 'live'")
    await world.publish("again")
    await tabs[0].until("told.seen.length === 2")
    assert await tabs[0].run("told.seen") == ["before the page was there, and after its ticket", "again"]
    await tabs[1].until("told.seen.includes('again')")
    assert len(tickets) == 1
    # A new one where that has lapsed.
    world.end_streams(CloseReason.TOKEN_EXPIRED)
    await eventually(lambda: not tickets)
    await tabs[0].until("push.state === 'live'")
    await world.publish("with a new one")
    for tab in tabs:
        await tab.until("told.seen.includes('with a new one')")
        assert await tab.run("told.gaps") == 0
        await tab.close()
    await eventually(lambda: world.gate.streams() == 0)


async def test_a_page_of_another_origin_has_switches_with_a_token(elsewhere: Elsewhere) -> None:
    tab = await elsewhere.tab(f"token: {json.dumps(token('ann'))}")
    assert isinstance(await tab.run("push.preferences.get().then(({ types }) => types)"), list)
    await tab.close()


async def test_it_runs_in_a_worker(world: World) -> None:
    world.gate.pages["/worker.js"] = (WORKER, "text/javascript", "")
    tab = await world.tab(listens=False)
    await tab.run(
        "globalThis.heard = []; globalThis.worker = new Worker('/worker.js', { type: 'module' });"
        "worker.onmessage = ({ data }) => heard.push(data); 0"
    )
    await tab.until("heard.length === 1")
    await tab.run(f"worker.postMessage({json.dumps(token('ann'))}); 0")
    await tab.until("heard.some(([name, data]) => name === 'state' && data.state === 'live')")
    await world.publish("in the worker")
    await tab.until("heard.some(([name, data]) => name === 'event' && data.message === 'in the worker')")
    # It shares with the page.
    await tab.run("void listen()")
    await tab.until("push.state === 'live'")
    await world.until_streams(1)


async def test_it_leaves_no_global_and_no_timer_behind(world: World) -> None:
    tab = await world.tab(listens=False)
    before = await tab.run("Object.getOwnPropertyNames(globalThis).sort()")
    await tab.run("import('/pushsse.js').then(() => 0)")
    assert await tab.run("Object.getOwnPropertyNames(globalThis).sort()") == before
    counting = "(real => { setInterval = (act, ms) => real(() => { ticks++; act() }, ms) })(setInterval)"
    await tab.run(f"globalThis.ticks = 0; {counting}; void listen()")
    await tab.until("push.state === 'live' && ticks > 0")
    await tab.run("push.close(); ticks = 0")
    await world.until_streams(0)
    assert await tab.run("new Promise((done) => setTimeout(() => done(ticks), 1000))") == 0


async def test_tabs_that_have_tickets_alone_say_once_that_they_missed_something(elsewhere: Elsewhere) -> None:
    world, tickets = elsewhere.world, elsewhere.tickets
    tickets += [await ticket(world), await ticket(world)]
    fetched = "ticket: () => fetch('/ticket').then((reply) => reply.json())"
    first, second = [await elsewhere.tab(fetched) for _ in range(2)]
    await first.run(LOSES)
    await world.publish("missed")
    # With a ticket it can't be polled for.
    await second.until("told.gaps === 1")
    await first.run(LOSES_NOTHING)
    await world.publish("heard")
    await second.until("told.seen.includes('heard')")
    # It goes on where the others are, and isn't told again at each look.
    await second.run("new Promise((done) => setTimeout(done, 1500))")
    assert await second.run("[told.gaps, told.seen]") == [1, ["heard"]]
    for tab in (first, second):
        await tab.close()
