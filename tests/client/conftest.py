"""One node, one gate before it and one Chromium for all tests of the client in a browser."""

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import jwt
import pytest

from pushsse.errors import CloseReason
from tests.client.gate import CSP, Gate, gate
from tests.deployed.chromium import Browser, chromium
from tests.serving import Running, serving
from tests.waiting import eventually

SECRET = "a secret of more than thirty-two bytes, as it has to be"
# What a page of an app does, and what the tests look at.
APP = """
import { connect } from "/pushsse.js";
const told = globalThis.told = { seen: [], states: [], gaps: 0, begun: [], errors: [], text: "" };
addEventListener("error", (event) => told.errors.push(event.message));
globalThis.listen = ({ user = "ann", gap = true, ...options } = {}) => {
  const token = () => fetch(`/token?user=${user}`).then(async (reply) => reply.ok ? reply.text() : null);
  const own = ["ticket", "token", "credentials"].some((name) => name in options);
  const push = globalThis.push = connect(own ? options : { token, ...options });
  push.on("event", (event) => told.seen.push(event.message));
  push.on("state", ({ state, reason }) => told.states.push(reason ? `${state} ${reason}` : state));
  push.on("answer.delta", ({ from, text }) => told.text = told.text.slice(0, from) + text);
  push.on("ready", (ready) => told.begun.push(ready.resume));
  if (gap) push.on("gap", () => told.gaps++);
  return push;
};
globalThis.loaded = true;
"""
# What a tab that leads tells doesn't arrive, as if the others were frozen for a while.
LOSES = """
globalThis.sends = BroadcastChannel.prototype.postMessage;
BroadcastChannel.prototype.postMessage = function (said) { if (said.kind !== "told") sends.call(this, said) };
0
"""
LOSES_NOTHING = "BroadcastChannel.prototype.postMessage = sends; 0"
PAGE = (
    '<!doctype html><meta charset="utf-8"><title>An app</title><script type="module" src="/app.js"></script>'
)


def token(user: str, *, lives_s: float = 600.0, scope: str = "") -> str:
    now = time.time()
    claims = {"sub": user, "iat": int(now), "exp": now + lives_s}
    return jwt.encode({**claims, "scope": scope} if scope else claims, SECRET)


@dataclass
class World:
    """What the tests of one file share."""

    node: Running
    gate: Gate
    browser: Browser
    tabs: list[Browser] = field(default_factory=list)
    # How long tokens live that pages ask for, and who gets none.
    lives_s: float = 600.0
    signed_out: set[str] = field(default_factory=set)

    def give_token(self, query: dict[str, str]) -> tuple[int, str]:
        user = query["user"]
        return (401, "") if user in self.signed_out else (200, token(user, lives_s=self.lives_s))

    async def tab(self, host: str = "127.0.0.1", **options: Any) -> Browser:
        """A tab with the app's page, which listens with these options."""
        opened = await self.browser.another()
        self.tabs.append(opened)
        await opened.open(f"http://{host}:{self.gate.port}/app")
        await opened.until("globalThis.loaded === true")
        if options.pop("listens", True):
            await listen(opened, **options)
        return opened

    async def publish(self, message: object, to: str = "ann") -> None:
        """An event, after which all that were published before are on their way."""
        headers = {"Authorization": f"Bearer {token('sender', scope='pushsse:publish')}"}
        event = {"type": "news", "message": message, "to": {"users": [to]}}
        reply = await self.node.http.post("/v1/events", json=event, headers=headers)
        assert reply.status_code == 202, reply.text

    def end_streams(self, reason: CloseReason) -> None:
        """Ends all streams, as the service does it by itself."""
        for each in list(self.node.node.hub.subscribers):
            each.end(reason)

    async def until_streams(self, count: int) -> None:
        await eventually(lambda: self.gate.streams() == count, what=f"{count} streams")

    async def clear(self) -> None:
        """Closes what a test has opened, and lets everything pass again."""
        self.gate.withholds = self.gate.hangs = self.gate.refuses = False
        self.lives_s, self.signed_out = 600.0, set()
        for each in self.tabs:
            await each.close()
        self.tabs.clear()
        self.gate.cut()
        await eventually(lambda: not self.node.node.hub.subscribers)
        self.gate.requests.clear()


async def listen(tab: Browser, **options: Any) -> None:
    """Connects, and waits until that is so."""
    given = ", ".join(f"{name}: {value}" for name, value in options.items())
    await tab.run(f"void listen({{{given}}})")
    await tab.until("push.state === 'live'")


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory, anyio_backend: str) -> AsyncIterator[World]:
    folder = tmp_path_factory.mktemp("client")
    async with (
        serving(
            folder,
            jwt_secret=SECRET,
            heartbeat_s=1.0,
            auth_cookie="session",
            answerer="python:tests.client.answering:answer",
        ) as node,
        gate(node.port) as made,
        chromium(folder / "chromium") as browser,
    ):
        world = World(node, made, browser)
        made.pages["/app"] = (PAGE, "text/html", CSP)
        made.pages["/app.js"] = (APP, "text/javascript", "")
        made.made["/token"] = world.give_token
        yield world


@pytest.fixture
async def world(shared: World) -> AsyncIterator[World]:
    yield shared
    await shared.clear()
