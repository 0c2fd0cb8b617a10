"""The page of `GET /` in Chromium: what people see, what the keyboard does, and who may come in."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

import pytest

from pushsse.api.files import DEVELOPMENT_PAGE, PAGE
from pushsse.cli.running import EVERYTHING, GUEST, OWNER
from pushsse.cli.running import token as token_of
from tests.client import answering
from tests.deployed.chromium import INSECURE_HOST
from tests.deployed.page.conftest import CARDS, FOUND, LIVE, World, load_axe, no_faults, press, resize, token
from tests.serving import serving
from tests.waiting import eventually

pytestmark = [pytest.mark.real, pytest.mark.anyio]


async def test_events_show_and_what_is_read_here_is_read_in_another_tab(world: World) -> None:
    # The first one is hidden from then on.
    first, second = await world.live("ann"), await world.live("ann")
    await world.node.publish("order", {"number": 7, "lines": ["a", "b"]}, "ann", desc="Order 7")
    await first.until(f"{CARDS}.length === 1")
    assert await first.run(f"{CARDS}[0].querySelector('.desc').textContent") == "Order 7"
    assert await first.run("[...document.querySelectorAll('dt, dd')].map((each) => each.textContent)") == [
        "number",
        "7",
        "lines",
        '["a","b"]',
    ]
    assert await first.run("Date.parse(document.querySelector('#events time').dateTime)") > 0
    await first.run("document.querySelector('#events summary').click(); 0")
    await first.until("document.querySelector('#events pre')?.textContent.includes('Order 7')")
    for tab in (first, second):
        await tab.until(f"{CARDS}[0]?.classList.contains('read')")
        await tab.until("document.getElementById('unread').textContent === ''")

    async def unread() -> bool:
        reply = await world.node.http.get("/v1/unread?user=ann")
        return bool(reply.json()["unread"] == 0)

    await eventually(unread)
    await no_faults(first)


async def test_a_later_event_takes_the_place_of_a_card_and_a_withdrawn_one_is_gone(world: World) -> None:
    tab = await world.live("bo")
    await world.node.publish("order", "paid", "bo", collapse="order-1")
    await tab.until(f"{CARDS}.length === 1")
    await world.node.publish("order", "sent", "bo", collapse="order-1")
    await tab.until(f"{CARDS}.map((each) => each.querySelector('.text').textContent).join() === 'sent'")
    await world.node.publish("order", None, "bo", withdraw="order-1")
    await tab.until(f"{CARDS}.length === 0")


async def test_seven_tabs_have_one_stream_and_each_has_the_events(world: World) -> None:
    # Over HTTP/1.1 a browser has six connections to a node; with a stream in each tab the seventh would hang.
    tabs = [await world.live("kim") for _ in range(7)]
    assert len(world.node.node.hub.subscribers) == 1
    await world.node.publish("news", "to all tabs", "kim")
    for tab in tabs:
        await tab.until(
            "document.title === '(1) pushsse' || document.querySelector('#events .read') !== null"
        )


async def test_a_switch_keeps_the_focus_and_goes_back_where_it_fails(world: World) -> None:
    await world.node.publish("news", "hello", "carol")
    await world.node.until_known("news")
    tab = await world.live("carol")
    await tab.run("document.getElementById('settings').focus(); 0")
    await press(tab, "Enter")
    await tab.until("document.activeElement.id === 'switches-title'")
    box = "document.querySelector('[aria-describedby=about-news]')"
    await tab.until(f"{box} !== null")
    await tab.run(f"globalThis.before = {box}; before.focus(); 0")
    await press(tab, " ")
    await tab.until("document.getElementById('switch-note').textContent === 'news is off'")
    assert await tab.run(f"document.activeElement === {box} && before === {box} && !before.checked")
    reply = await world.node.http.get("/v1/preferences?user=carol")
    assert {each["name"]: each["enabled"] for each in reply.json()["types"]}["news"] is False
    # Another device's change comes to this one, and takes no focus either.
    await world.node.switch("carol", news=True)
    await tab.until(f"before.checked && document.activeElement === {box}")
    await tab.run(
        "globalThis.real = fetch; globalThis.fetch = () => Promise.reject(new TypeError('no network')); 0"
    )
    await press(tab, " ")
    await tab.until("document.getElementById('switch-note').textContent.includes('no network')")
    assert await tab.run("before.checked && document.activeElement === before")
    await press(tab, "Escape")
    assert await tab.run("document.activeElement.id") == "settings"
    await no_faults(tab)


async def test_enter_asks_and_the_answer_streams(world: World) -> None:
    answering.go_on.clear()
    tab = await world.live("dora")
    box = "document.getElementById('question')"
    await tab.run(f"{box}.focus(); {box}.value = 'wait: one two'; 0")
    # A word is being composed: this Enter ends it, and asks nothing.
    composing = (
        "new KeyboardEvent('keydown', {key: 'Enter', isComposing: true, bubbles: true, cancelable: true})"
    )
    assert await tab.run(f"{box}.dispatchEvent({composing})") is True
    await press(tab, "Enter", modifiers=8)
    assert await tab.run(f"{box}.value") == "wait: one two\n"
    await tab.run(f"{box}.value = 'wait: one two'; 0")
    await press(tab, "Enter")
    await tab.until("document.querySelector('.answer')?.textContent === 'one '")
    await tab.until("document.querySelector('.doing').textContent === 'thinking'")
    assert await tab.run(f"{box}.value") == ""
    assert await tab.run(
        "[...document.querySelectorAll('.acts button')].map((each) => each.textContent)"
    ) == ["Stop"]
    answering.go_on.set()
    await tab.until("document.querySelector('.answer').textContent === 'one two '")
    await tab.until("document.querySelector('.more a')?.textContent === 'A book'")
    await tab.until("document.querySelector('[aria-label=\"This helped\"]') !== null")
    await tab.run("document.querySelector('[aria-label=\"This helped\"]').click(); 0")
    await tab.until("document.querySelector('[aria-label=\"This helped\"]')?.ariaPressed === 'true'")
    found = (await world.node.http.get("/v1/questions?user=dora")).json()["questions"]
    assert [each["status"] for each in found] == ["answered"]

    async def rated() -> bool:
        reply = await world.node.http.get("/v1/questions?user=dora")
        return bool((reply.json()["questions"][0]["feedback"] or {}).get("rating") == "up")

    await eventually(rated)
    # Again; and the conversation is there after a reload, on any device.
    await tab.run("[...document.querySelectorAll('.acts button')][0].click(); 0")
    await tab.until("document.querySelector('.exchange').dataset.status === 'answered'")
    await no_faults(tab)
    await tab.open(f"{world.node.url}/?user=dora")
    await tab.until("document.querySelector('.answer')?.textContent === 'one two '")


async def test_people_answer_where_one_asks_for_them(world: World) -> None:
    tab = await world.live("mia")
    await tab.run("document.getElementById('question').value = 'say: no'; 0")
    await tab.run("document.getElementById('ask').requestSubmit(); 0")
    await tab.until("document.querySelector('.exchange')?.dataset.status === 'answered'")
    await tab.run("document.getElementById('hand-over').click(); 0")
    await tab.until("!document.getElementById('release').hidden")
    await tab.run("document.getElementById('question').value = 'Where is it?'; 0")
    await tab.run("document.getElementById('ask').requestSubmit(); 0")
    await tab.until("[...document.querySelectorAll('.doing')].at(-1).textContent.startsWith('A person will')")
    waiting = (await world.node.http.get("/v1/questions?user=mia")).json()["questions"][0]
    assert waiting["text"] == "Where is it?"
    said = {"text": "It is on its way.", "name": "Sam"}
    reply = await world.node.http.post(f"/v1/questions/{waiting['id']}/answer?user=staff", json=said)
    assert reply.status_code in (200, 202), reply.text
    await tab.until("[...document.querySelectorAll('.answer')].at(-1).textContent === 'It is on its way.'")
    await tab.until("[...document.querySelectorAll('.by')].at(-1).textContent === 'Sam · staff'")
    await tab.run("document.getElementById('release').click(); 0")
    await tab.until("document.getElementById('release').hidden")
    await no_faults(tab)


async def test_an_answer_that_is_stopped_and_one_that_fails_say_so(world: World) -> None:
    answering.go_on.clear()
    tab = await world.live("ned")
    await tab.run("document.getElementById('question').value = 'wait: one two'; 0")
    await tab.run("document.getElementById('ask').requestSubmit(); 0")
    await tab.until("document.querySelector('.answer')?.textContent === 'one '")
    await tab.run("document.querySelector('.acts button').click(); 0")
    await tab.until("document.querySelector('.doing').textContent === 'Stopped.'")
    answering.go_on.set()
    await tab.run("document.getElementById('question').value = 'fail: now'; 0")
    await tab.run("document.getElementById('ask').requestSubmit(); 0")
    await tab.until("[...document.querySelectorAll('.doing')].at(-1).textContent === 'No answer: no idea'")
    assert await tab.run("document.querySelector('.answer').textContent") == "one "
    await no_faults(tab)


async def test_quiet_hours_and_a_whole_category_are_switched(world: World) -> None:
    rules = {"title": "Tips", "category": "marketing"}
    assert (await world.node.http.put("/v1/types/tips?user=dev", json=rules)).status_code in (200, 201)
    tab = await world.live("ola", width=1280)
    await tab.run("document.getElementById('quiet-add').click(); 0")
    await tab.run("document.querySelector('#windows [name=sun]').click(); 0")
    await tab.run("document.getElementById('zone').value = 'Asia/Shanghai'; 0")
    await tab.run("document.getElementById('quiet-form').requestSubmit(); 0")
    await tab.until("document.getElementById('quiet-note').textContent === 'Saved'")
    await tab.run("document.getElementById('pause-8').click(); 0")
    await tab.until("document.getElementById('paused').textContent.startsWith('Quiet until')")
    whole = "document.querySelector('#switches [aria-label=marketing] input')"
    await tab.run(f"{whole}.click(); 0")
    await tab.until("document.getElementById('switch-note').textContent === 'marketing is off'")
    found = (await world.node.http.get("/v1/preferences?user=ola")).json()
    days = ["mon", "tue", "wed", "thu", "fri", "sat"]
    assert (found["quiet"], found["zone"]) == (
        [{"from": "22:00", "to": "07:00", "days": days}],
        "Asia/Shanghai",
    )
    assert found["paused_until"] is not None
    assert found["categories"] == {"marketing": False}
    assert not await tab.run("document.querySelector('[aria-describedby=about-tips]').checked")
    # A zone that there isn't is refused, and what was written stays.
    await tab.run("document.getElementById('zone').value = 'Nowhere'; 0")
    await tab.run("document.getElementById('quiet-form').requestSubmit(); 0")
    await tab.until("document.getElementById('quiet-note').textContent.startsWith('Not saved')")
    assert await tab.run("document.getElementById('zone').value") == "Nowhere"
    await no_faults(tab)


async def test_two_thousand_events_stay_bounded_and_move_nothing_that_is_read(world: World) -> None:
    tab = await world.live("eve")
    events = [{"type": "many", "to": {"users": ["eve"]}, "message": f"number {n}"} for n in range(2_000)]

    async def publish(some: Sequence[object]) -> None:
        body = "\n".join(map(json.dumps, some))
        headers = {"Content-Type": "application/x-ndjson"}
        reply = await world.node.http.post("/v1/events", content=body, headers=headers)
        assert reply.json()["accepted"] == len(some), reply.text

    await publish(events[:1_000])
    await publish(events[1_000:1_990])
    first = "document.querySelector('#events .text')"
    await tab.until(f"{first}?.textContent === 'number 1989'")
    assert await tab.run(f"{CARDS}.length") == 300
    # Further down nothing moves; what came waits.
    await tab.run("scrollTo(0, 2000); 0")
    await tab.until("scrollY > 1900")
    place = await tab.run(f"{CARDS}[30].getBoundingClientRect().top")
    await publish(events[1_990:])
    await tab.until("document.getElementById('new').textContent === 'Show 10 new'")
    assert await tab.run(f"{CARDS}[30].getBoundingClientRect().top") == place
    assert await tab.run(f"{first}.textContent") == "number 1989"
    # The question's box is in reach, wherever one is.
    assert await tab.run("document.getElementById('question').getBoundingClientRect().bottom <= innerHeight")
    await tab.run("document.getElementById('new').click(); 0")
    await tab.until(f"{first}.textContent === 'number 1999' && scrollY === 0")
    assert await tab.run(f"{CARDS}.length") == 300
    await tab.run("document.getElementById('read-all').click(); 0")
    await tab.until("document.getElementById('unread').textContent === ''")
    await no_faults(tab)


async def test_a_gap_is_told_and_what_is_there_is_loaded_anew(world: World) -> None:
    tab = await world.live("lea")
    await world.node.publish("news", "before", "lea")
    await tab.until(f"{CARDS}.length === 1")
    # A place in a log that has gone.
    opening = "session.open({ position: 'none1-1.none2-1', share: false })"
    await tab.run(f"import('./page/main.js').then(({{ session }}) => {{ {opening}; return 0 }})")
    await tab.until("document.getElementById('notes').textContent.includes('missing')")
    await tab.until(LIVE)
    assert await tab.run(
        "[...document.querySelectorAll('#events .text')].map((each) => each.textContent)"
    ) == ["before"]
    await world.node.publish("news", "after", "lea")
    await tab.until(f"{CARDS}.length === 2")
    await no_faults(tab)


async def test_it_speaks_chinese(world: World) -> None:
    rules = {"title": {"en": "Offers", "zh": "优惠"}}
    assert (await world.node.http.put("/v1/types/offer?user=dev", json=rules)).status_code in (200, 201)
    await world.node.publish("offer", "八折", "fang")
    tab = await world.live("fang", language="zh-CN")
    assert await tab.run("document.documentElement.lang") == "zh-CN"
    assert await tab.run("document.getElementById('state').textContent") == "实时"
    await tab.until("document.querySelector('#events h3')?.textContent === '优惠'")
    await tab.run("document.getElementById('language').click(); 0")
    await tab.until("document.getElementById('state')?.textContent === 'Live'")
    await tab.until("document.querySelector('#events h3')?.textContent === 'Offers'")
    await tab.run("localStorage.clear(); 0")


async def test_every_word_is_there_in_both_languages(world: World) -> None:
    words = (await world.node.http.get("/page/words.js")).text
    parts = words.partition("\n};")[0].split("\n  zh: {")
    english, chinese = (set(re.findall(r"(\w+):\s+\"", part)) for part in parts)
    assert english == chinese
    assert len(english) > 100
    pages = [(await world.node.http.get(path)).text for path in PAGE | DEVELOPMENT_PAGE]
    used = {name for page in pages for name in re.findall(r"\bt\(\"(\w+)\"|data-t(?:-\w+)?=\"(\w+)\"", page)}
    assert {one or other for one, other in used} <= english


async def test_with_a_key_a_cookie_is_enough(world: World) -> None:
    tab = await world.tab("about:blank")
    await tab.call("Network.setCookie", name="session", value=token("pat", 600), url=world.secured.url)
    await tab.open(f"{world.secured.url}/")
    await tab.until(LIVE)
    assert await tab.run("document.getElementById('person').textContent") == "pat"
    assert await tab.run("document.getElementById('way-in').hidden")
    # What changes something passes, too.
    await tab.run("document.getElementById('question').value = 'How do I switch an event type off?'; 0")
    await tab.run("document.getElementById('ask').requestSubmit(); 0")
    await tab.until("document.querySelector('.exchange')?.dataset.status === 'answered'")
    await tab.call("Network.deleteCookies", name="session", url=world.secured.url)
    await no_faults(tab)


async def test_with_a_key_it_asks_for_a_token_and_says_so_when_that_has_expired(world: World) -> None:
    # It goes to the login first, which here does nothing but be there, and comes back without a session.
    page = f"{world.secured.url}/"
    login = f"{world.node.url}/livez?next={quote(page, safe='')}"
    # A token that a link has by mistake stays on this page.
    tab = await world.tab(f"{page}#token=a.b.c")
    await tab.until(f"location.href === '{login}'")
    await tab.open(page)
    await tab.until("document.getElementById('state')?.dataset.state === 'signed_out'")
    await tab.until("document.activeElement.id === 'token'")
    assert await tab.run("document.querySelector('#login a').href") == login
    await tab.run("document.getElementById('token').value = 'not a token'; 0")
    await press(tab, "Enter")
    await tab.until("document.getElementById('why-out')?.textContent === 'the token isn\\'t valid'")
    await tab.until("document.activeElement.id === 'token'")
    await tab.run(f"document.getElementById('token').value = '{token('gil', 3)}'; 0")
    await press(tab, "Enter")
    await tab.until(LIVE)
    assert await tab.run("document.getElementById('person').textContent") == "gil"
    assert await tab.run("document.getElementById('way-in').hidden")
    await tab.until("document.getElementById('state').dataset.state === 'signed_out'")
    assert "expired" in await tab.run("document.getElementById('state').textContent")
    assert not await tab.run("document.getElementById('way-in').hidden")
    # Nothing of it is kept beyond the tab.
    assert await tab.run("localStorage.length") == 0
    await no_faults(tab)


async def test_a_phone_comes_in_by_the_code_in_the_terminal(world: World, tmp_path: Path) -> None:
    async with serving(tmp_path, lan="on") as node:
        settings = node.node.settings
        url = f"http://{INSECURE_HOST}:{node.port}"
        tab = await world.tab(f"{url}/#token={token_of(settings, GUEST)}")
        await tab.until(LIVE)
        assert await tab.run(
            "[isSecureContext, location.hash, document.getElementById('person').textContent]"
        ) == [
            False,
            "",
            "phone",
        ]
        bearer = {"authorization": f"Bearer {token_of(settings, OWNER, EVERYTHING)}"}
        reply = await node.http.post("/v1/events?type=news&to=all", content="hello", headers=bearer)
        assert reply.status_code == 202, reply.text
        await tab.until(f"{CARDS}[0]?.querySelector('.text').textContent === 'hello'")
        await no_faults(tab)
        await world.clear()
    # Anywhere else a link signs nobody in.
    tab = await world.tab(f"{world.secured.url}/?#token={token('eve', 600)}")
    await tab.until(
        "location.hash === '' || document.getElementById('state')?.dataset.state === 'signed_out'"
    )
    assert await tab.run("sessionStorage.getItem('pushsse.token')") is None


async def test_the_plug_loses_nothing(world: World) -> None:
    tab = await world.live("hal")
    await tab.run("document.getElementById('plug').click(); 0")
    await tab.until("document.getElementById('state').dataset.state === 'connecting'")
    await tab.until("document.getElementById('plugged').textContent.includes('recovered')")
    assert (
        await tab.run("document.getElementById('plugged').textContent")
        == "20 missed, 20 recovered, 0 lost, 0 twice"
    )
    await tab.until(LIVE)
    assert await tab.run(f"{CARDS}.length") == 20
    await no_faults(tab)


async def test_the_demo_ends_with_the_first_real_event(world: World) -> None:
    tab = await world.live("ida")
    await tab.run("document.getElementById('demo-here').click(); 0")
    await tab.until(f"{CARDS}.length > 0")
    await tab.until("document.querySelector('#events h3').textContent === 'Orders'")
    await world.node.publish("own", "mine", "ida")
    await tab.until("document.getElementById('demo').textContent === 'Start a demo'")
    await no_faults(tab)


async def test_only_development_has_what_publishes(world: World) -> None:
    for path in DEVELOPMENT_PAGE:
        assert (await world.node.http.get(path)).status_code == 200
        assert (await world.secured.http.get(path)).status_code == 404
    for path in PAGE:
        assert (await world.secured.http.get(path)).status_code == 200


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_axe_finds_nothing(world: World, scheme: str) -> None:
    await world.node.publish("news", {"a": 1}, "jo", desc="A line")
    await world.node.publish("alarm", "A text", "jo")
    await world.node.until_known("news", "alarm")
    tab = await world.live("jo", width=1280)
    await resize(tab, 1280, 844, scheme)
    await tab.run("document.getElementById('question').value = 'say: yes'; 0")
    await tab.run("document.getElementById('ask').requestSubmit(); 0")
    await tab.until("document.querySelector('.more .by') !== null")
    await tab.run("document.getElementById('quiet-add').click(); 0")
    await tab.until("document.querySelector('#switches input') !== null")
    await load_axe(tab)
    assert await tab.run(FOUND) == []
    await resize(tab, 360, 640, scheme)
    assert await tab.run(FOUND) == []
    await tab.run("document.getElementById('settings').click(); 0")
    assert await tab.run(FOUND) == []
