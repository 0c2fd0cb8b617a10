"""The deployment that faults happen to: the stack with three nodes, and a relay before PostgreSQL.

Used by the world and by the faults, which kill, stop and start its parts.
"""

import asyncio
import os
import re
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit, urlunsplit

import httpx
import jwt
import redis.asyncio
from prometheus_client.parser import text_string_to_metric_families
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from deploy.parts import Node
from deploy.parts.ports import free_port
from deploy.whole import Stack
from faults.relay import Relay

NODES = 3
_PAGE = os.sysconf("SC_PAGE_SIZE")
# PostgreSQL's pool has 8, an outbox's 3, and one listens; three clients of Kafka have two each, and sometimes
# one more that ends.
_MOST_IN_RESERVE = 21
# aiokafka shields a commit from its caller's time limit, and nobody is there any more when that fails by its
# own; in a node that was stopped both limits are over. The commit itself is made good by the next one.
_STRAY = re.compile(
    rb"future: <Task finished .*_do_commit_offsets\(\).*\n(?!\d{4}-\d\d-\d\d )(?:.*\n(?!\d{4}-\d\d-\d\d ))*"
)


class Cluster:
    """Starts everything on entering, ends everything on leaving."""

    def __init__(self, folder: Path, make: Callable[..., Node] = Node) -> None:
        self.make = make
        self.stack = Stack(folder, nodes=NODES)
        self.relay = Relay(free_port(), self.stack.postgres.port)
        self.extra: list[Node] = []
        for number in range(1, NODES + 1):
            self.replace(number, make).settings.update(self.settings)
        # Its connection of before a fault may be dead.
        self.redis = redis.asyncio.Redis.from_url(
            self.stack.redis.url, socket_timeout=5, retry=Retry(NoBackoff(), 3)
        )
        # Without connections that stay: they would be open files of the nodes.
        limits = httpx.Limits(max_keepalive_connections=0)
        self.http = httpx.AsyncClient(timeout=10, trust_env=False, limits=limits)
        self._logs_read: dict[Path, int] = {}

    @property
    def settings(self) -> Mapping[str, str]:
        """The nodes' settings."""
        url = urlsplit(self.stack.postgres.url)
        relayed = url._replace(netloc=url.netloc.replace(f":{url.port}", f":{self.relay.port}"))
        return {
            **self.stack.settings,
            "PUSHSSE_DATABASE_URL": urlunsplit(relayed),
            # A run may last longer than a stream.
            "PUSHSSE_STREAM_LIFETIME_S": "0",
            # The load comes from few people, who do much.
            "PUSHSSE_SWITCHES_PER_MINUTE": "0",
            "PUSHSSE_MAX_STREAMS_PER_USER": "0",
            "PUSHSSE_MAX_REPLIES_PER_USER": "0",
        }

    @property
    def nodes(self) -> Sequence[Node]:
        """All nodes that run, those that nginx doesn't know among them."""
        return [node for node in (*self.stack.nodes, *self.extra) if node.running]

    async def __aenter__(self) -> Self:
        await self.relay.__aenter__()
        try:
            await asyncio.to_thread(self.stack.start)
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for part in (self.stack.redis, self.stack.postgres, self.stack.kafka, *self.nodes):
            if part.running:
                part.resume()
        # The clients have gone by now, so nobody has to be drained.
        for node in self.nodes:
            node.kill()
        await asyncio.to_thread(self.stack.stop)
        await self.redis.aclose()
        await self.http.aclose()
        await self.relay.__aexit__(None, None, None)

    def add_node(self, name: str) -> Node:
        """One more node, which takes its share of Kafka but has no streams; not started yet."""
        node = self.make(name, self.stack.folder / name, self.settings, log=self.stack.logs / f"{name}.log")
        self.extra.append(node)
        return node

    async def mend(self) -> None:
        """Starts what a fault that failed has left dead or asleep."""
        self.relay.delay(0.0)
        for part in self.stack.parts:
            if part.running:
                part.resume()
            else:
                part.kill()
                await asyncio.to_thread(part.start)

    def replace(self, number: int, make: Callable[..., Node]) -> Node:
        """Puts a node of another kind in the place of one that has ended, on its port."""
        old = self.stack.node(number)
        new = make(old.name, old.folder, old.settings, port=old.port, log=old.log)
        self.stack.nodes[number - 1] = new
        return new

    def token(self, user: str, scope: str = "") -> str:
        """A token as the company's login would give it."""
        claims = {"sub": user, "exp": int(time.time()) + 12 * 3600}
        if scope:
            claims["scope"] = scope
        return jwt.encode(claims, self.stack.settings["PUSHSSE_JWT_SECRET"], algorithm="HS256")

    async def metrics(self, node: Node) -> Mapping[str, float]:
        """A node's counters: by name, those with labels summed up and also by `name:value`."""
        reply = await self.http.get(f"{node.url}/metrics")
        found: dict[str, float] = {}
        for family in text_string_to_metric_families(reply.text):
            for sample in family.samples:
                name = sample.name.removeprefix("pushsse_").removesuffix("_total")
                found[name] = found.get(name, 0) + sample.value
                for value in sample.labels.values():
                    found[f"{name}:{value}"] = found.get(f"{name}:{value}", 0) + sample.value
        return found

    async def total(self, name: str) -> float:
        """One counter over all nodes."""
        return sum([(await self.metrics(node)).get(name, 0) for node in self.nodes])

    async def files(self) -> int:
        """The open files of all nodes but for those of open streams and of connections in reserve.

        Those to PostgreSQL and to Kafka come and go by themselves within a bound, and last for minutes.
        """
        reserve = connections_to({self.relay.port, self.stack.kafka.port})
        opened = 0
        for node in self.nodes:
            files = open_files(node.pid)
            kept = sum(file in reserve for file in files)
            assert kept <= _MOST_IN_RESERVE, f"{node.name} has {kept} connections to Kafka and PostgreSQL"
            opened += len(files) - kept
        return opened - int(await self.total("connections"))

    def rss(self) -> Mapping[str, int]:
        """The resident memory of each node in bytes."""
        return {
            node.name: int(Path(f"/proc/{node.pid}/statm").read_text().split()[1]) * _PAGE
            for node in self.nodes
        }

    def tracebacks(self) -> int:
        """How many tracebacks the nodes have logged since this was last asked."""
        found = 0
        for log in self.stack.logs.glob("*node*.log"):
            with log.open("rb") as file:
                file.seek(self._logs_read.get(log, 0))
                found += _STRAY.sub(b"", file.read()).count(b"Traceback (most recent call last)")
                self._logs_read[log] = file.tell()
        return found


def connections_to(ports: Collection[int]) -> frozenset[str]:
    """What /proc/PID/fd calls the connections to these ports of this machine."""
    found = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if int(fields[2].partition(":")[2], 16) in ports:
            found.add(f"socket:[{fields[9]}]")
    return frozenset(found)


def open_files(pid: int) -> Sequence[str]:
    """What a process has open, as /proc/PID/fd calls it."""
    found = []
    for file in Path(f"/proc/{pid}/fd").iterdir():
        # It may be closed by now.
        with suppress(FileNotFoundError):
            found.append(os.readlink(file))
    return found
