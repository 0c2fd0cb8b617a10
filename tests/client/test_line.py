"""pushsse.js in Chromium: a page that is never deaf, hears nothing twice and misses nothing."""

import pytest

from pushsse.errors import CloseReason
from tests.client.conftest import World, listen, token
from tests.waiting import eventually

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


async def test_a_clean_end_is_followed_by_a_new_stream_when_the_service_says(world: World) -> None:
    tab = await world.tab()
    await tab.run("globalThis.at = []; push.on('state', ({ state }) => at.push([state, Date.now()])); 0")
    # Its `retry` is 0.1–1 s; without one a client would wait for up to 3 s.
    world.end_streams(CloseReason.LIFETIME)
    await tab.until("at.length === 2")
    (first, left), (second, back) = await tab.run("at")
    assert (first, second) == ("connecting", "live")
    assert back - left >= 90
    assert await tab.run("told.states") == ["live", "connecting lifetime", "live"]
    assert await tab.run("told.begun") == ["new", "complete"]


async def test_a_silent_line_is_left_after_three_heartbeats(world: World) -> None:
    tab = await world.tab()
    world.gate.hangs = True
    await world.publish("unheard")
    await tab.until("push.state === 'connecting'")
    world.gate.hangs = False
    await tab.until("told.seen.includes('unheard')")
    assert await tab.run("told.gaps") == 0


async def test_a_stream_that_says_nothing_after_ready_stays_until_three_heartbeats(world: World) -> None:
    tab = await world.tab(listens=False)
    # What `ready` has to come within is then shorter than a heartbeat, as it is in a deployment.
    await tab.run(
        "globalThis.setTimeout = (real => (run, ms, ...given) => real(run, ms === 5000 ? 500 : ms, ...given))"
        "(setTimeout); 0"
    )
    await listen(tab)
    await tab.run("new Promise((done) => push.on('ping', done)).then(() => 0)")
    assert await tab.run("told.begun") == ["new"]
    assert await tab.run("told.states") == ["live"]


async def test_a_call_that_hangs_at_the_beginning_is_made_again(world: World) -> None:
    tab = await world.tab(listens=False)
    world.gate.loses.add("/v1/me")
    await tab.run("void listen()")
    await tab.until("push.state === 'live'")
    assert world.gate.count("/v1/me") == 2


@pytest.mark.parametrize(
    "happens",
    [
        pytest.param("dispatchEvent(new Event('online'))", id="online"),
        # The clock goes on, and no timer has run.
        pytest.param("(now => { Date.now = () => now() + 60000 })(Date.now)", id="sleep"),
        pytest.param(
            "Object.defineProperty(document, 'visibilityState', { value: 'hidden', configurable: true });"
            "(now => { Date.now = () => now() + 60000 })(Date.now); delete document.visibilityState;"
            "document.dispatchEvent(new Event('visibilitychange'))",
            id="hidden",
        ),
    ],
)
async def test_a_line_that_may_be_dead_is_opened_anew_at_once(world: World, happens: str) -> None:
    tab = await world.tab()
    # Not just begun.
    await tab.run("new Promise((done) => setTimeout(done, 1100))")
    world.gate.hangs = True
    await world.publish("unheard")
    world.gate.hangs = False
    await tab.run(f"{happens}; 0")
    await tab.until("told.seen.includes('unheard')")
    # It didn't wait until three heartbeats were silent.
    assert await tab.run("told.states") == ["live"]
    assert await tab.run("told.begun") == ["new", "complete"]


async def test_a_page_in_the_cache_of_the_browser_has_no_stream_and_goes_on_afterwards(world: World) -> None:
    tab = await world.tab()
    await tab.run("dispatchEvent(new PageTransitionEvent('pagehide', { persisted: true })); 0")
    await world.until_streams(0)
    await world.publish("meanwhile")
    await tab.run("dispatchEvent(new PageTransitionEvent('pageshow', { persisted: true })); 0")
    await tab.until("told.seen.includes('meanwhile')")
    assert await tab.run("told.begun") == ["new", "complete"]


async def test_where_a_proxy_withholds_streams_events_are_polled_for_until_it_doesnt(world: World) -> None:
    world.gate.withholds = True
    tab = await world.tab(listens=False)
    await tab.run("void listen()")
    await tab.until("push.state === 'polling'")
    assert world.gate.count("/v1/stream") == 2
    await world.publish("polled")
    await tab.until("told.seen.includes('polled')")
    world.gate.withholds = False
    # Later, in a page that nobody looks at, so that nothing but the time makes it try.
    await tab.run(
        "Object.defineProperty(document, 'visibilityState', { value: 'hidden' });"
        "(now => { Date.now = () => now() + 200000 })(Date.now)"
    )
    await world.publish("polled or streamed")
    await tab.until("push.state === 'live'")
    await world.publish("streamed")
    await tab.until("told.seen.length === 3")
    assert await tab.run("told.seen") == ["polled", "polled or streamed", "streamed"]
    assert await tab.run("told.states") == ["polling", "live"]
    assert await tab.run("told.gaps") == 0


async def test_what_came_after_a_snapshot_comes_once(world: World) -> None:
    tab = await world.tab(listens=False)
    headers = {"Authorization": f"Bearer {token('ann')}"}
    snapshot = (await world.node.http.get("/v1/events", headers=headers)).json()
    await world.publish(1)
    await listen(tab, position=f"'{snapshot['position']}'")
    await world.publish(2)
    await tab.until("told.seen.length === 2")
    assert await tab.run("told.seen") == [1, 2]
    assert await tab.run("told.begun") == ["complete"]


async def test_a_gap_is_told_and_where_nothing_handles_it_is_an_error_of_the_page(world: World) -> None:
    tab = await world.tab(position="'none1-1.none2-1'")
    assert await tab.run("told.gaps") == 1
    assert await tab.run("told.errors") == []
    other = await world.tab(position="'none1-1.none2-1'", gap="false", user="'bo'")
    await other.until("told.errors.length > 0")
    assert "nothing handles 'gap'" in str(await other.run("told.errors[0]"))


async def test_a_mistake_of_the_page_stops_nothing(world: World) -> None:
    tab = await world.tab()
    await tab.run("push.on('event:news', () => { throw new Error('a mistake') }); 0")
    await world.publish(1)
    await world.publish(2)
    await tab.until("told.seen.length === 2")
    assert len(await tab.run("told.errors")) == 2


async def test_a_token_is_renewed_before_it_lapses_and_once_for_all_tabs(world: World) -> None:
    first, second = await world.tab(), await world.tab()
    assert world.gate.count("/token") == 2
    world.lives_s = 5
    world.end_streams(CloseReason.TOKEN_EXPIRED)
    await eventually(lambda: world.gate.count("/token") == 3)
    world.lives_s = 600
    # Nothing ends now: it is asked for in time.
    await eventually(lambda: world.gate.count("/token") == 4)
    await first.until("told.begun.length === 3")
    for tab in (first, second):
        assert await tab.run("told.states.filter((each) => each !== 'live').length") <= 1
        # Both have it.
        assert await tab.run("push.preferences.get().then(() => 'got')") == "got"
    assert world.gate.count("/token") == 4


async def test_a_refused_token_makes_it_ask_once_and_then_it_is_signed_out(world: World) -> None:
    tab = await world.tab(listens=False)
    give = "globalThis.asked = 0; void listen({{ token: () => {{ asked++; return {} }} }})"
    good = token("ann")
    await tab.run(give.format(f"asked > 1 ? '{good}' : 'bad'"))
    await tab.until("push.state === 'live'")
    assert await tab.run("asked") == 2
    await tab.run("push.close(); 0")
    await tab.run(give.format("'bad'"))
    await tab.until("push.state === 'signed_out'")
    assert await tab.run("[asked, push.reason]") == [2, "token_invalid"]
    await tab.run("push.close(); 0")
    await tab.run(give.format("null"))
    await tab.until("push.state === 'signed_out'")
    assert await tab.run("[asked, push.reason]") == [1, "no_token"]
    refused = "push.preferences.get().catch(({ name, status, code }) => [name, status, code])"
    assert await tab.run(refused) == ["PushError", 401, "no_token"]
    # Somebody signs in.
    await tab.run(f"push.close(); void listen({{ token: () => globalThis.given }}); given = '{good}'")
    await tab.until("push.state === 'live' || void push.reconnect()")


async def test_who_was_kicked_is_signed_out_and_comes_back_when_signed_in_again(world: World) -> None:
    tab = await world.tab(user="'kim'")
    headers = {"Authorization": f"Bearer {token('root', scope='pushsse:admin')}"}
    assert (await world.node.http.post("/v1/users/kim/kick", headers=headers)).status_code == 200
    await tab.until("push.state === 'signed_out'")
    assert await tab.run("push.reason") == "revoked"

    async def is_back() -> bool:
        # A token of the second of the kick is refused still.
        return bool(await tab.run("push.state === 'live' || void push.reconnect()"))

    await eventually(is_back)


async def test_streams_that_end_for_good_stay_ended(world: World) -> None:
    tab = await world.tab()
    world.end_streams(CloseReason.TOO_MANY_STREAMS)
    await tab.until("push.state === 'ended'")
    assert await tab.run("push.reason") == "too_many_streams"
    await tab.run("push.reconnect(); 0")
    await tab.until("push.state === 'live'")
    bad = await world.tab(listens=False)
    await bad.run("void listen({ types: ['not a type'] })")
    await bad.until("push.state === 'ended'")
    assert await bad.run("push.reason") == "parameter_invalid"


async def test_another_person_s_cookie_gives_the_page_nothing_of_theirs(world: World) -> None:
    tab = await world.tab(listens=False)
    await tab.run(f"document.cookie = 'session={token('ann')}'; 0")
    await listen(tab, credentials="'same-origin'")
    await tab.run(f"document.cookie = 'session={token('bo')}'; 0")
    world.gate.cut()
    await world.publish("for bo", "bo")
    await tab.until("push.state === 'signed_out'")
    assert await tab.run("[push.reason, push.user]") == ["user_changed", "ann"]
    assert await tab.run("told.seen") == []
    await tab.run("document.cookie = 'session=; max-age=0'; 0")
