"""The portable way's edges, with a server of a few lines in the place of a real one."""

import asyncio
from itertools import pairwise

import pytest
from starlette.types import Message

from pushsse.stream.frame import chunk
from pushsse.stream.portable import QueueStream, WakeQueue
from tests.serving import LIMIT_S
from tests.waiting import eventually

pytestmark = pytest.mark.anyio
SCOPE = {"type": "http", "method": "GET"}


class Peer:
    """One request's server: keeps what is sent; takes nothing while `open` isn't set."""

    def __init__(self) -> None:
        self.sent: list[Message] = []
        self.open = asyncio.Event()
        self.open.set()
        self.left = asyncio.Event()
        self.sending = asyncio.Event()
        self.receiving = asyncio.Event()
        self.error: Exception | None = None

    @property
    def body(self) -> bytes:
        """All that has arrived after the head."""
        return b"".join(message["body"] for message in self.sent[1:])

    async def send(self, message: Message) -> None:
        """ASGI."""
        self.sending.set()
        await self.open.wait()
        if self.error is not None:
            raise self.error
        self.sent.append(message)

    async def receive(self) -> Message:
        """ASGI."""
        self.receiving.set()
        await self.left.wait()
        return {"type": "http.disconnect"}


async def under_way(*peers: Peer) -> None:
    """Waits until the response of each sends, and listens for its client's leaving."""
    async with asyncio.timeout(LIMIT_S):
        for peer in peers:
            await peer.sending.wait()
            await peer.receiving.wait()


def serve(stream: QueueStream, peer: Peer) -> asyncio.Task[None]:
    return asyncio.create_task(stream(SCOPE, peer.receive, peer.send))


async def test_what_is_queued_goes_out_in_order_and_the_end_ends_the_body() -> None:
    stream, peer = QueueStream(WakeQueue(), backlog_bytes=1_000), Peer()
    stream.write(chunk(b"one "))
    task = serve(stream, peer)
    await eventually(lambda: peer.body == b"one ")
    stream.write(chunk(b"two "))
    stream.write(chunk(b"three "))
    stream.end(chunk(b"four"))
    await asyncio.wait_for(task, LIMIT_S)
    assert peer.body == b"one two three four"
    assert peer.sent[0]["status"] == 200
    assert (b"content-type", b"text/event-stream; charset=utf-8") in peer.sent[0]["headers"]
    assert not peer.sent[-1]["more_body"]


@pytest.mark.parametrize("begun", [False, True], ids=["before it is sent", "while it is sent"])
async def test_an_aborted_stream_is_over_although_its_client_takes_nothing(begun: bool) -> None:
    stream, peer = QueueStream(WakeQueue(), backlog_bytes=1_000), Peer()
    peer.open.clear()
    task = serve(stream, peer)
    if begun:
        await under_way(peer)
        stream.write(chunk(b"never taken"))
    stream.abort()
    if not begun:
        # The head and an empty body are all that is left to be said.
        peer.open.set()
    await asyncio.wait_for(task, LIMIT_S)
    assert peer.body == b""
    stream.abort()


async def test_a_client_that_has_gone_ends_the_stream_whichever_way_the_server_says_so() -> None:
    silent, loud = Peer(), Peer()
    first, second = (QueueStream(WakeQueue(), backlog_bytes=1_000) for _ in range(2))
    tasks = serve(first, silent), serve(second, loud)
    await under_way(silent, loud)
    silent.left.set()
    loud.error = OSError("it has gone")
    second.write(chunk(b"nobody reads this"))
    await asyncio.wait_for(asyncio.gather(*tasks), LIMIT_S)


async def test_a_mistake_in_the_server_is_not_hidden() -> None:
    stream, peer = QueueStream(WakeQueue(), backlog_bytes=1_000), Peer()
    peer.error = LookupError("a bug")
    with pytest.raises(LookupError, match="a bug"):
        await asyncio.wait_for(serve(stream, peer), LIMIT_S)


async def test_a_cancelled_response_takes_its_writing_task_with_it() -> None:
    stream, peer = QueueStream(WakeQueue(), backlog_bytes=1_000), Peer()
    before = asyncio.all_tasks()
    task = serve(stream, peer)
    await under_way(peer)
    assert len(asyncio.all_tasks() - before) == 2
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert asyncio.all_tasks() == before


async def test_many_streams_are_woken_a_few_at_a_time_so_that_others_have_their_turn() -> None:
    wake_queue, peers = WakeQueue(), [Peer() for _ in range(500)]
    streams = [QueueStream(wake_queue, backlog_bytes=1_000) for _ in peers]
    tasks = [serve(stream, peer) for stream, peer in zip(streams, peers, strict=True)]
    await under_way(*peers)
    for stream in streams:
        stream.write(chunk(b"all"))
    seen: list[int] = []

    def look() -> None:
        seen.append(sum(peer.body == b"all" for peer in peers))
        if seen[-1] < len(peers):
            asyncio.get_running_loop().call_soon(look)

    look()
    await eventually(lambda: seen[-1] == len(peers))
    assert max(later - sooner for sooner, later in pairwise(seen)) <= 64
    for stream in streams:
        stream.end(chunk(b""))
    await asyncio.wait_for(asyncio.gather(*tasks), LIMIT_S)
