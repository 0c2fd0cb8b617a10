"""A shop takes pushsse up, from a look at its topics to a notice on a phone: what `make stack` starts, whole.

The shop of examples/, the tables that are proposed for its topics, people on both nodes, the gateway of
examples/ for those who are offline, a browser, and what is said afterwards of each event.
"""

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiokafka import AIOKafkaProducer

from deploy.whole import Stack
from tests.cli.running import pushsse
from tests.deployed.chromium import chromium
from tests.deployed.conftest import clients, deployed, token
from tests.deployed.listener import Listener, listening
from tests.deployed.offline_gateway import PushService, gateway, push_service, shown
from tests.shop import TOPICS, producer
from tests.waiting import eventually

pytestmark = [pytest.mark.anyio, pytest.mark.real, pytest.mark.long]
SETTINGS = {"PUSHSSE_OUTCOMES": "on", "PUSHSSE_DRAIN_DELAY_S": "0", "PUSHSSE_DRAIN_WINDOW_S": "0.2"}
LONG_AGO = "2020-01-01T00:00:00Z"
FIRE = "/warehouses/lyon|7f3a-0002"
# Type and id of what the shop had sent before. Of the sensors' data nothing is called as people are: the
# proposal says so, and has everybody get them.
ALARMS = [("shop.alarm.fire", FIRE), ("shop.alarm.temperature", "/warehouses/hamburg/cold-2|7f3a-0001")]
GETS = {
    "ann": [
        ("chat.message", "m-1"),
        *ALARMS,
        ("shop.order.draft", "A-981-draft"),
        ("shop.order.paid", "A-981-paid"),
        ("shop.order.sent", "A-981-sent"),
    ],
    "cy": [("chat.message", "m-1"), ("chat.message", "m-2"), *ALARMS],
}
# Who, which event, how it ended, what is known of it, and what is said of that.
STORIES = [
    ("ann", "A-984-paid", "read", ["switch", "published", "written", "read"], "record shop.orders-0-"),
    ("ann", "m-3", "written", ["switch", "published", "written"], "record shop.chat-0-3"),
    ("cy", "m-3", "switched_off", ["switched", "switch", "switched_off"], "chat.message off, its own switch"),
    ("ann", "m-4", "expired", ["switch", "expired"], "chat.message on, by default"),
    ("bo", "A-982-paid", "offline", ["switch", "published", "offline"], "record shop.orders-0-2"),
    ("dee", FIRE, "published", ["switch", "published"], "for everybody"),
]


class People(dict[str, list[Listener]]):
    """Their devices, by name."""

    async def have(self, name: str, events: list[tuple[str, str]]) -> None:
        """Each device of somebody has got these, once; between topics there is no order."""

        def got() -> list[list[tuple[str, str]]]:
            return [
                sorted((type_, data["id"]) for type_, data in device.others if "message" in data)
                for device in self[name]
            ]

        with suppress(AssertionError):
            await eventually(lambda: all(len(each) >= len(events) for each in got()))
        assert got() == [sorted(events)] * len(self[name]), name


async def adopt(stack: Stack, folder: Path) -> None:
    """Has tables proposed for the shop's topics, and gives them to the nodes."""
    file = folder / "pushsse.toml"
    for topic in TOPICS:
        call = ("try", "--kafka", stack.kafka.url, "--topic", topic, "--limit", "20", "--write", str(file))
        tried = await asyncio.to_thread(pushsse, folder, *call)
        assert tried.returncode == 0, tried.stderr
    for node in stack.nodes:
        shutil.copy(file, node.folder)
    await asyncio.gather(*(asyncio.to_thread(node.restart) for node in stack.nodes))


@asynccontextmanager
async def people(stack: Stack) -> AsyncIterator[People]:
    """Ann with a device on each node, and cy with one; they get what came before, too."""
    async with clients(stack) as https, AsyncExitStack() as streams:
        found = People(ann=[], cy=[])

        async def another(name: str) -> None:
            device = Listener(
                name,
                https[len(found[name]) % 2],
                token(stack, name, "stream", "preferences"),
                query="?since=1h",
            )
            await streams.enter_async_context(listening([device]))
            found[name].append(device)

        await another("cy")
        while {device.nodes[0] for device in found["ann"]} != {"node1", "node2"}:
            await another("ann")
        yield found


async def send(stack: Stack, topic: str, value: object, **headers: str) -> None:
    """One more record of the shop."""
    async with AIOKafkaProducer(bootstrap_servers=stack.kafka.url) as kafka:
        pairs = [(name.replace("_", "-"), text.encode()) for name, text in headers.items()]
        await kafka.send_and_wait(topic, json.dumps(value).encode(), headers=pairs)


async def call(device: Listener, path: str, body: object) -> None:
    """A call of somebody's device."""
    headers = {"Authorization": f"Bearer {device.token}"}
    reply = await device.http.post(path, json=body, headers=headers)
    assert reply.is_success, reply.text


@asynccontextmanager
async def reached(stack: Stack, folder: Path, service: PushService) -> AsyncIterator[str]:
    """The gateway, to which bo's browser has subscribed; its URL."""
    variables = {
        "GATEWAY_KAFKA": stack.kafka.url,
        "GATEWAY_PUSHSSE": stack.node(1).url,
        "GATEWAY_TOKEN": token(stack, "gateway", "admin"),
    }
    async with gateway(folder, **variables) as url, httpx.AsyncClient(base_url=url) as browser:
        headers = {"Authorization": f"Bearer {token(stack, 'bo')}"}
        reply = await browser.post("/subscriptions", json=service.subscription, headers=headers)
        assert reply.status_code == 204, reply.text
        yield url


async def explain(stack: Stack, folder: Path, user: str, event: str) -> dict[str, Any]:
    """What `pushsse explain` says, asked through nginx."""
    admin = token(stack, "ops", "admin")
    asked = ("explain", user, event, "--json", "--url", stack.nginx.url, "--token", admin)
    done = await asyncio.to_thread(pushsse, folder, *asked)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


async def test_a_shop_takes_it_up_and_each_event_has_a_story(tmp_path: Path) -> None:
    async with (
        deployed(tmp_path / "stack", **SETTINGS) as stack,
        push_service() as service,
        reached(stack, tmp_path, service) as url,
    ):
        await producer().produce(stack.kafka.url)
        await adopt(stack, tmp_path)
        async with people(stack) as there:
            for name, events in GETS.items():
                await there.have(name, events)
            await live_events(stack, there)
        await the_notice_is_shown(service, url, tmp_path)
        for user, event, verdict, happened, detail in STORIES:
            told = await explain(stack, tmp_path, user, event)
            assert list(dict.fromkeys(step["what"] for step in told["timeline"])) == happened, told
            assert told["verdict"] == verdict, told
            assert any(detail in step.get("detail", "") for step in told["timeline"]), told
            nodes = {step["node"] for step in told["timeline"] if step["what"] == "written"}
            assert nodes == ({"node1", "node2"} if "written" in happened else set()), told


async def live_events(stack: Stack, there: People) -> None:
    """Ann reads on one device what both have got; cy wants no chat any more; something comes too late."""
    [cy], [phone, *others] = there["cy"], there["ann"]
    order = {"orderNo": "A-984", "status": "paid", "buyer": {"id": "ann"}}
    await send(stack, "shop.orders", order)
    paid = ("shop.order.paid", "A-984-paid")
    await there.have("ann", [*GETS["ann"], paid])
    await call(phone, "/v1/acks", {"ids": ["A-984-paid"], "state": "read"})
    ack = ("ack", {"ids": ["A-984-paid"], "state": "read"})
    await eventually(lambda: all(ack in device.others for device in (phone, *others)), what="an ack")
    await call(cy, "/v1/preferences", {"types": {"chat.message": False}})
    chat = {"pushsse_type": "chat.message", "pushsse_to": "ann,cy"}
    await send(stack, "shop.chat", "late", **chat, pushsse_id="m-4", pushsse_ttl_s="1", pushsse_ts=LONG_AGO)
    await send(stack, "shop.chat", "Tea?", **chat, pushsse_id="m-3")
    await there.have("ann", [*GETS["ann"], paid, ("chat.message", "m-3")])
    # Had cy got the chat, it would be there before this.
    await send(stack, "shop.orders", order | {"buyer": {"id": "cy"}})
    await there.have("cy", [*GETS["cy"], paid])


async def the_notice_is_shown(service: PushService, url: str, folder: Path) -> None:
    """Bo, who wasn't there, is told of the one order by the browser's service worker."""
    await eventually(lambda: service.notices, what="a notice")
    [notice] = service.notices
    origin = url.replace("127.0.0.1", "localhost")
    async with chromium(folder / "profile") as browser:
        [seen] = await shown(browser, origin, f"{origin}/", notice)
    assert (seen["title"], seen["tag"]) == ("shop.order.paid", "A-982-paid")
    assert json.loads(seen["body"])["buyer"]["id"] == "bo"
