"""The clients of the matrix, each made when its parts are there. What isn't there raises PartMissing."""

import sys
from collections.abc import Callable
from importlib.metadata import version

from tests.clients.client import EXAMPLES, HERE, Client, Place
from tests.clients.matrix import version_of
from tests.clients.toolchains import browser, chromium, module, node


def httpx_sse() -> Client:
    """httpx-sse."""
    return Client(
        name="httpx-sse",
        title="Python httpx-sse",
        version=lambda: version("httpx-sse"),
        as_is=lambda place: [sys.executable, str(HERE / "as_is/httpx_sse.py"), place.stream],
        right=lambda place: [sys.executable, str(EXAMPLES / "python/listen.py"), place.stream],
        lines="examples/python/listen.py",
        needs="a loop around it; the read timeout (5 s in httpx) and the token for each connection",
    )


def curl() -> Client:
    """curl."""
    return Client(
        name="curl",
        title="curl",
        version=lambda: version_of("curl", "--version"),
        as_is=lambda place: ["bash", str(HERE / "as_is/curl.sh"), place.stream],
        right=lambda place: ["bash", str(EXAMPLES / "curl/listen.sh"), place.stream],
        lines="examples/curl/listen.sh",
        needs="a loop around it, `--speed-time` as a watch for silence",
        raw=True,
    )


def chromium_eventsource() -> Client:
    """Chromium's EventSource."""
    program = chromium()
    return Client(
        name="chromium",
        title="Chromium EventSource",
        version=lambda: version_of(program, "--version"),
        as_is=browser(program, "/as_is/event-source.mjs"),
        right=browser(program, "/right/event-source.mjs"),
        lines="examples/browser/push.js",
        needs="a watch for silence and a new ticket when one lapses; no headers of one's own",
    )


def eventsource() -> Client:
    """The npm package."""
    package = ("eventsource", "3.0.7")
    return Client(
        name="eventsource",
        title="npm eventsource",
        version=lambda: package[1],
        as_is=node(package, HERE / "as_is/eventsource.mjs"),
        right=node(package, EXAMPLES / "node/listen.mjs"),
        lines="examples/node/listen.mjs",
        needs="a `fetch` that adds the header; a watch for silence; a new one after a status that isn't 200",
        http2=False,
    )


def pushsse_node() -> Client:
    """pushsse.js in Node.js."""
    return Client(
        name="pushsse-node",
        title="`pushsse.js` in Node.js",
        version=lambda: version("pushsse"),
        as_is=None,
        right=module(HERE / "right/pushsse-node.mjs"),
        lines="tests/clients/right/pushsse-node.mjs",
        needs="nothing",
        http2=False,
    )


def pushsse_page() -> Client:
    """pushsse.js in Chromium."""
    program = chromium()
    return Client(
        name="pushsse-page",
        title="`pushsse.js` in Chromium",
        version=lambda: version("pushsse"),
        as_is=None,
        right=browser(program, "/right/pushsse-page.mjs"),
        lines="tests/clients/right/pushsse-page.mjs",
        needs="nothing",
    )


FAST: tuple[Callable[[], Client], ...] = (httpx_sse, curl, chromium_eventsource, eventsource, pushsse_node)
ALL: tuple[Callable[[], Client], ...] = (
    chromium_eventsource,
    pushsse_page,
    pushsse_node,
    eventsource,
    httpx_sse,
    curl,
)
__all__ = ["ALL", "FAST", "Place"]
