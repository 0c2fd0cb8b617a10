"""pushsse.js in Node.js: importing it does nothing, and it is a client, which waits as it says."""

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from deploy.parts.ports import free_port
from pushsse.api.files import CLIENT_FOLDER
from tests.parts import missing
from tests.serving import serving
from tests.waiting import eventually

pytestmark = [pytest.mark.real, pytest.mark.anyio]
SCRIPT = Path(__file__).with_name("client.mjs")


@dataclass
class Client:
    """A Node.js with the client: what it has told, by name."""

    process: asyncio.subprocess.Process
    told: list[tuple[str, Any]] = field(default_factory=list)

    def all(self, name: str) -> list[Any]:
        return [data for each, data in self.told if each == name]

    async def run(self, script: str) -> None:
        """Tells it what to do."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{script}\n".encode())
        await self.process.stdin.drain()

    async def leave(self) -> int:
        """It has nothing more to do; returns its exit status."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return await self.process.wait()


@asynccontextmanager
async def client(*arguments: str) -> AsyncIterator[Client]:
    """The client while the context lasts."""
    if shutil.which("node") is None:
        missing("Node.js isn't installed")
    module = (CLIENT_FOLDER / "pushsse.min.js").as_uri()
    process = await asyncio.create_subprocess_exec(
        "node",
        str(SCRIPT),
        module,
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    found = Client(process)

    async def read() -> None:
        assert process.stdout is not None
        async for line in process.stdout:
            name, data = json.loads(line)
            found.told.append((name, data))

    async with asyncio.TaskGroup() as group:
        group.create_task(read())
        try:
            yield found
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()


async def test_importing_it_does_nothing_and_keeps_nothing_running() -> None:
    async with client() as node:
        assert await node.leave() == 0
        await eventually(lambda: node.all("closed"))
        assert node.told == [("imported", []), ("closed", None)]


async def test_it_is_a_client_that_ends_when_it_is_closed(tmp_path: Path) -> None:
    async with serving(tmp_path) as service, client(f"{service.url}/?user=ann") as node:
        await eventually(lambda: {"state": "live", "reason": ""} in node.all("state"))
        await service.publish("news", "Hello", "ann")
        await eventually(lambda: node.all("event"))
        assert [each["message"] for each in node.all("event")] == ["Hello"]
        await node.run(
            "for await (const { text, done } of push.ask('怎么关闭通知？')) tell('text', [text, done])"
        )
        await eventually(lambda: node.all("text") and node.all("text")[-1][1])
        assert node.all("text")[-1][0] == node.all("answer")[0]["text"]
        await node.run("tell('types', (await push.preferences.get()).types)")
        await eventually(lambda: node.all("types"))
        assert await node.leave() == 0
        assert node.all("state")[-1] == {"state": "closed", "reason": ""}
        await eventually(lambda: not service.node.hub.subscribers)


async def test_waits_grow_are_random_and_bounded_and_end_when_the_service_is_there(tmp_path: Path) -> None:
    port = free_port()
    async with client(f"http://127.0.0.1:{port}/?user=ann", "200") as node:
        await eventually(lambda: len(node.all("wait")) > 20)
        waits = node.all("wait")
        assert all(0 <= ms <= min(60_000, 3_000 * 2**tries) for tries, ms in enumerate(waits))
        later = waits[6:]
        # So it is for one in 100,000 runs, if all is well.
        assert max(later) > 20_000
        assert min(later) < 40_000
        assert len(set(later)) == len(later)
        live = ("state", {"state": "live", "reason": ""})
        async with serving(tmp_path, port=port):
            await eventually(lambda: live in node.told)
        # Success begins anew: the waits after it are short again.
        await eventually(lambda: len(node.all("wait")) > len(waits) + 3)
        after = [ms for name, ms in node.told[node.told.index(live) :] if name == "wait"]
        assert after[0] <= 5_000
        assert after[1] <= 5_000


async def test_a_login_that_never_answers_is_asked_again(tmp_path: Path) -> None:
    async with serving(tmp_path) as service, client("", "200") as node:
        await node.run(
            "globalThis.asked = 0;"
            "const token = () => ++asked > 1 ? 'a token' : new Promise(() => {});"
            f"globalThis.own = connect({{ url: '{service.url}/?user=ann', token }});"
            "own.on('state', (state) => tell('state', state));"
        )
        await eventually(lambda: {"state": "live", "reason": ""} in node.all("state"))
        # After half a minute, and a pause.
        assert node.all("wait")[0] == 30_000
        await node.run("own.close(); tell('asked', asked)")
        await eventually(lambda: node.all("asked") == [2])
        assert await node.leave() == 0
