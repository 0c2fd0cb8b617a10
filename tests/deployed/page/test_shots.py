"""Pictures of the page for the docs: they can be made, and nothing overflows. `make shots` keeps them."""

import base64
import json
import os
import struct
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.deployed.chromium import Browser
from tests.deployed.page.conftest import LIVE, World, no_faults
from tests.serving import Running, serving
from tests.waiting import eventually

pytestmark = [pytest.mark.real, pytest.mark.anyio]
PHONE, DESKTOP, TALL = (390, 844), (1280, 800), (1280, 1060)
TYPES: dict[str, dict[str, object]] = {
    "order": {
        "title": {"en": "Orders", "zh": "订单"},
        "description": {"en": "What becomes of your orders", "zh": "您的订单的进展"},
    },
    "alarm": {
        "title": {"en": "Alarms", "zh": "告警"}, "mandatory": True, "urgent": True,
        "description": {"en": "From the cold stores", "zh": "来自冷库"},
    },
    "news": {"title": {"en": "News", "zh": "新闻"}, "category": "marketing"},
    "offer": {
        "title": {"en": "Offers", "zh": "优惠"}, "category": "marketing",
        "description": {"en": "At most one a week", "zh": "每周最多一条"},
    },
}  # fmt: skip
EVENTS = {
    "en": (
        ("news", None, "What is read on the phone is read on the desktop, too."),
        ("offer", None, "Ten percent off until Sunday"),
        ("alarm", "Cold store 3 is too warm", {"temperature": "-9 °C", "since": "08:14"}),
        ("order", "Order 981 is on its way", {"order": 981, "status": "sent", "total": "49.00 EUR"}),
    ),
    "zh": (
        ("news", None, "在手机上读过的，在电脑上也是已读。"),
        ("offer", None, "本周日前九折"),
        ("alarm", "3 号冷库温度过高", {"温度": "-9 °C", "开始于": "08:14"}),
        ("order", "订单 981 已发出", {"订单": 981, "状态": "已发出", "金额": "¥ 380.00"}),
    ),
}
PERSON = {"en": "ann", "zh": "李雷"}
FAQ = """
name = "the shop's answers"
[nothing]
en = "I'll ask somebody who knows."
zh = "我请同事来看一下。"
[[entry]]
id = "off"
[entry.en]
ask = ["How do I switch an event type off?"]
answer = "Open the list of switches, and switch it off: it takes effect at once, on all of your devices."
links = [{title = "Your switches", url = "/#switches"}]
[entry.zh]
ask = ["怎么关闭一种事件类型？"]
answer = "打开开关列表，把它关掉即可，立即在您的所有设备上生效。"
links = [{title = "我的开关", url = "/#switches"}]
"""
QUESTION = {"en": "How do I switch an event type off?", "zh": "怎么关闭一种事件类型？"}
TALKS = {
    "en": (
        (
            "bo", "The parcel was damaged. Can I send it back?",
            ("You can. Please keep the box.", "Sam"), "Where do I send it?",
        ),
        ("chen", "Please change the address of order 1042 to 7 Harbour Street", None, None),
    ),
    "zh": (
        ("韩梅梅", "包裹在路上损坏了，可以退货吗？", ("可以，请保留外包装。", "小王"), "应该寄到哪里？"),
        ("陈晨", "请把订单 1042 的地址改成海港街 7 号", None, None),
    ),
}  # fmt: skip
# What is wider than the window, or than what it stands in and can't be scrolled there.
OVERFLOWING = """
[...document.querySelectorAll("body *")].filter((each) => {
  const style = getComputedStyle(each);
  const isHidden = !each.checkVisibility() || style.clipPath !== "none" || each.closest(".unseen,thead,svg");
  if (isHidden) return false;
  const { left, right } = each.getBoundingClientRect();
  const isCut = style.display !== "inline" && style.overflowX === "visible"
    && each.clientWidth && each.scrollWidth > each.clientWidth + 1;
  return left < -1 || right > innerWidth + 1 || isCut;
}).map((each) => each.outerHTML.slice(0, 120))
  .concat(document.documentElement.scrollWidth > innerWidth ? ["the page"] : [])
"""


@dataclass(frozen=True)
class Shot:
    """One picture: what is on it, and how it is seen."""

    name: str
    language: str = "en"
    scheme: str = "light"
    size: tuple[int, int] = DESKTOP
    view: str = "events"
    # What is done before, each with what is true then.
    steps: tuple[tuple[str, str], ...] = ()


TALK = "at('talk-toggle').click(); 0"
ANSWERED = "document.querySelector('.more .by')?.checkVisibility()"
OPEN = "[...all('#desk-list button')].find((each) => each.textContent.includes('parcel')).click(); 0"
OPENED = "all('.turn').length > 1"
LOOK = "at('person-name').value = 'ann'; at('person-form').requestSubmit(); 0"
LOOKED = "all('#person-found td').length > 0"
EXPLAIN = "at('explain-event').value = 'order'; at('explain-form').requestSubmit(); 0"
EXPLAINED = "document.querySelector('.timeline') !== null"
# What scripts call.
SHORT = "globalThis.at = (id) => document.getElementById(id);"
SHORT += "globalThis.all = (css) => document.querySelectorAll(css); 0"
SHOTS = (
    Shot("page-desktop-light", steps=((TALK, ANSWERED),)),
    Shot("page-desktop-dark-zh", "zh", "dark"),
    Shot("page-phone-dark", scheme="dark", size=PHONE, steps=((TALK, ANSWERED),)),
    Shot("page-phone-zh", "zh", size=PHONE),
    Shot("desk-desktop-light", view="desk", steps=((OPEN, OPENED),)),
    Shot("desk-phone-dark", scheme="dark", size=PHONE, view="desk", steps=((OPEN, OPENED),)),
    Shot("desk-phone-zh", "zh", size=PHONE, view="desk"),
    Shot("overview-desktop-light", size=TALL, view="overview", steps=((LOOK, LOOKED), (EXPLAIN, EXPLAINED))),
    Shot("overview-desktop-dark-zh", "zh", "dark", view="overview"),
    Shot("overview-phone-dark", scheme="dark", size=PHONE, view="overview"),
)


@pytest.fixture(scope="module")
async def scenes(
    tmp_path_factory: pytest.TempPathFactory, anyio_backend: str
) -> AsyncIterator[dict[str, Running]]:
    """For each language a node on which something has happened."""
    async with AsyncExitStack() as stack:
        found = {}
        for language in TALKS:
            folder = tmp_path_factory.mktemp(language)
            (folder / "faq.toml").write_text(FAQ)
            node = serving(folder, node="push-1", answerer=f"faq:{folder}/faq.toml")
            found[language] = await stack.enter_async_context(node)
            await play(found[language], language)
        yield found


async def play(node: Running, language: str) -> None:
    for number, (name, rules) in enumerate(TYPES.items()):
        reply = await node.http.put(f"/v1/types/{name}?user=dev", json={**rules, "order": number})
        assert reply.status_code == 201, reply.text
    for each, off in (
        ("bo", "news"),
        ("chen", "offer"),
        ("dora", "offer"),
        ("eve", "news"),
        ("fay", "offer"),
    ):
        await node.switch(each, **{"news": True, off: False, "order": True})
    for kind, desc, message in EVENTS[language]:
        more = {"desc": desc} if desc else {}
        await node.publish(kind, message, PERSON[language], id=kind, **more)
    await ask(node, PERSON[language], QUESTION[language])
    for number, (user, first, said, then) in enumerate(TALKS[language]):
        await converse(node, f"talk-{number}", user, first, said, then)


async def ask(
    node: Running, user: str, text: str, conversation: str = "help", *, waits: bool = False
) -> None:
    """Asks, and waits for the answer, unless people are to give it."""
    body = {"text": text, "conversation": conversation}
    reply = await node.http.post(f"/v1/questions?user={user}", json=body)
    assert reply.status_code == 202, reply.text
    asked = f"/v1/questions/{reply.json()['id']}?user={user}"

    async def ended() -> bool:
        status = (await node.http.get(asked)).json()["status"]
        return status in (("handed_over",) if waits else ("answered", "failed"))

    await eventually(ended)


async def converse(
    node: Running, conversation: str, user: str, first: str, said: tuple[str, str] | None, then: str | None
) -> None:
    """A conversation that people have taken over."""
    await ask(node, user, first, conversation)
    reply = await node.http.post(f"/v1/conversations/{conversation}/handover?user={user}", json={})
    assert reply.status_code == 200, reply.text
    if said is not None:
        body = {"text": said[0], "name": said[1]}
        reply = await node.http.post(f"/v1/conversations/{conversation}/messages?user=staff", json=body)
        assert reply.status_code == 201, reply.text
    await ask(node, user, then or first, conversation, waits=True)


async def shown(world: World, scene: Running, shot: Shot) -> Browser:
    user = PERSON[shot.language] if shot.view == "events" else "sam"
    width, height = shot.size
    tab = await world.tab("about:blank", language={"en": "en-GB", "zh": "zh-CN"}[shot.language])
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    await tab.call("Emulation.setDeviceMetricsOverride", **metrics)
    features = [{"name": "prefers-color-scheme", "value": shot.scheme}]
    await tab.call("Emulation.setEmulatedMedia", features=features)
    await tab.open(f"{scene.url}/?user={user}#{shot.view}")
    await tab.until(LIVE)
    await tab.run(SHORT)
    here = {
        "events": "all('#events .card').length === 4 && all('#switches input').length > 4",
        "desk": "all('#desk-list button').length === 2",
        "overview": "all('#tiles dd')[0]?.textContent > 1 && all('#tiles dd')[3].textContent > 0"
        " && all('#catalogue td').length > 0",
    }
    await tab.until(here[shot.view])
    for script, then in shot.steps:
        await tab.run(script)
        await tab.until(then)
    return tab


@pytest.mark.parametrize("shot", SHOTS, ids=lambda shot: shot.name)
async def test_a_picture_can_be_made_and_nothing_overflows(
    world: World, scenes: dict[str, Running], shot: Shot, tmp_path: Path
) -> None:
    scene = scenes[shot.language]
    async with scene.stream("ann") as there:
        await there.ready()

        async def told() -> bool:
            return bool((await scene.http.get("/v1/users/ann?user=dev")).json()["online"])

        await eventually(told)
        if shot.view == "overview":
            event = {"type": "order", "to": {"users": ["zoe"]}, "message": "one of many"}
            lines = "\n".join([json.dumps(event)] * 240)
            headers = {"content-type": "application/x-ndjson"}
            async with scene.stream("zoe") as another:
                await another.ready()
                await scene.http.post("/v1/events", content=lines, headers=headers)
                await another.messages(240)
        tab = await shown(world, scene, shot)
        # What is seen for a second is read, and looks so.
        if shot.view == "events":
            await tab.until("document.querySelectorAll('#events .dot').length === 0 || innerWidth < 600")
        assert await tab.run(OVERFLOWING) == []
        picture = await tab.call("Page.captureScreenshot", format="png")
        await no_faults(tab)
    content = base64.b64decode(picture["data"])
    folder = Path(os.environ.get("SHOTS") or tmp_path)
    (folder / f"{shot.name}.png").write_bytes(content)
    # A picture that is all one colour would be far smaller.
    assert struct.unpack(">II", content[16:24]) == shot.size
    assert len(content) > 10_000
