"""The desk: staff see who waits, answer by keyboard alone, and hand back; nobody else sees it."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.deployed.chromium import Browser
from tests.deployed.page.conftest import (
    FOUND,
    World,
    load_axe,
    no_faults,
    press,
    resize,
    signed_in,
    token,
)
from tests.waiting import eventually

pytestmark = [pytest.mark.real, pytest.mark.anyio]
STAFF = "pushsse:stream pushsse:answer"
ROWS = "[...document.querySelectorAll('#desk-list button')]"
VIEWS = "[...document.querySelectorAll('#views a')].map((each) => each.firstChild.textContent).join()"
FOCUS = "document.activeElement.id"
NOTE = "document.getElementById('desk-note').textContent"


async def call(world: World, user: str, method: str, path: str, body: object = None, scope: str = "") -> Any:
    headers = {"authorization": f"Bearer {token(user, 600, **({'scope': scope} if scope else {}))}"}
    reply = await world.secured.http.request(method, path, json=body, headers=headers)
    assert reply.status_code < 300, reply.text
    return reply.json()


async def ask(world: World, user: str, text: str, conversation: str) -> str:
    asked = await call(world, user, "POST", "/v1/questions", {"text": text, "conversation": conversation})

    async def over() -> bool:
        found = await call(world, user, "GET", f"/v1/questions/{asked['id']}")
        return found["status"] not in ("pending", "answering")

    await eventually(over)
    return str(asked["id"])


async def wait_for_staff(world: World, user: str, text: str, conversation: str) -> str:
    """A conversation that people have taken over, in which a question waits."""
    await ask(world, user, "How do I switch an event type off?", conversation)
    await call(world, user, "POST", f"/v1/conversations/{conversation}/handover", {"reason": "it is urgent"})
    return await ask(world, user, text, conversation)


@pytest.fixture(autouse=True)
async def desk(world: World) -> AsyncIterator[None]:
    """An empty desk for each test."""
    yield
    path = "/v1/conversations"
    listed = await call(world, "sam", "GET", f"{path}?status=handed_over", scope=STAFF)
    for each in listed["conversations"]:
        await call(world, "sam", "POST", f"{path}/{each['id']}/release", {}, scope=STAFF)


async def type_in(tab: Browser, text: str) -> None:
    await tab.call("Input.insertText", text=text)


async def test_staff_answer_write_and_hand_back_by_keyboard_alone(world: World) -> None:
    waiting = await wait_for_staff(world, "nora", "Where is my parcel?", "nora-1")
    tab = await signed_in(world, "sam", STAFF, "#desk")
    await tab.until(f"{ROWS}.length === 1")
    assert await tab.run(VIEWS) == "Events,Desk"
    assert "nora" in await tab.run(f"{ROWS}[0].textContent")
    assert "it is urgent" in await tab.run(f"{ROWS}[0].textContent")
    await tab.until("document.querySelector('a[data-view=desk] .count').textContent === '1'")
    # This token allows neither switches nor questions of one's own.
    await tab.run("location.hash = '#events'; 0")
    await tab.until("document.body.dataset.view === 'events'")
    hidden = "['settings', 'panel', 'ask'].map((id) => document.getElementById(id).checkVisibility())"
    assert await tab.run(hidden) == [False, False, False]
    await tab.run("location.hash = '#desk'; 0")
    await tab.until("document.getElementById('desk-name').checkVisibility()")
    await tab.run("document.getElementById('desk-name').focus(); 0")
    await type_in(tab, "Sam of the shop")
    await tab.run(f"{ROWS}[0].focus(); 0")
    await press(tab, "Enter")
    await tab.until(f"{FOCUS} === 'case-title'")
    await tab.until("document.querySelectorAll('.turn').length === 2")
    assert await tab.run("document.getElementById('desk-target').value") == waiting
    await tab.run("document.getElementById('desk-text').focus(); 0")
    assert await tab.run("document.getElementById('desk-text').placeholder") == "As Sam of the shop"
    await type_in(tab, "It is on its way.")
    await press(tab, "Enter")
    await tab.until(f"{NOTE} === 'Sent.'")
    answer = (await call(world, "nora", "GET", f"/v1/questions/{waiting}"))["answer"]
    assert (answer["text"], answer["by"]) == (
        "It is on its way.",
        {"kind": "staff", "name": "Sam of the shop"},
    )
    await tab.until(
        "document.querySelector('.turn:last-child .ours')?.textContent.includes('Sam of the shop')"
    )
    assert await tab.run(FOCUS) == "desk-text"
    # A further question comes by itself, and takes nothing from what is being written.
    await type_in(tab, "By the way")
    await ask(world, "nora", "And the other one?", "nora-1")
    await tab.until("document.querySelectorAll('.turn').length === 3")
    # A screen reader is told, too.
    await tab.until("document.getElementById('announced').textContent === 'And the other one?'")
    assert await tab.run(f"[{FOCUS}, document.getElementById('desk-text').value]") == [
        "desk-text",
        "By the way",
    ]
    # What no question asked for.
    await tab.run("document.getElementById('desk-target').value = ''; 0")
    await press(tab, "Enter")
    await tab.until("document.querySelectorAll('.turn').length === 4")
    found = (await call(world, "nora", "GET", "/v1/questions?conversation=nora-1"))["questions"]
    assert (found[0]["text"], found[0]["answer"]["text"]) == ("", "By the way")
    await tab.run("document.getElementById('case-release').focus(); 0")
    await press(tab, "Enter")
    await tab.until(f"{ROWS}.length === 0 && !document.getElementById('desk-empty').hidden")
    assert await tab.run(FOCUS) == "desk-title"
    await no_faults(tab)
    # The name is kept for the next time.
    assert await tab.run("localStorage.getItem('pushsse.desk-name')") == "Sam of the shop"
    await tab.run("localStorage.clear(); 0")


async def test_of_two_who_answer_one_is_told_and_keeps_the_text(world: World) -> None:
    waiting = await wait_for_staff(world, "olga", "Is it open today?", "olga-1")
    tab = await signed_in(world, "tim", STAFF, "#desk")
    await tab.until(f"{ROWS}.length === 1")
    await tab.run(f"{ROWS}[0].click(); 0")
    await tab.until(f"document.getElementById('desk-target').value === '{waiting}'")
    # Its stream is silent, so that it doesn't know yet.
    await tab.run("document.getElementById('desk-text').value = 'Yes'; 0")
    await tab.run(
        "globalThis.real = fetch; globalThis.fetch = (url, init = {}) => init.method === 'POST' "
        "? new Promise((go) => globalThis.go = () => go(real(url, init))) : real(url, init); 0"
    )
    await tab.run("document.getElementById('desk-form').requestSubmit(); 0")
    said = {"text": "Until six."}
    await call(world, "sam", "POST", f"/v1/questions/{waiting}/answer", said, scope=STAFF)
    await tab.run("go(); globalThis.fetch = real; 0")
    await tab.until(f"{NOTE} === 'Somebody else has answered this.'")
    assert await tab.run("document.getElementById('desk-text').value") == "Yes"
    await tab.until("document.querySelector('.turn:last-child .ours')?.textContent.startsWith('Until six.')")
    # The person takes the conversation back: it closes here, and says why.
    await call(world, "olga", "POST", "/v1/conversations/olga-1/release", {})
    await tab.until("document.getElementById('case').hidden")
    gone = "This conversation isn't handed over any more."
    await tab.until(f'document.getElementById("desk-say").textContent === "{gone}"')
    await no_faults(tab)


async def test_only_whoever_may_see_them_has_more_views(world: World) -> None:
    tab = await signed_in(world, "pia", "pushsse:stream pushsse:ask pushsse:preferences", "#desk")
    await tab.until(
        "document.body.dataset.view === 'events' && document.getElementById('events-title') !== null"
    )
    await tab.until(
        "document.getElementById('empty').hidden === false || document.querySelector('.card') !== null"
    )
    # It knows by then what the person may do.
    await tab.until("document.body.dataset.may !== undefined")
    assert await tab.run("document.getElementById('views').hidden")
    assert await tab.run(
        "document.getElementById('desk').hidden && document.getElementById('overview').hidden"
    )
    await no_faults(tab)


@pytest.mark.parametrize("language", ["en-GB", "zh-CN"])
async def test_axe_finds_nothing_at_the_desk(world: World, language: str) -> None:
    conversation = f"axe-{language}"
    await wait_for_staff(world, "quin", "Where? " + "a-long-word-" * 20, conversation)
    tab = await signed_in(world, "sam", STAFF, "#desk", language=language, width=1280)
    await tab.until(f"{ROWS}.length === 1")
    await load_axe(tab)
    for scheme in ("light", "dark"):
        for width in (1280, 360):
            await resize(tab, width, 740, scheme)
            assert await tab.run(FOUND) == []
            await tab.run(f"{ROWS}[0].click(); 0")
            await tab.until("document.querySelectorAll('.turn').length === 2")
            assert await tab.run(FOUND) == []
            await press(tab, "Escape")
            await tab.until("document.getElementById('case').hidden")
    await no_faults(tab)
