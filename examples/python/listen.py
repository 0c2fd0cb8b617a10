"""A person's stream in Python, with httpx and httpx-sse: reconnects by itself, shows nothing twice.

python listen.py http://127.0.0.1:8000/v1/stream?user=ann        (or with a JWT in PUSHSSE_TOKEN)
"""

import json
import os
import random
import sys
import time
from dataclasses import dataclass, field

import httpx
from httpx_sse import ServerSentEvent, connect_sse

REMEMBERED = 10_000
MOST_WAIT_S = 60.0


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
        with httpx.Client() as client:
            while True:
                try:
                    self.one(client)
                except httpx.HTTPStatusError as error:
                    # The same call can never succeed. After any other status it may succeed later.
                    if error.response.status_code in (400, 401, 403):
                        sys.exit(str(error))
                except httpx.TransportError as error:
                    print(f"{error}: reconnecting", file=sys.stderr)
                wait_s = min(MOST_WAIT_S, self.retry_s * 1.5 ** min(self.failures, 8))
                self.failures += 1
                time.sleep(wait_s * random.uniform(0.8, 1.2))

    def one(self, client: httpx.Client) -> None:
        """Reads one connection to its end."""
        headers = {"last-event-id": self.last_id} if self.last_id else {}
        if token := os.environ.get("PUSHSSE_TOKEN"):
            headers["authorization"] = f"Bearer {token}"
        # The read timeout watches for silence: every frame restarts it, and it raises ReadTimeout.
        timeout = httpx.Timeout(10, read=self.silence_s)
        with connect_sse(client, "GET", self.url, headers=headers, timeout=timeout) as source:
            source.response.raise_for_status()
            for event in source.iter_sse():
                self.hear(event, json.loads(event.data))
                # Only after the event was handled: an event that wasn't handled is sent again.
                self.last_id = event.id or self.last_id

    def hear(self, event: ServerSentEvent, data: dict) -> None:
        """Handles one event."""
        if event.retry is not None:
            self.retry_s = event.retry / 1000
        if event.event == "ready":
            self.failures = 0
            self.silence_s = 3 * data["heartbeat_s"]
            if data["resume"] == "gap":
                print("some events were missed: reload what you show", file=sys.stderr)
        elif event.event == "exception" and not data["retry"]:
            sys.exit(f"the stream has ended: {data['code']}")
        elif "message" in data and self.is_new(data["id"]):
            print(data["ts"], data["type"], json.dumps(data["message"], ensure_ascii=False), flush=True)

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
