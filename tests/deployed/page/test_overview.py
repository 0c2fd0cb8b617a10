"""The overview: what all nodes do, the catalogue with what people chose, and a person."""

import pytest

from tests.deployed.page.conftest import FOUND, World, load_axe, no_faults, press, resize

pytestmark = [pytest.mark.real, pytest.mark.anyio]
FOCUS = "document.activeElement.id"


def cells(table: str) -> str:
    """The texts of a table's rows."""
    rows = f"[...document.querySelectorAll('#{table} tbody tr')]"
    return f"{rows}.map((row) => [...row.children].map((each) => each.textContent))"


async def test_it_shows_the_nodes_and_the_catalogue_with_what_people_chose(world: World) -> None:
    rules = {"title": {"en": "Trips", "zh": "行程"}, "category": "travel", "default": False}
    reply = await world.node.http.put("/v1/types/trip?user=dev", json=rules)
    assert reply.status_code in (200, 201), reply.text
    for user, on in (("rob", True), ("sue", True), ("tom", False), ("una", True)):
        await world.node.switch(user, trip=on)
    tab = await world.live("vic", width=1280)
    await tab.until("(document.querySelector('a[data-view=overview]').focus(), true)")
    await press(tab, "Enter")
    await tab.until(f"{FOCUS} === 'overview-title'")
    await tab.until("document.querySelector('#tiles dd')?.textContent > 0")
    [row] = await tab.run(cells("nodes"))
    assert row[:2] == [world.node.node.settings.node, "ready"]
    assert int(row[2]) > 0
    await tab.until(f"{cells('catalogue')}.some((row) => row[0] === 'Tripstrip' && row[3] === '3')")
    [row] = [row for row in await tab.run(cells("catalogue")) if row[0] == "Tripstrip"]
    assert [each.strip() for each in row] == ["Tripstrip", "travel", "off", "3", "1", "25%"]
    # The view is in the address: it is there after a reload, and goes with the way back.
    assert await tab.run("location.hash") == "#overview"
    await tab.run("history.back(); 0")
    await tab.until("document.getElementById('overview').hidden && document.body.dataset.view === 'events'")
    await no_faults(tab)


async def test_a_view_is_shown_when_its_forms_are_heard(world: World) -> None:
    tab = await world.live("vic", width=1280)
    await tab.run(
        """
        new MutationObserver((changes, observer) => {
          if (document.getElementById("overview").hidden) return;
          observer.disconnect();
          const submit = new Event("submit", { cancelable: true });
          document.getElementById("person-form").dispatchEvent(submit);
          globalThis.heard = submit.defaultPrevented;
        }).observe(document.getElementById("overview"), { attributes: true });
        globalThis.asked = [];
        const real = fetch;
        globalThis.fetch = (url, init) => (asked.push(new URL(url).pathname), real(url, init));
        for (const place of ["#overview", "#events", "#overview"]) location.hash = place;
        0
        """
    )
    await tab.until("globalThis.heard !== undefined")
    assert await tab.run("heard")
    # Once, however often it was chosen before it was there.
    await tab.run("document.getElementById('person-name').value = 'vic'; 0")
    await tab.run("document.getElementById('person-form').requestSubmit(); 0")
    await tab.until("document.getElementById('person-more').checkVisibility()")
    assert await tab.run("asked.filter((path) => path === '/v1/users/vic').length") == 1
    await no_faults(tab)


async def test_a_person_is_looked_up_explained_and_kicked_when_that_is_meant(world: World) -> None:
    await world.node.publish("news", "hello", "wes")
    await world.node.until_known("news")
    await world.node.switch("wes", news=True)
    event = await world.node.publish("news", "hello", "wes")
    async with world.node.stream("wes") as stream:
        await stream.ready()
        tab = await world.tab(f"{world.node.url}/?user=vic#overview")
        await tab.until("document.getElementById('person-form')?.checkVisibility()")
        await tab.run("document.getElementById('person-name').focus(); 0")
        await tab.call("Input.insertText", text="wes")
        # Presence is told within two seconds.
        await press(tab, "Enter")
        await tab.until("document.getElementById('person-found').textContent.includes('wes')")
        await tab.run("document.getElementById('explain-event').focus(); 0")
        await tab.call("Input.insertText", text=event)
        await press(tab, "Enter")
        await tab.until("document.querySelector('.timeline')?.textContent.includes('Published')")
        assert await tab.run("document.querySelector('#explained strong').textContent") == "Published"
        shown = await tab.run("document.querySelector('.timeline').textContent")
        assert "The switch then" in shown
        assert "news on, its own switch, by wes, in development" in shown
        await tab.run("document.getElementById('kick').focus(); 0")
        await press(tab, "Enter")
        # It asks first, and can be left.
        await tab.until("document.activeElement.className === 'danger'")
        assert "every token" in await tab.run("document.getElementById('kick-row').textContent")
        await tab.run("document.querySelector('#kick-row button:last-child').click(); 0")
        assert await tab.run(FOCUS) == "kick"
        assert not stream.ended
        await press(tab, "Enter")
        await tab.until("document.activeElement.className === 'danger'")
        await press(tab, "Enter")
        await tab.until("document.getElementById('kick-note').textContent.startsWith('wes is out')")
        ended = await stream.until("exception")
        assert "revoked" in ended.data
        await no_faults(tab)


async def test_what_happened_to_an_event_is_said_in_the_pages_language(world: World) -> None:
    await world.node.publish("news", "first", "xia", id="first-xia", collapse="order")
    await world.node.until_known("news")
    await world.node.publish("news", "second", "xia", collapse="order")
    away = {"type": "news", "to": {"users": ["xia"]}, "withdraw": "order"}
    assert (await world.node.http.post("/v1/events", json=away)).status_code == 202
    tab = await world.tab(f"{world.node.url}/?user=vic#overview", language="zh-CN")
    await tab.until("document.getElementById('person-form')?.checkVisibility()")
    await tab.run("document.getElementById('person-name').value = 'xia'; 0")
    await tab.run("document.getElementById('person-form').requestSubmit(); 0")
    await tab.until("document.getElementById('person-more').checkVisibility()")
    await tab.run("document.getElementById('explain-event').value = 'first-xia'; 0")
    await tab.run("document.getElementById('explain-form').requestSubmit(); 0")
    steps = (
        "[...document.querySelectorAll('.timeline li span:first-of-type')].map((each) => each.textContent)"
    )
    await tab.until(f"{steps}.length === 4")
    assert await tab.run(steps) == ["当时的开关", "已发布", "已被替换", "已撤回"]
    await no_faults(tab)


async def test_a_service_that_is_slow_is_asked_once_at_a_time(world: World) -> None:
    tab = await world.tab(f"{world.node.url}/?user=vic#overview")
    await tab.until("document.querySelector('#tiles dd') !== null")
    await tab.run(
        """
        globalThis.asked = [];
        const real = fetch;
        globalThis.fetch = (url, init) => new URL(url).pathname === "/v1/overview"
          ? new Promise((answer) => asked.push(() => answer(real(url, init))))
          : real(url, init);
        globalThis.look = () => document.dispatchEvent(new Event("visibilitychange"));
        0
        """
    )
    await tab.until("(look(), asked.length) === 1")
    await tab.run("look(); look(); 0")
    assert await tab.run("asked.length") == 1
    await tab.run("asked[0](); 0")
    await tab.until("(look(), asked.length) === 2")
    await no_faults(tab)


@pytest.mark.parametrize("language", ["en-GB", "zh-CN"])
async def test_axe_finds_nothing_in_the_overview(world: World, language: str) -> None:
    await world.node.publish("news", "hello", "vic", id="hello-vic")
    await world.node.until_known("news")
    tab = await world.live("vic", language=language, width=1280)
    await tab.run("location.hash = '#overview'; 0")
    await tab.until("document.querySelector('#catalogue td') && document.querySelector('#nodes td') && true")
    await tab.run("document.getElementById('person-name').value = 'vic'; 0")
    await tab.run("document.getElementById('person-form').requestSubmit(); 0")
    await tab.until("document.getElementById('person-more').checkVisibility()")
    await tab.run("document.getElementById('explain-event').value = 'hello-vic'; 0")
    await tab.run("document.getElementById('explain-form').requestSubmit(); 0")
    await tab.until("document.querySelector('.timeline') !== null")
    await tab.run("document.getElementById('kick').click(); 0")
    await load_axe(tab)
    for scheme in ("light", "dark"):
        for width in (1280, 360):
            await resize(tab, width, 740, scheme)
            assert await tab.run(FOUND) == []
    await no_faults(tab)
