"""A client that comes back by itself with its position, as browsers do, and remembers what it was told."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
from httpx_sse import ServerSentEvent
from httpx_sse._decoders import SSEDecoder

from tests.waiting import eventually

_TIMEOUT = httpx.Timeout(10.0, read=60.0)


@dataclass
class Listener:
    """`run` listens for ever; `pause_s` passes before it comes back, whatever the server proposes."""

    user: str
    http: httpx.AsyncClient
    token: str
    pause_s: float = 0.3
    query: str = ""
    numbers: list[int] = field(default_factory=list)
    nodes: list[str] = field(default_factory=list)
    resumes: list[str] = field(default_factory=list)
    # All others: name and data.
    others: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    exceptions: list[str] = field(default_factory=list)
    statuses: set[int] = field(default_factory=set)
    last_id: str = ""

    async def run(self) -> None:
        """Connects again and again."""
        while True:
            try:
                await self._connection()
            except httpx.TransportError:
                pass
            await asyncio.sleep(self.pause_s)

    async def _connection(self) -> None:
        headers = {"Authorization": f"Bearer {self.token}", "Accept": "text/event-stream"}
        if self.last_id:
            headers["Last-Event-ID"] = self.last_id
        async with self.http.stream("GET", f"/v1/stream{self.query}", headers=headers) as response:
            self.statuses.add(response.status_code)
            async for event in events(response):
                self._take(event)

    def _take(self, event: ServerSentEvent) -> None:
        self.last_id = event.id or self.last_id
        data = json.loads(event.data)
        match event.event:
            case "ready":
                self.nodes.append(data["node"])
                self.resumes.append(data["resume"])
            case "exception":
                self.exceptions.append(data["code"])
            case "number":
                self.numbers.append(data["message"])
            case name:
                self.others.append((name, data))


async def events(response: httpx.Response) -> AsyncIterator[ServerSentEvent]:
    """The events of a stream, as they come."""
    decoder, rest = SSEDecoder(), b""
    async for piece in response.aiter_bytes():
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            if (event := decoder.decode(line.decode())) is not None:
                yield event


@asynccontextmanager
async def listening(listeners: Sequence[Listener]) -> AsyncIterator[None]:
    """All of them listen while the context lasts; inside, each was ready once."""
    async with AsyncExitStack() as stack:
        group = await stack.enter_async_context(asyncio.TaskGroup())
        tasks = [group.create_task(listener.run()) for listener in listeners]
        try:
            await eventually(lambda: all(listener.nodes for listener in listeners))
            yield
        finally:
            for task in tasks:
                task.cancel()
