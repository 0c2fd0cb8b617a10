"""The load: a process of its own that holds streams, publishes, and counts what arrives and when.

Run by `generator`, told what to do by lines of JSON, answers each with one. Only the standard library, one
thread, epoll. Every payload carries the time of its sending, so the server is believed nothing: a delivery is
one such mark read from a stream.
"""

import json
import select
import socket
import sys
import time
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import TypedDict

MARK = b"@@T"
DIGITS = 19
MARK_BYTES = len(MARK) + DIGITS
STREAMS_PER_ADDRESS = 20_000
IP_BIND_ADDRESS_NO_PORT = 24
STALLED_S = 8.0
ANSWERED_S = 15.0
LATE_S = 0.15
AT = ord("@")


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
    """All streams of this process, and the connection that publishes."""

    def __init__(self) -> None:
        self.poll = select.epoll()
        self.streams: list[socket.socket] = []
        self.receive: dict[int, Callable[[memoryview], int]] = {}
        self.delivered: dict[int, int] = {}
        self.split: dict[int, int] = {}
        self.unanswered: set[int] = set()
        self.refused = 0
        self.ended = 0
        self.total = 0
        self.timed = False
        self.latency_ns = array("q")
        self.buffer = bytearray(512 * 1024)
        self.view = memoryview(self.buffer)
        self.publisher: socket.socket | None = None
        self.port = 0
        self.acknowledged = 0
        self.failed = 0
        self.unsent = bytearray()

    # Streams

    def open(self, order: Order) -> dict[str, float]:
        """Opens streams until there are `count`, and waits for the answers."""
        self.port = order["port"]
        requests = json.loads(Path(order["requests"]).read_text())
        for index in range(len(self.streams), order["count"]):
            stream = self.connection(index)
            stream.sendall(requests[index].encode())
            stream.setblocking(False)
            fd = stream.fileno()
            self.streams.append(stream)
            self.receive[fd] = stream.recv_into
            self.delivered[fd] = 0
            self.unanswered.add(fd)
            self.poll.register(fd, select.EPOLLIN)
            # Not a storm: what a thousand requests need at once would count as the streams' memory.
            if index % 100 == 99 and not self.pump_until(200):
                break
        self.pump_until(0)
        self.rest(0.3)
        return {"refused": self.refused + len(self.unanswered)}

    def pump_until(self, unanswered: int) -> bool:
        """Reads until no more streams than that are without an answer; False when that takes too long."""
        end = time.monotonic() + ANSWERED_S
        while len(self.unanswered) > unanswered and time.monotonic() < end:
            self.pump(0.05)
        return len(self.unanswered) <= unanswered

    def connection(self, index: int) -> socket.socket:
        """A connection to the server, from an address that has ports left."""
        made = socket.socket()
        made.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        made.bind((f"127.0.0.{1 + index // STREAMS_PER_ADDRESS}", 0))
        made.settimeout(20)
        made.connect(("127.0.0.1", self.port))
        return made

    def keep(self, order: Order) -> dict[str, float]:
        """Closes the newest streams until `count` are left."""
        for stream in self.streams[order["count"] :]:
            self.forget(stream.fileno())
            stream.close()
        del self.streams[order["count"] :]
        self.rest(0.3)
        return {}

    def forget(self, fd: int) -> None:
        """Reads from a stream no more."""
        if self.receive.pop(fd, None) is not None:
            self.poll.unregister(fd)
            self.delivered.pop(fd)
        self.split.pop(fd, None)

    def pump(self, timeout_s: float) -> None:
        """Reads whatever is there."""
        publisher = -1 if self.publisher is None else self.publisher.fileno()
        for fd, _ in self.poll.poll(timeout_s, 8192):
            if fd == publisher:
                self.read_answers()
            else:
                self.read(fd)

    def read(self, fd: int) -> None:
        """Counts the marks of one read."""
        try:
            size = self.receive[fd](self.view)
        except BlockingIOError:
            return
        except OSError:
            size = 0
        if size == 0:
            self.ended += 1
            self.forget(fd)
            return
        buffer = self.buffer
        found = buffer.count(MARK, 0, size)
        if fd in self.split:
            before = self.split.pop(fd)
            found += buffer[: len(MARK) - before] == MARK[before:]
        if buffer[size - 1] == AT:
            # Perhaps the beginning of a mark: the rest comes with the next read.
            self.split[fd] = 2 if size > 1 and buffer[size - 2] == AT else 1
        if found:
            self.delivered[fd] += found
            self.total += found
            if self.timed:
                self.time(size)
        elif fd in self.unanswered:
            self.unanswered.discard(fd)
            self.refused += b" 200 " not in bytes(buffer[:64])

    def time(self, size: int) -> None:
        """How old each mark of the buffer is."""
        now = time.monotonic_ns()
        buffer, at = self.buffer, -1
        while (at := buffer.find(MARK, at + 1, size)) >= 0:
            if at + MARK_BYTES <= size:
                self.latency_ns.append(now - int(buffer[at + len(MARK) : at + MARK_BYTES]))

    def rest(self, seconds: float) -> None:
        """Reads for a while, without hurry."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.pump(min(left, 0.05))

    # Publishing

    def publish(self, order: Order) -> dict[str, float]:
        """Publishes events: each when the last has arrived everywhere, some in flight, or at a rate."""
        self.begin(timed=order.get("window", 1) == 1)
        if self.publisher is None:
            self.publisher = self.connection(0)
            self.publisher.setblocking(False)
            self.poll.register(self.publisher.fileno(), select.EPOLLIN)
        self.acknowledged = self.failed = 0
        sent, events, reach = 0, order["events"], order["reach"]
        began = moved_at = time.monotonic()
        moved = 0
        while (self.total < events * reach or self.acknowledged < events) and not self.failed:
            now = time.monotonic()
            while sent < events and self.may_send(order, sent, now - began):
                self.send(order)
                sent += 1
            self.flush()
            self.pump(0.0005 if "rate" in order else 0.005)
            if self.total + self.acknowledged != moved:
                moved, moved_at = self.total + self.acknowledged, now
            elif now - moved_at > STALLED_S:
                break
        seconds = time.monotonic() - began
        self.rest(LATE_S)
        return self.result(events * reach, seconds, events if reach == len(self.streams) else None)

    def may_send(self, order: Order, sent: int, elapsed_s: float) -> bool:
        """Whether the next event's time has come."""
        if "rate" in order:
            return elapsed_s * order["rate"] >= sent
        if order.get("paced"):
            return self.acknowledged == sent and self.total >= sent * order["reach"]
        return sent - self.acknowledged < order["window"]

    def send(self, order: Order) -> None:
        """One request, under way as far as the socket takes it."""
        mark = b"%b%019d" % (MARK, time.monotonic_ns())
        body = order["body"].encode().replace(b"%s", mark.ljust(order["bytes"], b"x"))
        self.unsent += order["head"].encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body
        self.flush()

    def flush(self) -> None:
        """Hands on what the socket takes."""
        if self.unsent and self.publisher is not None:
            try:
                del self.unsent[: self.publisher.send(self.unsent)]
            except BlockingIOError:
                pass

    def read_answers(self) -> None:
        """Counts the answers to what was published."""
        assert self.publisher is not None
        try:
            answers = self.publisher.recv(65_536)
        except BlockingIOError:
            return
        good = answers.count(b"HTTP/1.1 2")
        self.acknowledged += good
        if not answers or answers.count(b"HTTP/1.1 ") != good:
            print(answers[:400], file=sys.stderr, flush=True)
            self.failed += 1

    # Waiting

    def watch(self, order: Order) -> dict[str, float]:
        """Reads until so many events have arrived that somebody else sends."""
        self.begin(timed=True)
        began = moved_at = time.monotonic()
        moved = 0
        while self.total < order["count"]:
            self.pump(0.01)
            if self.total != moved:
                moved, moved_at = self.total, time.monotonic()
            elif time.monotonic() - moved_at > order["seconds"]:
                break
        return self.result(order["count"], time.monotonic() - began, None)

    def idle(self, order: Order) -> dict[str, float]:
        """Reads what comes by itself."""
        self.rest(order["seconds"])
        return {"ended": self.ended}

    def begin(self, *, timed: bool) -> None:
        """Forgets what was counted before."""
        self.rest(0.02)
        self.timed = timed
        self.total = 0
        self.latency_ns = array("q")
        self.delivered = dict.fromkeys(self.delivered, 0)

    def result(self, expected: int, seconds: float, each: int | None) -> dict[str, float]:
        """What arrived; `uneven` counts the streams that didn't get every event once."""
        found = sorted(self.latency_ns)
        uneven = 0 if each is None else sum(count != each for count in self.delivered.values())
        return {
            "expected": expected,
            "delivered": self.total,
            "uneven": uneven,
            "failed": self.failed,
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
