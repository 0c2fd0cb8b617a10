"""A person's stream in Python, with httpx and httpx-sse: reconnects by itself, shows nothing twice.

python listen.py http://127.0.0.1:8000/v1/stream?user=ann
"""

import json
import os
import random
import sys
import time
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import httpx
from httpx_sse import ServerSentEvent, connect_sse

REMEMBERED = 10_000
MOST_WAIT_S = 60.0


class Refused(Exception):
    """The service doesn't want this token any more."""


def token() -> str:
    """The JWT: from a file that is renewed (PUSHSSE_TOKEN_FILE), or from PUSHSSE_TOKEN."""
    file = os.environ.get("PUSHSSE_TOKEN_FILE")
    return Path(file).read_text().strip() if file else os.environ.get("PUSHSSE_TOKEN", "")


@dataclass
class Stream:
    """The position of a stream, and what the service said about it."""

    url: str
    last_id: str = ""
    retry_s: float = 3.0
    # After three heartbeats of 15 s without a frame the connection is dead, even if nothing closed it.
    silence_s: float = 45.0
    failures: int = 0
    seen: dict[str, None] = field(default_factory=dict)

    def listen(self) -> None:
        """Listens until the stream ends for good."""
        while True:
            used = token()
            try:
                self.one(used)
            except Refused as error:
                # The same call can never succeed; with another token it may.
                if token() == used:
                    sys.exit(f"the stream has ended: {error}")
            except httpx.HTTPError as error:
                print(f"{error}: reconnecting", file=sys.stderr)
            wait_s = min(MOST_WAIT_S, self.retry_s * 1.5 ** min(self.failures, 8))
            self.failures += 1
            time.sleep(wait_s * random.uniform(0.8, 1.2))

    def one(self, used: str) -> None:
        """Reads one connection to its end."""
        headers = {"last-event-id": self.last_id} if self.last_id else {}
        if used:
            headers["authorization"] = f"Bearer {used}"
        # The read timeout watches for silence: every frame restarts it, and it raises ReadTimeout.
        timeout = httpx.Timeout(10, read=self.silence_s)
        # A client of its own: over HTTP/2 the next stream would go into the connection that has died.
        with (
            httpx.Client(http2=find_spec("h2") is not None, timeout=timeout) as client,
            connect_sse(client, "GET", self.url, headers=headers) as source,
        ):
            if source.response.status_code in (400, 401, 403):
                raise Refused(f"status {source.response.status_code}")
            source.response.raise_for_status()
            for event in source.iter_sse():
                self.hear(event, json.loads(event.data))
                # Only after the event was handled: an event that wasn't handled is sent again.
                self.last_id = event.id or self.last_id

    def hear(self, event: ServerSentEvent, data: dict) -> None:
        """Handles one event: prints it as a line of JSON."""
        if event.event == "exception" and not data["retry"]:
            raise Refused(data["code"])
        if event.retry is not None:
            self.retry_s = event.retry / 1000
        if event.event == "ready":
            self.failures = 0
            self.silence_s = 3 * data["heartbeat_s"]
            if data["resume"] == "gap":
                print("some events were missed: reload what you show", file=sys.stderr)
        if "message" not in data or self.is_new(data["id"]):
            print(json.dumps({"event": event.event, "data": data}, ensure_ascii=False), flush=True)

    def is_new(self, event_id: str) -> bool:
        """Whether an event hasn't been shown yet. Its id is the same in every replay."""
        if event_id in self.seen:
            return False
        self.seen[event_id] = None
        if len(self.seen) > REMEMBERED:
            del self.seen[next(iter(self.seen))]
        return True


if __name__ == "__main__":
    try:
        Stream(sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000/v1/stream?user=ann").listen()
    except KeyboardInterrupt:
        pass
