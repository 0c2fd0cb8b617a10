"""A server with OpenAI's chat completions over real HTTP, which stalls, cuts and sends garbage on demand.

A test gives each answer as a script, or none: then the last message says in brackets what becomes of it, such
as `[words 20] [stall 5]`, and what it doesn't say is a good answer. As a process of its own:
`python -m tests.questions.model_server PORT`.
"""

import asyncio
import json
import re
import ssl
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from deploy.parts.certificate import Certificate

MODEL = "small"


@dataclass
class Call:
    """One request, and the ways to answer it."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    writer: asyncio.StreamWriter
    # The client has closed the connection, or the script has.
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    _chunked: bool = False

    @property
    def text(self) -> str:
        """What is asked."""
        return str(self.body["messages"][-1]["content"])

    async def begin(
        self,
        status: int = 200,
        *,
        kind: str = "text/event-stream",
        chunked: bool = True,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """The head; without `chunked` the body ends with the connection."""
        self._chunked = chunked
        lines = [f"HTTP/1.1 {status} X", f"Content-Type: {kind}"]
        lines.append("Transfer-Encoding: chunked" if chunked else "Connection: close")
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in (headers or {}).items()]
        await self._write(("\r\n".join(lines) + "\r\n\r\n").encode())

    async def send(self, body: bytes) -> None:
        """Bytes of the body."""
        if body:
            await self._write(b"%x\r\n%b\r\n" % (len(body), body) if self._chunked else body)

    async def chunk(self, **chunk: Any) -> None:
        """One event."""
        await self.send(f"data: {json.dumps({'object': 'chat.completion.chunk'} | chunk)}\n\n".encode())

    async def delta(self, finish: str | None = None, **delta: Any) -> None:
        """One event with a choice."""
        await self.chunk(choices=[{"index": 0, "delta": delta, "finish_reason": finish}])

    async def say(self, *words: str) -> None:
        """Text, an event a word."""
        for word in words:
            await self.delta(content=word)

    async def done(self, finish: str | None = "stop", *, usage: tuple[int, int] | None = None) -> None:
        """The end, as it should be."""
        if finish is not None:
            await self.delta(finish)
        if usage is not None:
            prompt, completion = usage
            counts = {"prompt_tokens": prompt, "completion_tokens": completion}
            await self.chunk(choices=[], usage=counts)
        await self.send(b"data: [DONE]\n\n")
        await self.end()

    async def end(self) -> None:
        """The end of the body."""
        if self._chunked:
            await self._write(b"0\r\n\r\n")
        else:
            self.writer.close()

    async def whole(self, status: int, body: bytes, kind: str = "application/json", **headers: str) -> None:
        """An answer in one piece."""
        await self.begin(status, kind=kind, headers=headers)
        await self.send(body)
        await self.end()

    def cut(self) -> None:
        """Resets the connection."""
        self.writer.transport.abort()

    async def _write(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()


Script = Callable[[Call], Awaitable[None]]


@dataclass
class ModelServer:
    """Answers each request by `script`; `calls` are those that came, in order."""

    script: Script
    key: str = ""
    port: int = 0
    tls: ssl.SSLContext | None = None
    models: list[str] | None = field(default_factory=lambda: [MODEL])
    calls: list[Call] = field(default_factory=list)
    busy: int = 0
    most_busy: int = 0
    _server: asyncio.Server | None = None
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"http{'' if self.tls is None else 's'}://127.0.0.1:{self.port}/v1"

    @property
    def open(self) -> int:
        """Calls whose client is there."""
        return sum(not call.gone.is_set() for call in self.calls)

    async def up(self) -> None:
        """Listens, on the same port as before."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, ssl=self.tls)
        self.port = self._server.sockets[0].getsockname()[1]

    async def down(self) -> None:
        """As if it had been killed."""
        if self._server is not None:
            self._server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            early: bytes | None = b""
            while early is not None:
                early = await self._one(early, reader, writer)
        except (asyncio.IncompleteReadError, OSError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _one(
        self, early: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bytes | None:
        """Serves one request, of which `early` has come; what has come of the next; None: the client left."""
        head = (early + await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.strip().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        raw = await reader.readexactly(int(headers.get("content-length", "0")))
        method, path, _ = first.split(" ", 2)
        call = Call(path, headers, json.loads(raw) if raw else {}, writer)
        if method == "GET":
            await self._list(call)
            return b""
        self.calls.append(call)
        self.busy += 1
        self.most_busy = max(self.most_busy, self.busy)
        answering = asyncio.ensure_future(self.script(call))
        # A client sends nothing while it is answered: what comes before the end is its leaving.
        leaving = asyncio.ensure_future(reader.read(1))
        try:
            await asyncio.wait((answering, leaving), return_when=asyncio.FIRST_COMPLETED)
            if answering.done():
                await answering
            else:
                call.gone.set()
        except OSError:
            # The client left while it was written to.
            call.gone.set()
        finally:
            self.busy -= 1
            for each in (answering, leaving):
                each.cancel()
            _, rest = await asyncio.gather(answering, leaving, return_exceptions=True)
        if writer.is_closing() or call.gone.is_set():
            call.gone.set()
            return None
        return rest if isinstance(rest, bytes) else b""

    async def _list(self, call: Call) -> None:
        given = call.headers.get("authorization", "")
        if self.key and given != f"Bearer {self.key}":
            await call.whole(401, f'{{"error": {{"message": "Incorrect API key: {given}"}}}}'.encode())
        elif self.models is None:
            await call.whole(404, b"not here")
        else:
            await call.whole(200, json.dumps({"data": [{"id": name} for name in self.models]}).encode())


@asynccontextmanager
async def model_server(
    script: Script | None = None, *, key: str = "", certificate: Certificate | None = None
) -> AsyncIterator[ModelServer]:
    """Serves while the context lasts; over TLS with a certificate."""
    server = ModelServer(script or on_demand, key=key)
    if certificate is not None:
        server.tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        server.tls.load_cert_chain(certificate.chain, certificate.key)
    await server.up()
    try:
        yield server
    finally:
        await server.down()


_DEMAND = re.compile(r"\[(\w+)(?: ([\d.]+))?\]")


async def on_demand(call: Call) -> None:
    """The answer that the last message asks for: `[status 503]`, `[words 20]`, `[pace 0.05]` (seconds
    a word), `[think 3]`, `[stall 5]` (seconds, in the middle), `[cut]`, `[garbage]`, `[length]`, `[filter]`,
    `[refuse]`.
    """
    wants = {name: float(number or 1) for name, number in _DEMAND.findall(call.text)}
    if "status" in wants:
        await call.whole(int(wants["status"]), b'{"error": {"message": "as you like"}}')
        return
    await call.begin()
    await call.delta(role="assistant", content="")
    for _ in range(int(wants.get("think", 0))):
        await call.delta(reasoning_content="hm, ")
    if "refuse" in wants:
        await call.delta(refusal="I'd rather not.")
        await call.done()
        return
    count = int(wants.get("words", 6))
    for number in range(count):
        await call.say(f"word{number} ")
        await asyncio.sleep(wants.get("pace", 0.0))
        if number == count // 2:
            await asyncio.sleep(wants.get("stall", 0.0))
            if "garbage" in wants:
                await call.send(b": a comment\r\n\r\ndata: {not json\r\n\r\ndata: \xff\xfe\r\n\r\n")
            if "cut" in wants:
                call.cut()
                return
    finish = "length" if "length" in wants else "content_filter" if "filter" in wants else "stop"
    await call.done(finish, usage=(len(call.body["messages"]), count))


async def _serve(port: int) -> None:
    server = ModelServer(on_demand, port=port)
    await server.up()
    print(server.url, flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1])))
