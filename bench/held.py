"""The streams that the load process holds: opened, read, and what arrives on each counted.

Every payload carries the time of its sending, so the server is believed nothing: a delivery is one such mark
read from a stream. Only the standard library, one thread, epoll. Used by `load`.
"""

import select
import socket
import time
from array import array
from collections.abc import Callable, Sequence

MARK = b"@@T"
DIGITS = 19
_MARK_BYTES = len(MARK) + DIGITS
_STREAMS_PER_ADDRESS = 20_000
_IP_BIND_ADDRESS_NO_PORT = 24
_ANSWERED_S = 15.0
_AT = ord("@")
# Few, so that a burst's next requests don't wait until thousands of streams have been read.
_AT_ONCE = 256


class Held:
    """All streams of this process, to one server."""

    def __init__(self) -> None:
        self.poll = select.epoll()
        self.streams: list[socket.socket] = []
        self.refused = 0
        self.ended = 0
        self.total = 0
        self.delivered: dict[int, int] = {}
        self.latency_ns = array("q")
        self._timed = False
        self._receive: dict[int, Callable[[memoryview], int]] = {}
        self._split: dict[int, int] = {}
        self._unanswered: set[int] = set()
        self._buffer = bytearray(512 * 1024)
        self._view = memoryview(self._buffer)
        self._other: tuple[int, Callable[[], None]] = (-1, lambda: None)

    def open(self, port: int, requests: Sequence[str]) -> int:
        """Opens a stream for each request that has none yet, and awaits the answers; how many are refused."""
        for index in range(len(self.streams), len(requests)):
            stream = connection(port, index)
            stream.sendall(requests[index].encode())
            stream.setblocking(False)
            fd = stream.fileno()
            self.streams.append(stream)
            self._receive[fd] = stream.recv_into
            self.delivered[fd] = 0
            self._unanswered.add(fd)
            self.poll.register(fd, select.EPOLLIN)
            # Not a storm: what a thousand requests need at once would count as the streams' memory.
            if index % 100 == 99 and not self._pump_until(200):
                break
        self._pump_until(0)
        self.rest(0.3)
        return self.refused + len(self._unanswered)

    def keep(self, count: int) -> None:
        """Closes the newest streams until `count` are left."""
        for stream in self.streams[count:]:
            self._forget(stream.fileno())
            stream.close()
        del self.streams[count:]
        self.rest(0.3)

    def also(self, other: socket.socket, readable: Callable[[], None]) -> None:
        """Waits for this socket, too."""
        self._other = other.fileno(), readable
        self.poll.register(other, select.EPOLLIN)

    def begin(self, *, timed: bool) -> None:
        """Forgets what was counted before."""
        self.rest(0.02)
        self._timed = timed
        self.total = 0
        self.latency_ns = array("q")
        self.delivered = dict.fromkeys(self.delivered, 0)

    def rest(self, seconds: float) -> None:
        """Reads for a while, without hurry."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.pump(min(left, 0.05))

    def pump(self, timeout_s: float) -> None:
        """Reads whatever is there."""
        other, readable = self._other
        for fd, _ in self.poll.poll(timeout_s, _AT_ONCE):
            if fd == other:
                readable()
            else:
                self._read(fd)

    def _pump_until(self, unanswered: int) -> bool:
        """Reads until no more streams than that are without an answer; False when that takes too long."""
        end = time.monotonic() + _ANSWERED_S
        while len(self._unanswered) > unanswered and time.monotonic() < end:
            self.pump(0.05)
        return len(self._unanswered) <= unanswered

    def _forget(self, fd: int) -> None:
        if self._receive.pop(fd, None) is not None:
            self.poll.unregister(fd)
            self.delivered.pop(fd)
        self._split.pop(fd, None)

    def _read(self, fd: int) -> None:
        """Counts the marks of one read."""
        try:
            size = self._receive[fd](self._view)
        except BlockingIOError:
            return
        except OSError:
            size = 0
        if size == 0:
            self.ended += 1
            self._forget(fd)
            return
        buffer = self._buffer
        found = buffer.count(MARK, 0, size)
        if fd in self._split:
            before = self._split.pop(fd)
            found += buffer[: len(MARK) - before] == MARK[before:]
        if buffer[size - 1] == _AT:
            # Perhaps the beginning of a mark: the rest comes with the next read.
            self._split[fd] = 2 if size > 1 and buffer[size - 2] == _AT else 1
        if found:
            self.delivered[fd] += found
            self.total += found
            if self._timed:
                self._time(size)
        elif fd in self._unanswered:
            self._unanswered.discard(fd)
            self.refused += b" 200 " not in bytes(buffer[:64])

    def _time(self, size: int) -> None:
        """How old each mark of the buffer is."""
        now = time.monotonic_ns()
        buffer, at = self._buffer, -1
        while (at := buffer.find(MARK, at + 1, size)) >= 0:
            if at + _MARK_BYTES <= size:
                self.latency_ns.append(now - int(buffer[at + len(MARK) : at + _MARK_BYTES]))


def connection(port: int, index: int) -> socket.socket:
    """A connection to the server, from an address that has ports left."""
    made = socket.socket()
    made.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    made.bind((f"127.0.0.{1 + index // _STREAMS_PER_ADDRESS}", 0))
    made.settimeout(20)
    made.connect(("127.0.0.1", port))
    return made
