"""Tries the handover once, at the start of a node, over a connection to itself.

Called by `server`. uvicorn's insides may change with any release: better to find that out here, and to write
streams the portable way, than by streams that break.
"""

import asyncio
import socket
from concurrent.futures import ThreadPoolExecutor

from starlette.types import Receive, Scope, Send
from uvicorn import Config
from uvicorn.server import ServerState

from pushsse.stream.frame import chunk
from pushsse.stream.handover import LAST_CHUNK, HandoverHttp, offered

LIMIT_S = 5.0
_REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
_FIRST, _LAST = chunk(b"handed"), chunk(b"over")


def failed() -> str:
    """What went wrong; empty if a connection was handed over, written to and closed as it should be."""
    # A thread, since an event loop may be running here already.
    with ThreadPoolExecutor(1) as thread:
        error = thread.submit(lambda: asyncio.run(_try())).exception()
    return f"uvicorn's insides have changed: {error!r}" if error else ""


async def _try() -> None:
    state = ServerState()
    served, client = socket.socketpair()
    client.setblocking(False)
    with client:
        answer = await asyncio.wait_for(_ask(state, served, client), LIMIT_S)
    if not answer.startswith(b"HTTP/1.1 200 "):
        raise AssertionError(f"a stream's head is {answer!r}")
    if not answer.endswith(b"\r\n\r\n" + _FIRST.framed + _LAST.framed + LAST_CHUNK):
        raise AssertionError(f"a stream's body is {answer!r}")
    if state.connections or state.tasks:
        raise AssertionError("a connection is still counted after its end")


async def _ask(state: ServerState, served: socket.socket, client: socket.socket) -> bytes:
    """All that is answered on a connection."""
    loop = asyncio.get_running_loop()
    config = Config(_app, http=HandoverHttp, ws="none", lifespan="off", log_config=None, access_log=False)
    config.load()
    transport, _ = await loop.connect_accepted_socket(lambda: HandoverHttp(config, state, {}), served)
    try:
        await loop.sock_sendall(client, _REQUEST)
        answer = b""
        while more := await loop.sock_recv(client, 4096):
            answer += more
    finally:
        transport.abort()
    # What is called soon after the end, is called.
    await asyncio.sleep(0)
    return answer


async def _app(scope: Scope, receive: Receive, send: Send) -> None:
    offer = offered(scope)
    if offer is None:
        raise AssertionError("no handover is offered")
    offer.hold_head()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    stream = offer.take(1_000)
    if stream is None:
        raise AssertionError("the connection isn't handed over")
    stream.write(_FIRST)
    stream.end(_LAST)
