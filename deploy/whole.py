"""The whole deployment on this machine: Kafka, Redis, PostgreSQL, nginx and nodes, from empty data.

`make stack` runs it in the foreground (`stack`), the tests and the fault runs in their own hands.
"""

import secrets
import shlex
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

from deploy.parts import Kafka, Nginx, Node, Part, PartFailed, Postgres, Redis
from deploy.parts.certificate import make_certificate
from deploy.parts.node import environment, pushsse

TOPIC = "push.events"
PARTITIONS = 4
_OTHER_TOPICS = (f"{TOPIC}.dlq", "push.questions", "push.answers", "push.answers.dlq", "push.outcomes")
_COMMAND_LIMIT_S = 60


class Stack:
    """Everything under one folder. `settings` are further PUSHSSE_* variables of the nodes."""

    def __init__(
        self,
        folder: Path,
        *,
        nodes: int = 2,
        port: int | None = None,
        tls_port: int | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder.resolve()
        self.logs = self.folder / "logs"
        self.kafka = Kafka(self.folder / "kafka", log=self.logs / "kafka.log")
        self.redis = Redis(self.folder / "redis", log=self.logs / "redis.log", appendonly=True)
        self.postgres = Postgres(self.folder / "postgres", log=self.logs / "postgres.log")
        self.settings = {
            "PUSHSSE_KAFKA_BOOTSTRAP": self.kafka.url,
            "PUSHSSE_KAFKA_TOPIC": TOPIC,
            "PUSHSSE_REDIS_URL": self.redis.url,
            "PUSHSSE_DATABASE_URL": self.postgres.url,
            "PUSHSSE_JWT_SECRET": secrets.token_hex(32),
        }
        self._extra = dict(settings or {})
        self.nodes = [self._node(f"node{number}") for number in range(1, nodes + 1)]
        self.nginx = Nginx(
            self.folder / "nginx",
            [f"127.0.0.1:{node.port}" for node in self.nodes],
            port=port,
            tls_port=tls_port,
            log=self.logs / "nginx.log",
        )

    def node(self, number: int) -> Node:
        """A node by its number, from 1 on."""
        return self.nodes[number - 1]

    @property
    def parts(self) -> Sequence[Part]:
        """All of them, in the order in which they are stopped."""
        return [*self.nodes, self.nginx, self.kafka, self.redis, self.postgres]

    @property
    def authority(self) -> Path:
        """The authority that vouches for nginx's certificate, in PEM."""
        return self.folder / "ca.pem"

    @property
    def env(self) -> Mapping[str, str]:
        """What a client, a producer or a test wants to know; also in the file `env`."""
        urls = {"PUSHSSE_URL": self.nginx.url, "TLS_URL": self.nginx.tls_url}
        nodes = {f"{node.name.upper()}_URL": node.url for node in self.nodes}
        return {**urls, **self.settings, **nodes}

    def start(self) -> None:
        """Starts everything; returns when the nodes are ready. Raises PartMissing, PartFailed."""
        self._pids.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(make_certificate(self.nginx.folder / "tls").authority, self.authority)
        others = (partial(self._start, part) for part in (self.redis, self.nginx))
        _together([self._start_kafka, self._start_postgres, *others])
        _together([partial(self._start, node) for node in self.nodes])
        self.write_files()

    def stop(self) -> None:
        """Stops everything: first the nodes, so that they can say goodbye; then what they lean on."""
        _together([node.stop for node in self.nodes])
        _together([self.nginx.stop, self.kafka.stop, self.redis.stop, self.postgres.remove])
        shutil.rmtree(self._pids, ignore_errors=True)

    def kill(self) -> None:
        """Ends everything at once."""
        for part in self.parts:
            part.kill()
        self.postgres.remove()

    def write_files(self) -> None:
        """`env`, and `pids/NAME` of what runs."""
        lines = [f"{name}={shlex.quote(value)}\n" for name, value in self.env.items()]
        (self.folder / "env").write_text("".join(lines))
        for part in self.parts:
            if part.running:
                self._note(part)

    def token(self, user: str, scope: str = "stream ask preferences", expires: str = "12h") -> str:
        """A token of this stack's nodes. Raises PartFailed."""
        return self._run("token", "--user", user, "--scope", scope, "--expires", expires).strip()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _node(self, name: str) -> Node:
        settings = {**self.settings, **self._extra}
        return Node(name, self.folder / name, settings, log=self.logs / f"{name}.log")

    @property
    def _pids(self) -> Path:
        return self.folder / "pids"

    def _start(self, part: Part) -> None:
        part.launch()
        # Before it serves: were we killed now, the next stack has to know what is still there.
        self._note(part)
        part.wait_ready()

    def _note(self, part: Part) -> None:
        (self._pids / part.name).write_text(f"{part.pid}\n")

    def _start_kafka(self) -> None:
        self._start(self.kafka)
        self.kafka.create_topic(TOPIC, PARTITIONS)
        for name in _OTHER_TOPICS:
            self.kafka.create_topic(name)

    def _start_postgres(self) -> None:
        self._start(self.postgres)
        self._run("migrate")

    def _run(self, *arguments: str) -> str:
        done = subprocess.run(
            pushsse(*arguments),
            check=False,
            capture_output=True,
            text=True,
            timeout=_COMMAND_LIMIT_S,
            cwd=self.folder,
            env=environment({**self.settings, **self._extra}),
        )
        if done.returncode:
            raise PartFailed(f"pushsse {arguments[0]} failed: {(done.stderr or done.stdout).strip()}")
        return done.stdout


def _together(calls: Sequence[Callable[[], None]]) -> None:
    """All at once; raises the first failure when all have ended."""
    with ThreadPoolExecutor(len(calls)) as pool:
        running = [pool.submit(call) for call in calls]
    for future in running:
        future.result()
