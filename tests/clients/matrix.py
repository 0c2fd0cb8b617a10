"""The clients, all at the same time, over one fault after the other."""

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.clients.client import Client, Place
from tests.clients.listening import Listening
from tests.clients.verdict import Verdict, judge
from tests.clients.world import World

QUIET, TERMINATED, KILLED, TOKEN, NGINX, CUT = "quiet", "SIGTERM", "SIGKILL", "token", "nginx", "cut"
_PAUSE_S = 0.25
_POLL_S = 0.05
# The next token is there so long before the last one ends.
_MARGIN_S = 3.0
# A node ends a stream up to three ticks of half a second after its token. Who was judged before had no fault.
_LATE_S = 3.0
_READY_S = 30.0
# So many are started at a time.
_STARTS = 4


@dataclass(frozen=True, slots=True)
class Way:
    """A client over one version of HTTP, as it is or with the lines that make it right."""

    client: Client
    tls: bool
    right: bool

    @property
    def name(self) -> str:
        """Also the user's name and a folder's."""
        return f"{self.client.name}-{'2' if self.tls else '1'}-{'right' if self.right else 'asis'}"


def ways_of(clients: Sequence[Client]) -> list[Way]:
    """All of them; a client without lines of its own needs none."""
    return [
        Way(client, tls, right)
        for client in clients
        for right in (False, True)
        if (client.right if right else client.as_is)
        for tls in (False, True)
        if client.http2 or not tls
    ]


@dataclass
class Matrix:
    """Runs the ways over faults; `limit_s` is how long a client may be away."""

    world: World
    ways: Sequence[Way]
    limit_s: float
    # How long tokens of the fault TOKEN live: the clients have to be started by then.
    token_s: float
    # When the tokens end, in monotonic seconds, while the next ones aren't there.
    expires: float | None = None
    verdicts: dict[tuple[Way, str], Verdict] = field(default_factory=dict)
    running: dict[Way, Listening] = field(default_factory=dict)

    @contextmanager
    def clients(self) -> Iterator[None]:
        """Ends all clients in the end."""
        try:
            yield
        finally:
            for each in self.running.values():
                each.stop()

    def quiet(self, seconds: float) -> None:
        """Nothing is published for so long."""
        self._over(QUIET, lambda: time.sleep(seconds), publishing=False)

    def terminate(self) -> None:
        """SIGTERM to the node."""
        self._two_nodes(TERMINATED, self.world.terminate)

    def kill(self) -> None:
        """SIGKILL to the node."""
        self._two_nodes(KILLED, self.world.kill)

    def restart_nginx(self) -> None:
        """nginx ends and starts."""
        self._over(NGINX, self.world.nginx.restart)

    def cut(self) -> None:
        """The network is cut under all connections; nobody is told."""
        self._over(CUT, self.world.freeze)

    def expire(self) -> None:
        """The token ends; the next one is there before."""
        for way in list(self.running):
            self.running.pop(way).stop()
        self.expires = end = time.monotonic() + self.token_s
        timer = threading.Timer(self.token_s - _MARGIN_S, self._renew)
        timer.start()
        over = end + _LATE_S
        self._over(TOKEN, lambda: time.sleep(max(0.0, over - time.monotonic())), since=end - _MARGIN_S)
        timer.join()

    def _renew(self) -> None:
        self.expires = None
        for way in self.ways:
            self._write_token(way)

    def _two_nodes(self, name: str, fault: Callable[[], None]) -> None:
        # Who ends a quiet stream by himself would come back to the other node.
        with self._publishing():
            self._start_missing()
            self.world.add_node()
        self._over(name, fault)

    def _over(
        self, name: str, fault: Callable[[], None], *, publishing: bool = True, since: float | None = None
    ) -> None:
        """All clients listen, the fault happens while numbers are published, and each is judged."""
        self._start_missing()
        first = self.world.sent
        self._publish()
        # Who doesn't get the first one has lost it.
        _wait(lambda: all(each.over or first in each.numbers() for each in self.running.values()), 5)
        since = time.monotonic() if since is None else since
        if publishing:
            with self._publishing():
                fault()
        else:
            fault()
        end = time.monotonic() + (2 * self.limit_s if name == CUT else self.limit_s)
        while True:
            self._publish()
            if _wait(self._have_all, 2) or time.monotonic() > end:
                break
        numbers = range(first, self.world.sent)
        for way, listening in self.running.items():
            found = self.verdicts[way, name] = judge(listening, numbers, since)
            if way.right and not found.whole:
                told = [f"{each.at - since:.1f} {each.event}" for each in listening.told[-8:]]
                print(f"{way.name}, {name}: {found}", *told, *listening.errors[-8:], sep="\n  ")
        for way in [way for way in self.running if not self.verdicts[way, name].back]:
            self.running.pop(way).stop()

    def _have_all(self) -> bool:
        last = self.world.sent - 1
        return all(each.over or last in each.numbers() for each in self.running.values())

    def _publish(self) -> None:
        self.world.publish([way.name for way in self.ways])

    @contextmanager
    def _publishing(self) -> Iterator[None]:
        done = threading.Event()

        def run() -> None:
            while not done.wait(_PAUSE_S):
                self._publish()

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def _start_missing(self) -> None:
        """Starts those that don't run, and waits until they listen."""
        fresh = [way for way in self.ways if way not in self.running]
        with ThreadPoolExecutor(_STARTS) as pool:
            runs = list(pool.map(self._start, fresh))
        limit_s = _READY_S
        if self.expires is not None:
            limit_s = max(1.0, self.expires - _MARGIN_S - time.monotonic())
        _wait(lambda: all(each.over or each.all("ready") for each in runs), limit_s)

    def _start(self, way: Way) -> Listening:
        folder = self.world.folder / way.name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        token = self._write_token(way)
        listening = Listening()
        site = self.world.site
        site.hear[way.name], site.tokens[way.name] = listening.hear, token
        place = Place(
            folder=folder,
            stream=self.world.stream(tls=way.tls),
            page=lambda script: site.page(script, way.name, self.world.stream(tls=way.tls)),
            authority=self.world.authority,
        )
        command = way.client.right if way.right else way.client.as_is
        assert command is not None
        environment = _environment(token, self.world.authority)
        # Before it starts: whatever fails then, here or with another client, ends it.
        self.running[way] = listening
        listening.start(command(place), folder, environment, raw=way.client.raw)
        return listening

    def _write_token(self, way: Way) -> Path:
        lives_s = 3600.0 if self.expires is None else self.expires - time.monotonic()
        file = self.world.folder / f"{way.name}.token"
        made = file.with_suffix(".new")
        made.write_text(self.world.token(way.name, lives_s=lives_s))
        # At once: a client may be reading it.
        made.replace(file)
        return file


def _environment(token: Path, authority: Path) -> Mapping[str, str]:
    """Where the token is, and whom to trust, as each runtime wants to be told."""
    plain = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    trusts = ("SSL_CERT_FILE", "CURL_CA_BUNDLE", "NODE_EXTRA_CA_CERTS")
    return {**plain, **dict.fromkeys(trusts, str(authority)), "PUSHSSE_TOKEN_FILE": str(token)}


def _wait(check: Callable[[], bool], limit_s: float) -> bool:
    end = time.monotonic() + limit_s
    while not check():
        if time.monotonic() > end:
            return False
        time.sleep(_POLL_S)
    return True


def version_of(*command: str) -> str:
    """What a program says of itself: its first number with dots."""
    said = subprocess.run(command, check=False, capture_output=True, text=True, timeout=30)
    words = f"{said.stdout} {said.stderr}".replace("/", " ").split()
    return next((word.strip("(),") for word in words if word[:1].isdigit() and "." in word), "")
