"""A node in development, one with a key and a browser, for all tests of the page; and a phone's tab of it."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import jwt
import pytest

from deploy.parts import PartMissing
from tests.deployed.chromium import Browser, chromium
from tests.deployed.npm import axe
from tests.parts import missing
from tests.serving import Running, serving

SECRET = "a secret of more than thirty-two bytes, as it has to be"
# What a strict policy has refused, and what has thrown.
WATCH = """
globalThis.faults = [];
addEventListener("securitypolicyviolation", (event) => faults.push(event.violatedDirective));
addEventListener("error", (event) => faults.push(event.message));
addEventListener("unhandledrejection", (event) => faults.push(String(event.reason)));
"""
LIVE = "document.getElementById('state')?.dataset.state === 'live'"
CARDS = "[...document.querySelectorAll('#events > li')]"


@dataclass
class World:
    """A node in development, one that asks for a token, and a browser."""

    node: Running
    secured: Running
    browser: Browser
    tabs: list[Browser] = field(default_factory=list)

    async def clear(self) -> None:
        """Closes all tabs: over HTTP/1.1 a browser has six connections to a node, and streams hold them."""
        for each in self.tabs:
            await each.close()
        self.tabs.clear()

    async def tab(self, url: str, *, language: str = "en-GB", width: int = 390) -> Browser:
        """A phone's page."""
        opened = await self.browser.another()
        self.tabs.append(opened)
        await opened.call("Page.enable")
        await opened.call("Page.addScriptToEvaluateOnNewDocument", source=WATCH)
        agent = {"userAgent": "a test", "acceptLanguage": language}
        await opened.call("Emulation.setUserAgentOverride", **agent)
        metrics = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 600}
        await opened.call("Emulation.setDeviceMetricsOverride", **metrics)
        await opened.open(url)
        return opened

    async def live(self, user: str, **options: object) -> Browser:
        opened = await self.tab(f"{self.node.url}/?user={user}", **options)  # type: ignore[arg-type]
        await opened.until(LIVE)
        # All that is there by then is shown.
        await opened.until(f"{CARDS}.length > 0 || !document.getElementById('empty').hidden")
        return opened


@pytest.fixture(scope="package")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="package")
async def shared(tmp_path_factory: pytest.TempPathFactory, anyio_backend: str) -> AsyncIterator[World]:
    folder = tmp_path_factory.mktemp("page")
    (folder / "secured").mkdir()
    async with (
        serving(folder, answerer="python:tests.client.answering:answer") as node,
        serving(
            folder / "secured",
            auth_cookie="session",
            jwt_secret=SECRET,
            login_url=f"{node.url}/livez?next={{page}}",
        ) as secured,
        chromium(folder / "chromium") as browser,
    ):
        yield World(node, secured, browser)


@pytest.fixture
async def world(shared: World) -> AsyncIterator[World]:
    yield shared
    await shared.clear()


def token(user: str, lives_s: float, **claims: object) -> str:
    now = time.time()
    return jwt.encode({"sub": user, "iat": int(now), "exp": now + lives_s, **claims}, SECRET)


async def signed_in(world: World, user: str, scope: str, place: str = "", **options: object) -> Browser:
    """A tab of the node that has a key, live."""
    tab = await world.tab("about:blank", **options)  # type: ignore[arg-type]
    value = token(user, 600, scope=scope)
    await tab.call("Network.setCookie", name="session", value=value, url=world.secured.url)
    await tab.open(f"{world.secured.url}/{place}")
    await tab.until(LIVE)
    return tab


# What axe finds; and a page that is wider than its window.
FOUND = """
axe.run(document, { resultTypes: ["violations"] }).then(({ violations }) => [
  ...violations.flatMap(({ id, nodes }) => nodes.map((each) => `${id} ${each.html} ${each.failureSummary}`)),
  ...(document.documentElement.scrollWidth > innerWidth ? ["wider than the window"] : []),
])
"""


async def load_axe(tab: Browser) -> None:
    """Loads what finds out what keeps people out of a page."""
    try:
        script = await asyncio.to_thread(axe)
    except PartMissing as error:
        missing(error)
    await tab.run(f"{script}; 0")


async def resize(tab: Browser, width: int, height: int, scheme: str = "light") -> None:
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    await tab.call("Emulation.setDeviceMetricsOverride", **metrics)
    await tab.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])


async def press(tab: Browser, key: str, **more: object) -> None:
    """A key, as a keyboard sends it."""
    text = {"Enter": "\r", " ": " "}.get(key, "")
    await tab.call("Input.dispatchKeyEvent", type="keyDown", key=key, code=key, text=text, **more)
    await tab.call("Input.dispatchKeyEvent", type="keyUp", key=key, code=key, **more)


async def no_faults(tab: Browser) -> None:
    assert await tab.run("faults") == []
