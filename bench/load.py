"""The load: a process of its own that holds streams, publishes, and tells what arrived and when.

Run by `generator`, told what to do by lines of JSON, answers each with one. What it counts is `held`'s.
"""

import json
import socket
import sys
import time
from pathlib import Path
from typing import TypedDict

from bench.held import DIGITS, MARK, Held, connection

_STALLED_S = 8.0
_LATE_S = 0.15


class Order(TypedDict, total=False):
    """What is to be done; which members there are depends on `do`."""

    do: str
    port: int
    count: int
    requests: str
    head: str
    body: str
    bytes: int
    events: int
    window: int
    rate: float
    reach: int
    paced: bool
    seconds: float


class Load:
    """The streams, and the connection that publishes."""

    def __init__(self) -> None:
        self.held = Held()
        self._port = 0
        self._publisher: socket.socket | None = None
        self._acknowledged = 0
        self._failed = 0
        self._unsent = bytearray()

    def open(self, order: Order) -> dict[str, float]:
        """Opens streams until there are `count`."""
        self._port = order["port"]
        requests = json.loads(Path(order["requests"]).read_text())
        return {"refused": self.held.open(self._port, requests[: order["count"]])}

    def keep(self, order: Order) -> dict[str, float]:
        """Closes the newest streams until `count` are left."""
        self.held.keep(order["count"])
        return {}

    def idle(self, order: Order) -> dict[str, float]:
        """Reads what comes by itself."""
        self.held.rest(order["seconds"])
        return {"ended": self.held.ended}

    def watch(self, order: Order) -> dict[str, float]:
        """Reads until so many events have arrived that somebody else sends."""
        held = self.held
        held.begin(timed=True)
        began = moved_at = time.monotonic()
        moved = 0
        while held.total < order["count"]:
            held.pump(0.01)
            if held.total != moved:
                moved, moved_at = held.total, time.monotonic()
            elif time.monotonic() - moved_at > order["seconds"]:
                break
        return self._result(order["count"], time.monotonic() - began, None)

    def publish(self, order: Order) -> dict[str, float]:
        """Publishes events: each when the last has arrived everywhere, some in flight, or at a rate."""
        held = self.held
        held.begin(timed=order.get("window", 1) == 1)
        if self._publisher is None:
            self._publisher = connection(self._port, 0)
            self._publisher.setblocking(False)
            held.also(self._publisher, self._read_answers)
        self._acknowledged = self._failed = 0
        sent, events, reach = 0, order["events"], order["reach"]
        began = moved_at = time.monotonic()
        moved = 0
        while (held.total < events * reach or self._acknowledged < events) and not self._failed:
            now = time.monotonic()
            while sent < events and self._may_send(order, sent, now - began):
                self._send(order)
                sent += 1
            self._flush()
            held.pump(0.0005 if "rate" in order else 0.005)
            if held.total + self._acknowledged != moved:
                moved, moved_at = held.total + self._acknowledged, now
            elif now - moved_at > _STALLED_S:
                break
        seconds = time.monotonic() - began
        held.rest(_LATE_S)
        return self._result(events * reach, seconds, events if reach == len(held.streams) else None)

    def _may_send(self, order: Order, sent: int, elapsed_s: float) -> bool:
        """Whether the next event's time has come."""
        if "rate" in order:
            return elapsed_s * order["rate"] >= sent
        if order.get("paced"):
            return self._acknowledged == sent and self.held.total >= sent * order["reach"]
        return sent - self._acknowledged < order["window"]

    def _send(self, order: Order) -> None:
        """One request, under way as far as the socket takes it."""
        mark = b"%b%0*d" % (MARK, DIGITS, time.monotonic_ns())
        body = order["body"].encode().replace(b"%s", mark.ljust(order["bytes"], b"x"))
        self._unsent += order["head"].encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body
        self._flush()

    def _flush(self) -> None:
        """Hands on what the socket takes."""
        if self._unsent and self._publisher is not None:
            try:
                del self._unsent[: self._publisher.send(self._unsent)]
            except BlockingIOError:
                pass

    def _read_answers(self) -> None:
        """Counts the answers to what was published."""
        assert self._publisher is not None
        try:
            answers = self._publisher.recv(65_536)
        except BlockingIOError:
            return
        good = answers.count(b"HTTP/1.1 2")
        self._acknowledged += good
        if not answers or answers.count(b"HTTP/1.1 ") != good:
            print(answers[:400], file=sys.stderr, flush=True)
            self._failed += 1

    def _result(self, expected: int, seconds: float, each: int | None) -> dict[str, float]:
        """What arrived; `uneven` counts the streams that didn't get every event once."""
        held = self.held
        found = sorted(held.latency_ns)
        uneven = 0 if each is None else sum(count != each for count in held.delivered.values())
        return {
            "expected": expected,
            "delivered": held.total,
            "uneven": uneven,
            "failed": self._failed,
            "seconds": seconds,
            "p50_ms": found[len(found) // 2] / 1e6 if found else 0.0,
            "p99_ms": found[len(found) * 99 // 100] / 1e6 if found else 0.0,
        }


def main() -> None:
    """Does what standard input says, line by line."""
    load = Load()
    orders = {
        "open": load.open,
        "keep": load.keep,
        "publish": load.publish,
        "watch": load.watch,
        "idle": load.idle,
    }
    for line in sys.stdin:
        order: Order = json.loads(line)
        print(json.dumps(orders[order["do"]](order)), flush=True)


if __name__ == "__main__":
    main()
