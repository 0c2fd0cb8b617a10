"""Serves one subscriber the next piece of what it has missed: from the node's memory, else from the log.

Called by `streams` until there is nothing more, and by the events endpoint for its JSON. The filter asks the
switches twice: as they were at each event's place (`held`), and as the node knows them now.
"""

from collections.abc import Sequence
from heapq import merge
from typing import Protocol

from pushsse.backplane import BROADCAST, Backplane, Entry
from pushsse.hub.batch import with_id
from pushsse.hub.followed import FollowedLog
from pushsse.hub.hub import Hub
from pushsse.position import Mark, Position
from pushsse.stream.subscriber import Person, Subscriber

STEP_ENTRIES = 500
STEP_BYTES = 32 * 1024


class Reader(Protocol):
    """Whoever stands at a position: a subscriber, or one call for events as JSON."""

    person: Person
    held: frozenset[str]
    position: Position | None
    gap: bool

    def wants(self, name: str, switchable: bool) -> bool:
        """Whether events of this name were asked for."""
        ...


class Replay:
    """Reads what is between a reader and the node."""

    def __init__(self, hub: Hub, backplane: Backplane) -> None:
        self._hub = hub
        self._backplane = backplane

    async def step(self, subscriber: Subscriber) -> bool:
        """Writes the next piece; False when the subscriber stands where the node does.

        Raises BackplaneUnavailable. Nothing is awaited between the last look and the answer False.
        """
        entries = await self.entries(subscriber)
        if subscriber.gap:
            return True
        if not entries:
            return subscriber.position != self._hub.place(subscriber.person)
        frames: list[bytes] = []
        size = 0
        for entry in entries:
            if self.advance(subscriber, entry) and subscriber.position is not None:
                frame = with_id(entry.publication, subscriber.position, named=subscriber.named)
                frames.append(frame)
                size += len(frame)
                if size >= STEP_BYTES:
                    break
        if frames:
            self._hub.write(subscriber, b"".join(frames), events=len(frames))
        return True

    async def entries(self, reader: Reader) -> Sequence[Entry]:
        """The next entries after the reader's position, in order; none when it is where the node is.

        Where the log can't have them any more the reader is moved on, and owed a gap.
        """
        hub, log = self._hub, self._hub.log(reader.person)
        assert reader.position is not None
        if self._lost_epoch(reader, log):
            return ()
        broadcast, shard = reader.position.broadcast.number, reader.position.shard.number
        if hub.broadcast.reaches(broadcast) and log.reaches(shard):
            return _merged(hub.broadcast.after(broadcast, STEP_ENTRIES), log.after(shard, STEP_ENTRIES))
        position = reader.position
        page = await self._backplane.read({BROADCAST: broadcast, log.name: shard}, limit=STEP_ENTRIES)
        if reader.position != position or self._lost_epoch(reader, log):
            return ()
        for followed, mark in ((hub.broadcast, position.broadcast), (log, position.shard)):
            head = page.heads[followed.name]
            if head.epoch == mark.epoch and head.first > mark.number + 1:
                self._move(reader, followed, Mark(mark.epoch, min(head.first - 1, followed.mark.number)))
        heard = {BROADCAST: hub.broadcast.mark.number, log.name: log.mark.number}
        return [entry for entry in page.entries if entry.number <= heard[entry.log]]

    def expired(self, expires_ms: int) -> bool:
        """Whether what was found may no longer be written; asked again where something was awaited since."""
        return 0 < expires_ms <= self._backplane.now_ms()

    def advance(self, reader: Reader, entry: Entry) -> bool:
        """Moves a reader past an entry; whether the entry is for it."""
        assert reader.position is not None
        publication, person = entry.publication, reader.person
        if entry.log == BROADCAST:
            reader.position = reader.position._replace(
                broadcast=Mark(reader.position.broadcast.epoch, entry.number)
            )
        else:
            reader.position = reader.position._replace(shard=Mark(reader.position.shard.epoch, entry.number))
        if publication.users is not None and person.name not in publication.users:
            return False
        if publication.change is not None:
            reader.held = frozenset(publication.change.after)
        if self.expired(publication.expires_ms):
            self._hub.metrics.expired += 1
            return False
        if publication.switchable and (publication.name in reader.held or publication.name in person.off):
            self._hub.metrics.suppressed += 1
            return False
        return reader.wants(publication.name, publication.switchable)

    def _lost_epoch(self, reader: Reader, log: FollowedLog) -> bool:
        """Moves a reader who stands in an epoch that is over to where the node is."""
        assert reader.position is not None
        found = False
        if reader.position.broadcast.epoch != self._hub.broadcast.mark.epoch:
            self._move(reader, self._hub.broadcast, self._hub.broadcast.mark)
            found = True
        if reader.position.shard.epoch != log.mark.epoch:
            self._move(reader, log, log.mark)
            found = True
        return found

    def _move(self, reader: Reader, log: FollowedLog, mark: Mark) -> None:
        assert reader.position is not None
        reader.gap = True
        part = "broadcast" if log is self._hub.broadcast else "shard"
        reader.position = reader.position._replace(**{part: mark})


def _merged(one: list[Entry], other: list[Entry]) -> list[Entry]:
    """Two runs merged by order; what may come before the rest of a run that was cut is left for next time."""
    if not other:
        return one
    if not one:
        return other
    ends = [run[-1].order for run in (one, other) if len(run) == STEP_ENTRIES]
    upto = min(ends, default=max(one[-1].order, other[-1].order))
    return [entry for entry in merge(one, other, key=lambda entry: entry.order) if entry.order <= upto]
