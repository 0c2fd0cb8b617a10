"""Clients of front ends, as they are, through nginx, while the node that answers is killed.

Two nodes over Redis and PostgreSQL ask a model; `dead-node.mjs` has the clients, each of which goes on as
its kind does.
"""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from deploy.parts import Nginx, Node, Part, Postgres, Redis
from deploy.parts.ports import take_port
from pushsse.database import Database, Statement
from tests.cli.test_serve import SECRET
from tests.deployed.test_front_ends import AG_UI, NEWEST_AI_SDK, OPENAI_NODE, package
from tests.deployed.test_npm_clients import token
from tests.parts import running
from tests.questions.model_server import Call, ModelServer, model_server

pytestmark = [pytest.mark.real, pytest.mark.anyio, pytest.mark.long]
_LIMIT_S = 150
_OWNERS = Statement("SELECT owner FROM pushsse_question WHERE status = 'answering'")
# Each client asks twice: once the second attempt says the same as the first, once it doesn't.
ASKED = 8


@dataclass
class Model:
    """What is asked: the first answer to a text hangs after its first word, the second is whole."""

    asked: Counter[str] = field(default_factory=Counter)

    async def script(self, call: Call) -> None:
        self.asked[call.text] += 1
        await call.begin()
        if self.asked[call.text] == 1:
            await call.say("one ")
            await call.gone.wait()
            return
        await call.say(*(("one ", "two ") if call.text.startswith("same") else ("uno ", "dos ")))
        await call.done()


@contextmanager
def parts(*all_of: Part) -> Iterator[None]:
    """Runs them, one after the other."""
    if not all_of:
        yield
        return
    first, *rest = all_of
    for _ in running(first):
        with parts(*rest):
            yield


def nodes(folder: Path, redis: Redis, database: str, server: ModelServer) -> list[Node]:
    settings = {
        "PUSHSSE_JWT_SECRET": SECRET,
        "PUSHSSE_REDIS_URL": redis.url,
        "PUSHSSE_REDIS_PREFIX": f"dead-{take_port(server)}:",
        "PUSHSSE_DATABASE_URL": database,
        "PUSHSSE_ANSWERER": f"openai:{server.url}?model=small",
        "PUSHSSE_DRAIN_DELAY_S": "0",
        "PUSHSSE_DRAIN_WINDOW_S": "0.2",
    }
    return [Node(f"node{number}", folder / f"node{number}", settings) for number in (1, 2)]


async def test_all_that_a_dead_node_answered_is_whole_in_the_end(
    tmp_path: Path, redis_part: Redis, postgres_part: Postgres
) -> None:
    model = Model()
    folders = [await package("ai", version) for version in NEWEST_AI_SDK[:2]]
    folders += [await package("@ag-ui/client", AG_UI[0]), await package("openai", OPENAI_NODE)]
    url = await asyncio.to_thread(postgres_part.create_database, "dead_node")
    # A node answers four questions of one person at a time.
    tokens = [token("ann", "ask"), token("bo", "ask")]
    script = str(Path(__file__).with_name("dead-node.mjs"))
    async with Database(url, timeout_s=10) as database, model_server(model.script) as server:
        await database.migrate()
        first, second = nodes(tmp_path, redis_part, url, server)
        nginx = Nginx(tmp_path / "nginx", [f"127.0.0.1:{node.port}" for node in (first, second)])
        context = parts(first, nginx)
        await asyncio.to_thread(context.__enter__)
        try:
            process = await asyncio.create_subprocess_exec(
                "node", script, nginx.url, *tokens, *map(str, folders), stdout=asyncio.subprocess.PIPE
            )
            assert process.stdout is not None
            try:
                async with asyncio.timeout(_LIMIT_S):
                    shown = json.loads(await process.stdout.readline() or "null")
                    assert shown == {"name": "shown", "data": {}}
                    # From here on there is somebody who takes them over.
                    await asyncio.to_thread(second.start)
                    assert await database.rows(str, _OWNERS) == [first.name] * ASKED
                    await asyncio.to_thread(first.kill)
                    killed = time.monotonic()
                    rest, _ = await process.communicate()
            finally:
                if process.returncode is None:
                    process.kill()
                    await process.wait()
        finally:
            await asyncio.to_thread(second.remove)
            await asyncio.to_thread(context.__exit__, None, None, None)
    told = [json.loads(line) for line in rest.splitlines()]
    assert told, "none of them came to its end"
    assert told[-1]["name"] == "end", told
    # Eight answers, two of which are shown on a second device, too.
    assert len(told) == ASKED + 2 + 1
    assert time.monotonic() - killed < 60
    assert set(model.asked.values()) == {2}
