"""One EventSource: what it sends, how it reads frames, and what it remembers. `clients` connects it."""

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from faults.records import Account, GapNotice, Key, Receipt

DEFAULT_RETRY_S = 3.0
_ID = b'"id":"'


@dataclass(frozen=True, slots=True)
class Ending:
    """A connection's end: the code of the `exception` before it, "" for a cut; whether the body was whole."""

    at: float
    code: str
    clean: bool
    retry_s: float


@dataclass(slots=True, eq=False)
class Client:
    """One EventSource. `account` is its side of the ledger; the rest is what happened to its connections.

    `impatient`: it doesn't wait for `retry`. `slow_s`: it takes some two kB each time these seconds are over.
    """

    account: Account
    port: int
    token: str
    query: str = ""
    tag: bytes = b""
    last_id: bytes = b""
    retry_s: float = DEFAULT_RETRY_S
    connection: int = 0
    ready_at: float | None = None
    node: str = ""
    refused: str = ""
    opened: list[float] = field(default_factory=list)
    readies: list[tuple[float, str]] = field(default_factory=list)
    endings: list[Ending] = field(default_factory=list)
    code: str = ""
    pings: int = 0
    reconnects: bool = True
    impatient: bool = False
    slow_s: float = 0.0
    wire: asyncio.Protocol | None = None
    transport: asyncio.Transport | None = None
    heard: Callable[[Receipt], None] | None = None

    def request(self) -> bytes:
        """The bytes of the request, as EventSource sends it."""
        last = b"Last-Event-ID: %b\r\n" % self.last_id if self.last_id else b""
        return (
            f"GET /v1/stream{self.query} HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\n"
            f"Accept: text/event-stream\r\nAuthorization: Bearer {self.token}\r\n"
        ).encode() + b"%b\r\n" % last

    def frame(self, block: bytes) -> None:
        """One event of the stream."""
        name, data, position, retry = b"", b"", b"", b""
        for line in block.split(b"\n"):
            if line.startswith(b"data: "):
                data = line[6:]
            elif line.startswith(b"event: "):
                name = line[7:]
            elif line.startswith(b"id: "):
                position = line[4:]
            elif line.startswith(b"retry: "):
                retry = line[7:]
        if retry:
            self.retry_s = int(retry) / 1000
        before = self.last_id
        self.last_id = position or self.last_id
        if data.startswith(b'{"id":"'):
            self._event(data, position)
        elif name == b"ready":
            self._ready(json.loads(data), before, position)
        elif name == b"exception":
            self.code = json.loads(data)["code"]
        elif name == b"ping":
            self.pings += 1

    def _event(self, data: bytes, position: bytes) -> None:
        start = len(_ID) + 1
        tag, _, rest = data[start : data.index(b'"', start)].partition(b"|")
        if tag != self.tag:
            # Everything of an earlier round was there before this one began.
            self.account.foreign += tag[:1] == self.tag[:1]
            return
        partition, _, number = rest.partition(b"|")
        receipt = Receipt(Key(int(partition), int(number)), time.monotonic(), self.connection, position)
        self.account.receipts.append(receipt)
        if self.heard is not None:
            self.heard(receipt)

    def _ready(self, data: dict[str, str], before: bytes, position: bytes) -> None:
        now = time.monotonic()
        self.ready_at = now
        self.node = data["node"]
        self.readies.append((now, data["resume"]))
        if self.account.since is None:
            self.account.since = now
        if data["resume"] == "gap":
            old, new = before.partition(b"."), position.partition(b".")
            broadcasts, personal = (old[at].split(b"-")[0] != new[at].split(b"-")[0] for at in (0, 2))
            both = broadcasts == personal
            self.account.gap_notices.append(GapNotice(now, broadcasts or both, personal or both))
