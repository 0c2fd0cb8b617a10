"""The cluster under its steady load: clients, producer, switches; and what is looked at after each fault."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import httpx

from deploy.parts import Node
from deploy.whole import TOPIC
from faults.client import Client
from faults.clients import Crowd
from faults.cluster import Cluster
from faults.ledger import Ledger, Verdict
from faults.producer import TYPES, Producer
from faults.records import PARTITIONS, Account, Flip
from faults.report import Row
from faults.resources import Resources
from faults.scale import WHOLE, Scale
from pushsse.backplane import TAIL_ENTRIES, log_of

PEOPLE = tuple(f"person{number}" for number in range(240))
_SHARDS = 64
_AT_ONCE = 16
# Of the people, every tenth has one type off from the beginning.
_TENTH = 10
_UNDER_WAY_S = 1.4


class World:
    """What every fault is given."""

    def __init__(self, cluster: Cluster, crowd: Crowd, producer: Producer, scale: Scale) -> None:
        self.scale = scale
        self.cluster = cluster
        self.crowd = crowd
        self.producer = producer
        self.flips: dict[tuple[str, str], list[Flip]] = {}
        self.departed: list[Account] = []
        self.finished: Callable[[Row], None] = lambda row: None
        self._resources = Resources(cluster)
        self._round = 0

    def client(self, user: str, *, query: str = "", types: Iterable[str] = (), port: int = 0) -> Client:
        """A client that isn't connected yet; without a port through nginx."""
        narrowed = frozenset(types) or None
        if narrowed is not None:
            query = f"?types={','.join(sorted(narrowed))}"
        port = port or self.cluster.stack.nginx.port
        tag = self.producer.ledger.tag.encode()
        return Client(Account(user, narrowed), port, self.cluster.token(user), query, tag)

    async def warm(self) -> None:
        """Opens the streams, sets the switches, fills what nodes keep; then notes their files and memory."""
        self._new_ledger()
        # The first events let their types join the catalogue.
        for type_ in (*TYPES, "calm"):
            await self.producer.send(["nobody"], type_)
        users = [PEOPLE[number % len(PEOPLE)] for number in range(self.scale.streams)]
        await self.crowd.open(self.client(user) for user in users)
        await asyncio.sleep(1)
        for number, user in enumerate(PEOPLE):
            if number % _TENTH == 0:
                await self.switch(user, random.choice(TYPES), on=False)
        # Each node that reads a partition has a producer of its own for what can't be used.
        for partition in range(PARTITIONS):
            await self.producer.raw(b"{", partition=partition)
        if not self.scale.fast:
            await self._fill()
        verdict = await self.settle()
        if not verdict.clean:
            raise AssertionError(f"not even the warm-up is clean: {verdict}")
        await self._resources.note()

    async def _fill(self) -> None:
        """Fills the tails that nodes keep of each log, so that memory doesn't grow for that later on."""
        by_log: dict[str, list[str]] = {}
        for user in PEOPLE:
            by_log.setdefault(log_of(user, _SHARDS), []).append(user)
        logs = list(by_log.values())
        for number in range(TAIL_ENTRIES + 50):
            for start in range(0, len(logs), _AT_ONCE):
                users = [people[number % len(people)] for people in logs[start : start + _AT_ONCE]]
                await self.producer.send(users, random.choice(TYPES))
            await self.producer.send(None, random.choice(TYPES))
            await asyncio.sleep(0.01)
        self.producer.load(10 * self.scale.rate, broadcasts=0.01)
        await asyncio.sleep(5)

    @asynccontextmanager
    async def row(self, number: int, what: str, *, gaps: bool = False) -> AsyncIterator[Row]:
        """A fault under load: the load runs within; after it everything is compared."""
        self._new_ledger()
        row = Row(number, what, gaps, time.monotonic())
        self.producer.load(self.scale.rate)
        await asyncio.sleep(self.scale.lead_s)
        try:
            yield row
        except BaseException:
            await self.producer.pause()
            raise
        await self._close(row)
        self.finished(row)

    async def settle(self, limit_s: float = 45) -> Verdict:
        """Ends the load, and waits until nothing more comes and nothing is missing."""
        await self.producer.pause()
        begun = time.monotonic()
        count, since = -1, begun
        while True:
            await asyncio.sleep(0.25)
            now = sum(len(client.account.receipts) for client in self.crowd.clients)
            if now != count or any(c.ready_at is None and not c.refused for c in self.crowd.clients):
                count, since = now, time.monotonic()
            elif time.monotonic() - since > self.scale.quiet_s:
                verdict = self.compare()
                if verdict.lost == 0 or time.monotonic() - begun > limit_s:
                    return verdict
                since += 1.0
            if time.monotonic() - begun > 2 * limit_s:
                return self.compare()

    def compare(self) -> Verdict:
        """The two ledgers."""
        accounts = [*self.departed, *(client.account for client in self.crowd.clients)]
        return self.producer.ledger.compare(accounts, self.flips)

    async def switch(self, user: str, type_: str, *, on: bool, port: int = 0) -> int:
        """Flips a switch through nginx, and notes when; the status of the answer, 0 for none."""
        flip = Flip(on, time.monotonic())
        self.flips.setdefault((user, type_), []).append(flip)
        try:
            reply = await self.post(user, "/v1/preferences", {"types": {type_: on}}, port=port)
        except httpx.HTTPError:
            return 0
        if reply.status_code == 200:
            flip.done = time.monotonic()
        return reply.status_code

    async def post(self, user: str, path: str, body: object, *, port: int = 0) -> httpx.Response:
        """A POST by a person."""
        port = port or self.cluster.stack.nginx.port
        headers = {"Authorization": f"Bearer {self.cluster.token(user)}"}
        return await self.cluster.http.post(f"http://127.0.0.1:{port}{path}", json=body, headers=headers)

    def leave(self, clients: Sequence[Client], *, all_until_now: bool = False) -> None:
        """Clients leave for good; what they got still counts. Nothing that was sent may be under way."""
        if all_until_now:
            for client in clients:
                client.account.until = time.monotonic() - _UNDER_WAY_S
        self.departed += [client.account for client in clients]
        self.crowd.close(clients)

    def heard_again_s(self, since: float) -> float:
        """Seconds from then until the last of the clients heard something; infinite if one never did.

        Of clients that take all types, and whose person hasn't switched all of them off.
        """
        firsts = []
        for client in self.crowd.clients:
            if client.account.types is None and not self._is_deaf(client.account.user):
                later = (receipt.at for receipt in client.account.receipts if receipt.at > since)
                firsts.append(next(later, float("inf")))
        return max(firsts) - since

    def _is_deaf(self, user: str) -> bool:
        flips = (self.flips.get((user, type_)) for type_ in TYPES)
        return all(each and not each[-1].on for each in flips)

    def cuts(self) -> int:
        """How often a stream ended since the row began."""
        return sum(len(client.endings) for client in self.crowd.clients)

    def _new_ledger(self) -> None:
        self._round += 1
        self.departed.clear()
        tag = f"r{self._round}"
        self.producer.ledger = Ledger(tag)
        for client in self.crowd.clients:
            client.tag = tag.encode()
            client.account.receipts.clear()
            client.account.gap_notices.clear()
            client.account.foreign = 0
            client.endings.clear()
            client.opened.clear()
            client.readies.clear()
        # Of what was flipped before, only how it stands now is of interest.
        for flips in self.flips.values():
            del flips[:-1]

    async def _close(self, row: Row) -> None:
        verdict = await self.settle()
        row.check("sent", len(self.producer.ledger.sent), self.producer.ledger.sent)
        row.check("received", verdict.received, verdict.received)
        row.count("lost", verdict.lost)
        row.count("reordered", verdict.reordered)
        row.count("repeated", verdict.repeated)
        row.count("wrong person", verdict.wrong)
        row.count("against a switch", verdict.against)
        if row.gaps or verdict.gaps:
            row.check("gaps told", f"{verdict.gaps} ({verdict.excused} events in them)", row.gaps)
        refused = [client.refused for client in self.crowd.clients if client.refused]
        away = sum(client.ready_at is None for client in self.crowd.clients)
        if refused or away:
            row.check("refused for good", f"{len(refused)} {set(refused)}, away {away}", ok=False)
        row.examples += verdict.examples
        if verdict.withheld:
            row.check("withheld by a switch", verdict.withheld, ok=True)
        if not self.scale.fast:
            await self._resources.look(row)
        self._resources.look_for_tracebacks(row)


@asynccontextmanager
async def world(folder: Path, scale: Scale = WHOLE, make: Callable[..., Node] = Node) -> AsyncIterator[World]:
    """Everything, warm and quiet, with nodes of this kind."""
    async with (
        Cluster(folder, make) as cluster,
        Producer(cluster.stack.kafka.url, TOPIC, PEOPLE) as producer,
        Crowd() as crowd,
    ):
        made = World(cluster, crowd, producer, scale)
        await made.warm()
        yield made
