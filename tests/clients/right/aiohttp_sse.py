"""aiohttp-sse-client, one connection of it at a time: a watch for silence, a fresh token, repeats dropped."""

import asyncio
import json
import os
import random
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp  # type: ignore[import-not-found]
from aiohttp_sse_client.client import EventSource  # type: ignore[import-not-found]

REMEMBERED = 10_000
MOST_WAIT_S = 60.0


class Again(Exception):
    """The connection has ended: make a new one."""


class Refused(Exception):
    """The service doesn't want this token any more."""


def token() -> str:
    return Path(os.environ["PUSHSSE_TOKEN_FILE"]).read_text().strip()


def lost() -> None:
    """The library calls this before it reconnects by itself, with its old token and a wait that doubles."""
    raise Again


@dataclass
class Stream:
    url: str
    last_id: str = ""
    silence_s: float = 45.0
    failures: int = 0
    seen: dict[str, None] = field(default_factory=dict)

    async def listen(self) -> str:
        """Listens until the stream ends for good; returns why."""
        while True:
            used = token()
            try:
                await self.one(used)
            except (Refused, ConnectionError) as error:
                # Of a status it tells 401 alone. The same call can't succeed; with another token it may.
                if token() == used and isinstance(error, Refused | ConnectionRefusedError):
                    return str(error)
            except (Again, TimeoutError, aiohttp.ClientError) as error:
                print(f"{error!r}: reconnecting", file=sys.stderr)
            wait_s = min(MOST_WAIT_S, 3 * 1.5 ** min(self.failures, 8))
            self.failures += 1
            await asyncio.sleep(wait_s * random.uniform(0.8, 1.2))

    async def one(self, used: str) -> None:
        """Reads one connection to its end."""
        headers = {"Authorization": f"Bearer {used}"}
        if self.last_id:
            headers["Last-Event-ID"] = self.last_id
        # aiohttp's default ends every stream after five minutes; this one watches for silence alone.
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=self.silence_s)
        async with EventSource(self.url, headers=headers, timeout=timeout, on_error=lost) as source:
            async for event in source:
                self.hear(event.type, json.loads(event.data))
                # Only after the event was handled: an event that wasn't handled is sent again.
                self.last_id = event.last_event_id

    def hear(self, event: str, data: dict[str, Any]) -> None:
        if event == "exception" and not data["retry"]:
            raise Refused(data["code"])
        if event == "ready":
            self.failures = 0
            self.silence_s = 3 * data["heartbeat_s"]
            if data["resume"] == "gap":
                print("some events were missed: reload what you show", file=sys.stderr)
        if "message" not in data or self.is_new(data["id"]):
            print(json.dumps({"event": event, "data": data}), flush=True)

    def is_new(self, event_id: str) -> bool:
        if event_id in self.seen:
            return False
        self.seen[event_id] = None
        if len(self.seen) > REMEMBERED:
            del self.seen[next(iter(self.seen))]
        return True


sys.exit(f"the stream has ended: {asyncio.run(Stream(sys.argv[1]).listen())}")
