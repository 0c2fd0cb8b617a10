"""Requests that arrive together begin a few in each turn of the event loop, in the order of their arrival."""

import asyncio
import socket
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send
from uvicorn import Config
from uvicorn.server import Server

from pushsse.stream.admission import STARTS_PER_TURN, Starts
from pushsse.stream.immediate import ImmediateHttp
from tests.waiting import eventually

pytestmark = pytest.mark.anyio
CLIENTS = 60
LIMIT_S = 30.0


class Counting:
    """An application that knows in which turn of the loop each request began."""

    def __init__(self) -> None:
        self.turn = 0
        self.begun: list[tuple[int, str]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.begun.append((self.turn, scope["path"]))
        await PlainTextResponse(scope["path"])(scope, receive, send)

    def tick(self) -> None:
        self.turn += 1
        asyncio.get_running_loop().call_soon(self.tick)


@asynccontextmanager
async def served(app: Counting) -> AsyncIterator[int]:
    listener = socket.create_server(("127.0.0.1", 0), backlog=CLIENTS)
    server = Server(Config(app, http=ImmediateHttp, lifespan="off", log_config=None, access_log=False))
    running = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        await eventually(lambda: server.started)
        yield int(listener.getsockname()[1])
    finally:
        server.should_exit = True
        await running


@pytest.mark.parametrize("pipelined", [1, 5])
async def test_no_turn_begins_more_than_a_few_requests_and_all_are_answered(pipelined: int) -> None:
    app = Counting()
    async with served(app) as port, asyncio.timeout(LIMIT_S):
        opened = [await asyncio.open_connection("127.0.0.1", port) for _ in range(CLIENTS)]
        app.tick()
        for number, (_, writer) in enumerate(opened):
            for turn in range(pipelined):
                writer.write(f"GET /{number}/{turn} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        for number, (reader, writer) in enumerate(opened):
            for turn in range(pipelined):
                head = await reader.readuntil(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 200 ")
                path = f"/{number}/{turn}".encode()
                assert await reader.readexactly(len(path)) == path
            writer.close()
    per_turn = Counter(turn for turn, _ in app.begun)
    assert sum(per_turn.values()) == CLIENTS * pipelined
    assert max(per_turn.values()) == STARTS_PER_TURN


async def test_requests_begin_in_the_order_of_their_arrival_also_those_that_arrive_in_between() -> None:
    loop, starts = asyncio.get_running_loop(), Starts()
    begun: list[int] = []
    most = 3 * STARTS_PER_TURN
    for number in range(most):
        starts.start(loop, lambda number=number: begun.append(number))  # type: ignore[misc]
    assert begun == list(range(STARTS_PER_TURN))
    await asyncio.sleep(0)
    # Others wait from earlier turns: it is behind them.
    starts.start(loop, lambda: begun.append(most))
    assert most not in begun
    await eventually(lambda: len(begun) == most + 1)
    assert begun == list(range(most + 1))


async def test_a_request_whose_client_leaves_at_once_begins_nevertheless() -> None:
    app = Counting()
    async with served(app) as port, asyncio.timeout(LIMIT_S):
        opened = [await asyncio.open_connection("127.0.0.1", port) for _ in range(CLIENTS)]
        for number, (_, writer) in enumerate(opened):
            writer.write(f"POST /{number} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".encode())
            writer.close()
        await eventually(lambda: len(app.begun) == CLIENTS)
        assert {path for _, path in app.begun} == {f"/{number}" for number in range(CLIENTS)}
