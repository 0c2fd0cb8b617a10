"""The states of a stream: what each verb does in each, and that no sequence of verbs loses or repeats."""

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from pushsse.errors import CloseReason
from pushsse.event import encode
from pushsse.position import Mark, Position
from pushsse.stream.frame import Chunk, chunk
from pushsse.stream.handover import StreamProtocol
from pushsse.stream.portable import QueueStream, WakeQueue
from pushsse.stream.subscriber import (
    Behind,
    Cursor,
    Ended,
    Gone,
    Live,
    Off,
    Person,
    State,
    Subscriber,
    selects,
)

SHARD, BROADCAST = "3", "all"


class ListSink:
    """Keeps what is written, and is full after `room` chunks until it is drained."""

    def __init__(self, room: int = 1_000) -> None:
        self.subscriber: Subscriber
        self.room = room
        self.written: list[bytes] = []
        self.last: bytes = b""

    def write(self, chunk: Chunk) -> None:
        assert not self.last, "nothing may follow the last frame"
        self.written.append(chunk.raw)
        self.room -= 1
        if self.room == 0:
            self.subscriber.paused()

    def end(self, chunk: Chunk) -> None:
        assert not self.last
        self.last = chunk.raw

    def abort(self) -> None:
        self.subscriber.gone()

    def drain(self, room: int = 1_000) -> None:
        self.room = room
        self.subscriber.resumed()


@dataclass
class Log:
    """One log as the node has heard it: its entries' orders by number, from `base` + 1 on."""

    epoch: str = "aaaa"
    number: int = 0
    base: int = 0
    orders: dict[int, int] = field(default_factory=dict)

    @property
    def mark(self) -> Mark:
        return Mark(self.epoch, self.number)


@dataclass
class Node:
    """The registry that subscribers report to, with a delivery and a catch-up of a few lines each."""

    person: Person = field(default_factory=lambda: Person("ann", SHARD))
    logs: dict[str, Log] = field(default_factory=lambda: {BROADCAST: Log(), SHARD: Log()})
    live: set[Subscriber] = field(default_factory=set)
    streams: set[Subscriber] = field(default_factory=set)
    waiting: list[Subscriber] = field(default_factory=list)
    sinks: dict[Subscriber, ListSink] = field(default_factory=dict)
    endings: list[CloseReason] = field(default_factory=list)
    order: int = 0

    # Registry

    def position(self, _: Person) -> Position:
        return Position(self.logs[BROADCAST].mark, self.logs[SHARD].mark)

    def went_live(self, subscriber: Subscriber) -> None:
        assert isinstance(subscriber.state, Live)
        self.live.add(subscriber)
        if subscriber in self.waiting:
            self.waiting.remove(subscriber)

    def fell_behind(self, subscriber: Subscriber) -> None:
        assert isinstance(subscriber.state, Behind)
        self.live.discard(subscriber)
        self.waiting.append(subscriber)

    def left(self, subscriber: Subscriber) -> None:
        assert isinstance(subscriber.state, (Ended, Gone))
        self.live.discard(subscriber)
        self.streams.remove(subscriber)
        self.endings.append(subscriber.state.reason)

    # What happens to streams

    def open(self, position: Position | None = None, *, room: int = 1_000) -> Subscriber:
        """A stream as the opening begins it."""
        cursor = Cursor(self.person, position or self.position(self.person), self.person.switches)
        sink = ListSink(room)
        sink.subscriber = Subscriber(sink, self, id="s", cursor=cursor)
        self.sinks[sink.subscriber] = sink
        self.streams.add(sink.subscriber)
        if not sink.subscriber.go_live():
            self.waiting.append(sink.subscriber)
        return sink.subscriber

    def deliver(self, name: str) -> None:
        """One event in one log, offered to whoever is live."""
        log = self.logs[name]
        self.order += 1
        log.number += 1
        log.orders[log.number] = self.order
        for subscriber in tuple(self.live):
            subscriber.offer(_entry(name, log), 0)

    def lose(self, name: str) -> None:
        """A log begins a new epoch; what streams haven't read of it is lost."""
        log = self.logs[name]
        epoch = f"{ord(log.epoch[0]) + 1:c}" * 4 if log.epoch[0] < "z" else "aaab"
        self.logs[name] = Log(epoch, log.number, log.number)
        for subscriber in tuple(self.streams):
            subscriber.owe_gap(name, self.logs[name].mark)

    def catch_up(self, subscriber: Subscriber) -> None:
        """One step of catch-up: a gap that is owed, the next entry, and live where that was all."""
        state = subscriber.state
        if not isinstance(state, Behind) or not state.room:
            return
        if state.cursor.take_gap():
            subscriber.offer(chunk(b"gap"), 0)
            if subscriber.go_live() or not state.room:
                return
        following = min(
            (
                (log.orders[mark.number + 1], name, mark.number + 1)
                for name, log, mark in (
                    (BROADCAST, self.logs[BROADCAST], state.cursor.position.broadcast),
                    (SHARD, self.logs[SHARD], state.cursor.position.shard),
                )
                if mark.number < log.number
            ),
            default=None,
        )
        if following is not None:
            _, name, number = following
            state.cursor.move(name, Mark(self.logs[name].epoch, number))
            subscriber.offer(_entry(name, self.logs[name], number), 0)
        subscriber.go_live()


def _entry(name: str, log: Log, number: int = 0) -> Chunk:
    """What is written of one entry, the newest one unless a number is given."""
    number = number or log.number
    return chunk(f"{name} {log.epoch} {number} {log.orders[number]}".encode())


def state_of(subscriber: Subscriber) -> State:
    return subscriber.state


def behind(subscriber: Subscriber) -> Behind:
    assert isinstance(subscriber.state, Behind)
    return subscriber.state


def test_a_stream_that_begins_where_the_node_is_is_live_and_one_before_it_is_behind() -> None:
    node = Node()
    start = node.position(node.person)
    node.deliver(SHARD)
    now, before = node.open(), node.open(start)
    assert isinstance(now.state, Live)
    assert behind(before).cursor.position == before.position == start
    assert node.live == {now}
    assert node.waiting == [before]


def test_a_full_sink_makes_a_live_stream_fall_behind_at_the_nodes_position_and_with_its_switches() -> None:
    node = Node()
    node.person.learn(1, frozenset({"news"}))
    subscriber = node.open(room=1)
    node.deliver(BROADCAST)
    state = behind(subscriber)
    assert not state.room
    assert state.cursor.position == node.position(node.person)
    assert state.cursor.off.types == {"news"}
    assert not state.cursor.owes_gap
    node.deliver(BROADCAST)
    assert node.sinks[subscriber].written == [b"all aaaa 1 1"]


class FullTransport(asyncio.Transport):
    """A transport in which an earlier answer waits, and whose socket isn't written to directly."""

    def get_extra_info(self, name: str, default: object = None) -> object:
        """Under TLS everything goes through the transport."""
        return object() if name == "sslcontext" else default

    def get_write_buffer_size(self) -> int:
        """What waits."""
        return 10_000

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Takes everything."""


def connection_that_is_full() -> StreamProtocol:
    stream = StreamProtocol(FullTransport(), set(), b"", tls=True)
    stream.pause_writing()
    return stream


def response_that_is_full() -> QueueStream:
    stream = QueueStream(WakeQueue(), backlog_bytes=4)
    stream.write(chunk(b"more than four bytes"))
    return stream


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["connection", "response"])
async def test_a_sink_that_was_full_before_it_had_a_subscriber_makes_it_fall_behind(kind: str) -> None:
    sink = connection_that_is_full() if kind == "connection" else response_that_is_full()
    node = Node()
    cursor = Cursor(node.person, node.position(node.person), node.person.switches)
    subscriber = Subscriber(sink, node, id="s", cursor=cursor)
    node.streams.add(subscriber)
    assert subscriber.go_live()
    sink.attach(subscriber)
    assert not behind(subscriber).room


def test_a_stream_goes_live_only_with_room_without_a_gap_and_where_the_node_is() -> None:
    node = Node()
    subscriber = node.open(room=1)
    node.deliver(BROADCAST)
    assert not subscriber.go_live(), "its sink is full"
    node.sinks[subscriber].drain()
    node.deliver(SHARD)
    assert not subscriber.go_live(), "an entry is left to replay"
    behind(subscriber).cursor.move(SHARD, Mark("aaaa", 1))
    subscriber.owe_gap(BROADCAST, Mark("aaaa", 1))
    assert not subscriber.go_live(), "a gap is left to tell"
    assert behind(subscriber).cursor.take_gap()
    assert subscriber.go_live()
    assert not subscriber.go_live(), "it is live already"


def test_a_lost_log_puts_a_live_stream_behind_in_the_new_epoch_with_a_gap_owed() -> None:
    node = Node()
    subscriber = node.open()
    node.lose(SHARD)
    state = behind(subscriber)
    assert state.room
    assert state.cursor.owes_gap
    assert subscriber.position == Position(Mark("aaaa", 0), Mark("bbbb", 0))
    node.catch_up(subscriber)
    assert node.sinks[subscriber].written == [b"gap"]
    assert isinstance(subscriber.state, Live)


def test_a_gap_is_taken_once_however_often_it_was_owed() -> None:
    cursor = Cursor(Person("ann", SHARD), Position(Mark("aaaa", 1), Mark("aaaa", 1)), Off())
    cursor.skip(BROADCAST, Mark("bbbb", 5))
    cursor.skip(SHARD, Mark("cccc", 6))
    assert cursor.position == Position(Mark("bbbb", 5), Mark("cccc", 6))
    assert cursor.take_gap()
    assert not cursor.take_gap()


def test_an_end_is_told_once_under_the_streams_position_and_counted_once() -> None:
    node = Node()
    start = node.position(node.person)
    node.deliver(SHARD)
    for subscriber in (node.open(), node.open(start)):
        stood_at = subscriber.position
        subscriber.end(CloseReason.LIFETIME, retry_ms=2_500)
        subscriber.end(CloseReason.SHUTDOWN)
        assert state_of(subscriber) == Ended(CloseReason.LIFETIME)
        last = node.sinks[subscriber].last
        assert last.startswith(b'retry: 2500\nevent: exception\ndata: {"code":"lifetime"')
        assert last.endswith(b"\nid: %b\n\n" % str(stood_at).encode())
        subscriber.gone()
        assert state_of(subscriber) == Gone(CloseReason.LIFETIME)
    assert node.endings == [CloseReason.LIFETIME] * 2
    assert not node.streams
    assert not node.live


def test_a_stream_that_ends_before_it_told_of_a_gap_names_no_place_behind_it() -> None:
    node = Node()
    subscriber = node.open(room=1)
    node.deliver(BROADCAST)
    node.lose(SHARD)
    assert behind(subscriber).cursor.owes_gap
    subscriber.end(CloseReason.SLOW)
    last = node.sinks[subscriber].last
    assert b'"slow"' in last
    assert b"\nid:" not in last


def test_a_connection_that_is_lost_is_counted_as_disconnected() -> None:
    node = Node()
    subscriber = node.open()
    subscriber.gone()
    assert subscriber.state == Gone(CloseReason.DISCONNECTED)
    assert node.endings == [CloseReason.DISCONNECTED]
    assert not subscriber.is_open


@pytest.mark.parametrize("ended", [False, True])
def test_a_stream_that_is_gone_keeps_nothing_of_its_connection(ended: bool) -> None:
    subscriber = Node().open()
    sink = subscriber.sink
    if ended:
        subscriber.end(CloseReason.LIFETIME)
    subscriber.gone()
    assert subscriber.sink is not sink
    # What comes late goes nowhere.
    subscriber.offer(chunk(b"late"), 0)
    subscriber.sink.abort()


VERBS: dict[str, Callable[[Subscriber], object]] = {
    "paused": Subscriber.paused,
    "resumed": Subscriber.resumed,
    "owe_gap": lambda subscriber: subscriber.owe_gap(SHARD, Mark("bbbb", 1)),
    "go_live": Subscriber.go_live,
    "end": lambda subscriber: subscriber.end(CloseReason.SHUTDOWN),
    "gone": Subscriber.gone,
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("over", ["ended", "gone"])
def test_a_stream_that_is_over_stays_over(verb: str, over: str) -> None:
    node = Node()
    subscriber = node.open()
    subscriber.end(CloseReason.LIFETIME)
    if over == "gone":
        subscriber.gone()
    is_gone = over == "gone" or verb == "gone"
    expected: State = Gone(CloseReason.LIFETIME) if is_gone else Ended(CloseReason.LIFETIME)
    VERBS[verb](subscriber)
    assert subscriber.state == expected
    assert node.endings == [CloseReason.LIFETIME]
    assert not node.live
    assert not node.waiting


def test_an_older_version_of_the_switches_never_overtakes_a_newer_one() -> None:
    node = Node()
    subscriber = node.open()
    assert subscriber.unfiltered
    node.person.learn(2, frozenset({"news"}))
    node.person.learn(1, frozenset())
    assert node.person.off == {"news"}


def test_a_stream_takes_everything_only_while_nothing_is_off_narrowed_or_unnamed() -> None:
    node = Node()
    person, position = node.person, node.position(node.person)

    def opened(**options: object) -> Subscriber:
        cursor = Cursor(person, position, Off())
        made = Subscriber(ListSink(), node, id="s", cursor=cursor, **options)  # type: ignore[arg-type]
        person.subscribers.append(made)
        return made

    whole, narrow, unnamed = opened(), opened(types=frozenset({"a"})), opened(named=False)
    assert [each.unfiltered for each in (whole, narrow, unnamed)] == [True, False, False]
    person.learn(1, frozenset({"b"}))
    assert not whole.unfiltered
    person.learn(2, frozenset())
    assert [each.unfiltered for each in (whole, narrow, unnamed)] == [True, False, False]


def test_types_select_peoples_events_and_the_services_own_always_come() -> None:
    news = encode("news", 1, users=None, switchable=True)
    own = encode("preferences", {}, users=("ann",))
    assert selects(None, news)
    assert selects(frozenset({"news"}), news)
    assert not selects(frozenset({"alarm"}), news)
    assert selects(frozenset({"alarm"}), own)


@pytest.mark.parametrize("seed", range(60))
def test_no_sequence_of_verbs_loses_or_repeats_or_reorders_an_event(seed: int) -> None:
    draw = random.Random(seed)
    node = Node()
    opened: list[tuple[Subscriber, Position]] = []
    positions = [node.position(node.person)]
    for _ in range(400):
        act = draw.random()
        streams = sorted(node.streams, key=lambda each: [each is one for one, _ in opened].index(True))
        one = draw.choice(streams) if streams else None
        if one is None or act < 0.05:
            at = draw.choice((positions[-1], draw.choice(positions), node.position(node.person)))
            opened.append((node.open(at, room=draw.randint(1, 20)), at))
        elif act < 0.40:
            node.deliver(draw.choice((BROADCAST, SHARD)))
            positions.append(node.position(node.person))
        elif act < 0.65:
            node.catch_up(one)
        elif act < 0.80:
            node.sinks[one].drain(draw.randint(1, 20))
        elif act < 0.90:
            one.paused()
        elif act < 0.92:
            node.lose(draw.choice((BROADCAST, SHARD)))
            # A position of an epoch that is over is the business of the opening.
            positions = [node.position(node.person)]
        elif act < 0.94:
            one.end(CloseReason.LIFETIME)
        elif act < 0.95:
            one.gone()
        check_states(node)
    for subscriber in tuple(node.streams):
        node.sinks[subscriber].drain(10_000)
        while isinstance(subscriber.state, Behind):
            node.catch_up(subscriber)
        assert subscriber.position == node.position(node.person)
    for subscriber, start in opened:
        check_transcript(node, subscriber, start)


def check_states(node: Node) -> None:
    """Nobody is in two states, or in a table that its state doesn't belong to."""
    assert node.live == {each for each in node.streams if isinstance(each.state, Live)}
    for subscriber in node.streams:
        assert subscriber.is_open
        if isinstance(subscriber.state, Live):
            assert subscriber.position == node.position(node.person)
        else:
            assert subscriber in node.waiting


def check_transcript(node: Node, subscriber: Subscriber, start: Position) -> None:
    """In order and once; in each log every number after `start`; a hole only where a gap was told."""
    at = {BROADCAST: start.broadcast, SHARD: start.shard}
    gaps, gaps_at, last_order = 0, {BROADCAST: 0, SHARD: 0}, 0
    for text in node.sinks[subscriber].written:
        if text == b"gap":
            gaps += 1
            continue
        log, epoch, number, order = text.decode().split()
        assert int(order) > last_order
        last_order = int(order)
        if epoch == at[log].epoch:
            assert int(number) == at[log].number + 1
        else:
            assert gaps > gaps_at[log], f"{log} went on in another epoch without a gap"
        at[log], gaps_at[log] = Mark(epoch, int(number)), gaps
    if subscriber.is_open:
        for name, log_now in node.logs.items():
            missed = at[name].epoch != log_now.epoch and log_now.number != log_now.base
            assert not missed
            assert at[name].epoch != log_now.epoch or at[name] == log_now.mark
