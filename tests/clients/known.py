"""The clients of the matrix. Each is made when its parts are there; PartMissing says what isn't."""

import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version

from tests.clients.client import EXAMPLES, HERE, Client, Command
from tests.clients.matrix import KILLED, TERMINATED, TOKEN, version_of
from tests.clients.toolchains import (
    browser,
    cargo,
    chromium,
    firefox,
    go,
    kotlin,
    module,
    node,
    python,
    webkit,
)
from tests.deployed.npm import EVENTSOURCE, FETCH_EVENT_SOURCE

Make = Callable[[], Client]
_EVENTSOURCE_CLIENT = ("eventsource-client", "1.2.0")
_OKHTTP = ("okhttp-sse-5.5.1", "com.squareup.okhttp3:okhttp-sse:5.5.1", "org.json:json:20240303")
_LAUNCHDARKLY = (
    "okhttp-eventsource-4.3.0",
    "com.launchdarkly:okhttp-eventsource:4.3.0",
    "org.json:json:20240303",
)
_OWN_PAGE = "/right/pushsse-page.mjs"
_PAGE = (
    "a watch for silence, which it hasn't; a new ticket when one has lapsed. It sends no headers of one's own"
)


def _is(version: str) -> Callable[[], str]:
    return lambda: version


def chromium_eventsource() -> Client:
    """Chromium's EventSource."""
    program = chromium()
    return Client(
        name="chromium",
        title="Chromium, `EventSource`",
        version=lambda: version_of(program, "--version"),
        as_is=browser(program, "/as_is/event-source.mjs"),
        right=browser(program, "/right/event-source.mjs"),
        lines="examples/browser/push.js",
        needs=_PAGE,
    )


def firefox_eventsource() -> Client:
    """Firefox's EventSource."""
    return Client(
        name="firefox",
        title="Firefox, `EventSource`",
        version=lambda: version_of("firefox-esr", "--version"),
        as_is=firefox("/as_is/event-source.mjs"),
        right=firefox("/right/event-source.mjs"),
        lines="examples/browser/push.js",
        needs=_PAGE,
    )


def webkit_eventsource() -> Client:
    """WebKit's EventSource."""
    return Client(
        name="webkit",
        title="WebKit (WPE), `EventSource`",
        version=lambda: version_of("sh", "-c", "cog --version | sed 's/.*WebKit //'"),
        as_is=webkit("/as_is/event-source.mjs"),
        right=webkit("/right/event-source.mjs"),
        lines="examples/browser/push.js",
        needs=f"{_PAGE}. Over HTTP/2 this one (libsoup) stays in a connection that has died",
        keeps_dead_http2=True,
    )


def pushsse_page() -> Client:
    """pushsse.js in Chromium."""
    return _own_page("pushsse-page", "Chromium", browser(chromium(), _OWN_PAGE))


def pushsse_firefox() -> Client:
    """pushsse.js in Firefox."""
    return _own_page("pushsse-firefox", "Firefox", firefox(_OWN_PAGE))


def pushsse_webkit() -> Client:
    """pushsse.js in WebKit."""
    needs = "nothing. Over HTTP/2 this WebKit (libsoup) stays in a connection that has died"
    made = _own_page("pushsse-webkit", "WebKit (WPE)", webkit(_OWN_PAGE))
    return replace(made, needs=needs, keeps_dead_http2=True)


def _own_page(name: str, where: str, right: Command) -> Client:
    return Client(
        name=name,
        title=f"`pushsse.js` in {where}",
        version=lambda: version("pushsse"),
        as_is=None,
        right=right,
        lines="tests/clients/right/pushsse-page.mjs",
        needs="nothing",
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


def eventsource() -> Client:
    """The npm package."""
    return Client(
        name="eventsource",
        title="npm `eventsource`",
        version=_is(EVENTSOURCE[1]),
        as_is=node(EVENTSOURCE, HERE / "as_is/eventsource.mjs"),
        right=node(EVENTSOURCE, EXAMPLES / "node/listen.mjs"),
        lines="examples/node/listen.mjs",
        needs="a `fetch` that adds the newest token; a watch for silence; a new one after a status but 200",
        http2=False,
    )


def eventsource_client() -> Client:
    """The npm package."""
    return Client(
        name="eventsource-client",
        title="npm `eventsource-client`",
        version=_is(_EVENTSOURCE_CLIENT[1]),
        as_is=node(_EVENTSOURCE_CLIENT, HERE / "as_is/eventsource-client.mjs"),
        right=node(_EVENTSOURCE_CLIENT, HERE / "right/eventsource-client.mjs"),
        lines="tests/clients/right/eventsource-client.mjs",
        needs="a `fetch` that adds the newest token, and stops at 400, 401 and 403; a watch for silence",
        http2=False,
    )


def fetch_event_source() -> Client:
    """The npm package."""
    example = EXAMPLES / "browser/fetch-event-source.js"
    return Client(
        name="fetch-event-source",
        title="`@microsoft/fetch-event-source`",
        version=_is(FETCH_EVENT_SOURCE[1]),
        as_is=node(FETCH_EVENT_SOURCE, HERE / "as_is/fetch-event-source.mjs"),
        right=node(FETCH_EVENT_SOURCE, HERE / "right/fetch-event-source.mjs", example),
        lines="examples/browser/fetch-event-source.js",
        needs="a call for each connection, since a clean end ends it, and its headers stay the first ones;"
        " a watch for silence",
        http2=False,
    )


def okhttp_sse() -> Client:
    """okhttp-sse on the JVM."""
    return Client(
        name="okhttp-sse",
        title="okhttp-sse (Kotlin)",
        version=_is("5.5.1"),
        as_is=kotlin(_OKHTTP, "OkhttpAsIsKt", HERE / "as_is/OkhttpAsIs.kt"),
        right=kotlin(_OKHTTP, "ListenKt", EXAMPLES / "android/PushStream.kt", EXAMPLES / "android/Listen.kt"),
        lines="examples/android/PushStream.kt",
        needs="a loop around it with the last id and the token; `readTimeout` (10 s) of three heartbeats",
    )


def launchdarkly() -> Client:
    """LaunchDarkly's okhttp-eventsource on the JVM."""
    return Client(
        name="okhttp-eventsource",
        title="okhttp-eventsource (Kotlin)",
        version=_is("4.3.0"),
        as_is=kotlin(_LAUNCHDARKLY, "LaunchDarklyAsIsKt", HERE / "as_is/LaunchDarklyAsIs.kt"),
        right=kotlin(_LAUNCHDARKLY, "LaunchDarklyKt", HERE / "right/LaunchDarkly.kt"),
        lines="tests/clients/right/LaunchDarkly.kt",
        needs="`readTimeout` (5 s) of three heartbeats; `requestTransformer` for the newest token; a new one"
        " after `token_expired`",
    )


def httpx_sse() -> Client:
    """httpx-sse."""
    return Client(
        name="httpx-sse",
        title="Python httpx-sse",
        version=lambda: version("httpx-sse"),
        as_is=lambda place: [sys.executable, str(HERE / "as_is/httpx_sse.py"), place.stream],
        right=lambda place: [sys.executable, str(EXAMPLES / "python/listen.py"), place.stream],
        lines="examples/python/listen.py",
        needs="a loop around it with the last id and the token; a read timeout (5 s) of three heartbeats;"
        " with HTTP/2 a client for each connection",
    )


def aiohttp_sse_client() -> Client:
    """aiohttp-sse-client."""
    wanted = ("aiohttp-sse-client==0.2.1", "aiohttp==3.14.5")
    return Client(
        name="aiohttp-sse-client",
        title="Python aiohttp-sse-client",
        version=_is("0.2.1"),
        as_is=python(HERE / "as_is/aiohttp_sse.py", *wanted),
        right=python(HERE / "right/aiohttp_sse.py", *wanted),
        lines="tests/clients/right/aiohttp_sse.py",
        needs="a loop around it, since its wait doubles with each end and it gives up at one failure;"
        " no time limit in all (5 min), `sock_read` of three heartbeats",
        http2=False,
    )


def go_sse() -> Client:
    """tmaxmax/go-sse."""
    return Client(
        name="go-sse",
        title="Go tmaxmax/go-sse",
        version=_is("0.12.0"),
        as_is=go(HERE / "go", "gosse-as-is"),
        right=go(EXAMPLES / "go"),
        lines="examples/go/listen.go",
        needs="a call for each connection with the newest token; a timer that cancels it after three silent"
        " heartbeats; with HTTP/2 `CloseIdleConnections`",
    )


def r3labs() -> Client:
    """r3labs/sse."""
    return Client(
        name="r3labs",
        title="Go r3labs/sse",
        version=_is("2.10.0"),
        as_is=go(HERE / "go", "r3labs-as-is"),
        right=go(HERE / "go", "r3labs"),
        lines="tests/clients/go/r3labs/main.go",
        needs="a loop around it, since a clean end is its end; the newest token; a timer as above",
    )


def reqwest_eventsource() -> Client:
    """reqwest-eventsource."""
    return Client(
        name="reqwest-eventsource",
        title="Rust reqwest-eventsource",
        version=_is("0.6.0"),
        as_is=cargo(HERE / "rust", "as_is"),
        right=cargo(HERE / "rust", "right"),
        lines="tests/clients/rust/src/bin/right.rs",
        needs="a source for each connection with the newest token; a `timeout` of three heartbeats around"
        " `next`; with HTTP/2 a client for each connection",
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
        needs="a loop around it with the last id; `--speed-time` of three heartbeats",
        raw=True,
    )


def wechat() -> Client:
    """A WeChat mini program, which polls."""
    return Client(
        name="wechat",
        title="WeChat mini program, polls",
        version=_is("–"),
        as_is=None,
        right=module(HERE / "right/wechat.mjs"),
        lines="examples/wechat/push.js",
        needs="`GET /v1/events?wait_s=25`, since it has no streams; `timeout` longer than that",
        http2=False,
        # A node that stops answers a poll, nginx asks another one where it died, each has the newest token.
        unnoticed=frozenset((TERMINATED, KILLED, TOKEN)),
    )


FAST: tuple[Make, ...] = (httpx_sse, curl, chromium_eventsource, eventsource, pushsse_node, wechat)
ALL: tuple[Make, ...] = (
    pushsse_page,
    pushsse_firefox,
    pushsse_webkit,
    pushsse_node,
    chromium_eventsource,
    firefox_eventsource,
    webkit_eventsource,
    eventsource,
    eventsource_client,
    fetch_event_source,
    okhttp_sse,
    launchdarkly,
    httpx_sse,
    aiohttp_sse_client,
    go_sse,
    r3labs,
    reqwest_eventsource,
    curl,
    wechat,
)
