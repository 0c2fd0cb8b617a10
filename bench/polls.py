"""Polls that wait: what each of 5,000 costs a node in memory, while it waits, and when it is answered.

Each is a connection of its own person's, in this process. One broadcast then answers all of them.
"""

import select
import socket
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass

from bench.contestants import BenchNode, bearer, get, user
from bench.held import connection
from bench.usage import usage

POLLS = 5_000
WAIT_S = 30
# What the first ones need, a node has free from then on.
_BEFORE = 500
_LIMIT_S = 60.0
# A poll ends by itself after WAIT_S: whatever is measured has to be over by then.
_IDLE_S = 8.0
_BATCH = 200


@dataclass
class PollCosts:
    """kB a poll, per cent of a core while all of them wait, µs of CPU to begin one and to answer one.

    `complete`: all were answered, with the event.
    """

    kb: float = 0.0
    percent: float = 0.0
    begin_us: float = 0.0
    answer_us: float = 0.0
    complete: bool = True


def measure(node: BenchNode, progress: Callable[[str], None]) -> PollCosts:
    """Everything, on a node of its own. Raises RuntimeError where the node doesn't hold all of them."""
    with node:
        _close(_begin(node, _BEFORE))
        _until(node, 0)
        before = usage(node.pid)
        polls = _begin(node, POLLS)
        began = usage(node.pid).since(before)
        progress(f"polls: {POLLS:,} wait, {began.rss_kb / POLLS:.1f} kB each")
        waiting = usage(node.pid)
        time.sleep(_IDLE_S)
        idle = usage(node.pid).since(waiting)
        waiting = usage(node.pid)
        _publish(node)
        answered = _answers(polls)
        spent = usage(node.pid).since(waiting)
        _close(polls)
    return PollCosts(
        began.rss_kb / POLLS,
        idle.cpu_s / _IDLE_S * 100,
        began.cpu_s / POLLS * 1e6,
        spent.cpu_s / POLLS * 1e6,
        answered == POLLS,
    )


def _begin(node: BenchNode, count: int) -> list[socket.socket]:
    """So many polls, once the node has all of them."""
    polls: list[socket.socket] = []
    for index in range(count):
        poll = connection(node.port, index)
        request = get(f"/v1/events?wait_s={WAIT_S}", bearer(user(index)))
        poll.sendall(request.encode())
        polls.append(poll)
        # Not a storm: what a thousand requests need at once would count as the polls' memory.
        if len(polls) % _BATCH == 0:
            _until(node, len(polls))
    _until(node, count)
    return polls


def _until(node: BenchNode, count: int) -> None:
    """Waits until the node has so many. Raises RuntimeError."""
    until = time.monotonic() + _LIMIT_S
    while time.monotonic() < until:
        with urllib.request.urlopen(f"{node.url}/metrics", timeout=_LIMIT_S) as reply:
            lines = reply.read().decode().splitlines()
        if f"pushsse_connections {float(count)}" in lines:
            return
        time.sleep(0.02)
    raise RuntimeError(f"the node doesn't hold {count} polls")


def _publish(node: BenchNode) -> None:
    publish = node.publish()
    body = publish.body % "x"
    with connection(node.port, 0) as made:
        made.sendall(f"{publish.head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        made.recv(4096)


def _answers(polls: list[socket.socket]) -> int:
    """Reads all answers to their ends; how many there are with the event."""
    poll = select.epoll()
    open_ = {each.fileno(): each for each in polls}
    found: dict[int, bytes] = dict.fromkeys(open_, b"")
    for fd in open_:
        poll.register(fd, select.EPOLLIN)
    until = time.monotonic() + _LIMIT_S
    while open_ and time.monotonic() < until:
        for fd, _ in poll.poll(1.0):
            piece = open_[fd].recv(65_536)
            found[fd] += piece
            if not piece:
                poll.unregister(fd)
                del open_[fd]
    poll.close()
    return sum(b'"events":[{"event":"load"' in each for each in found.values())


def _close(polls: list[socket.socket]) -> None:
    for poll in polls:
        poll.close()
