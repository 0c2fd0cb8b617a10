"""What the clients are tried against: Redis, nginx with its deployed configuration, and two nodes."""

import contextlib
import json
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import httpx
import jwt

from deploy.parts import Nginx, Node, Redis
from tests.clients.relay import Relay
from tests.clients.site import Site

LIMIT_S = 60.0
# nginx keeps away from a node that it couldn't reach for two seconds (fail_timeout).
_NGINX_TRIES_AGAIN_S = 2.5


class World:
    """All of it; the second node runs while a client needs somewhere to go."""

    def __init__(self, folder: Path, redis: Redis, *, heartbeat_s: float, quick: bool) -> None:
        self.folder = folder
        self.secret = secrets.token_hex(32)
        self.sent = 0
        self.site = Site(self)
        settings = {
            "PUSHSSE_JWT_SECRET": self.secret,
            "PUSHSSE_REDIS_URL": redis.url,
            "PUSHSSE_REDIS_PREFIX": f"clients-{secrets.token_hex(4)}:",
            "PUSHSSE_DATABASE_URL": f"sqlite://{folder}/push.db",
            "PUSHSSE_HEARTBEAT_S": f"{heartbeat_s:g}",
            "PUSHSSE_ALLOWED_ORIGINS": self.site.url,
            "PUSHSSE_TICKETS_PER_MINUTE": "1000",
        }
        if quick:
            settings |= {"PUSHSSE_DRAIN_DELAY_S": "0", "PUSHSSE_DRAIN_WINDOW_S": "0.2"}
        self.nodes = [Node(f"node{number}", folder / f"node{number}", settings) for number in (1, 2)]
        self.nginx = Nginx(folder / "nginx", [f"127.0.0.1:{node.port}" for node in self.nodes])
        self.plain = Relay(self.nginx.port)
        self.tls = Relay(self.nginx.tls_port)
        # Those that run, the oldest first.
        self._up: list[Node] = []
        self._http = httpx.Client(trust_env=False, timeout=LIMIT_S)

    @property
    def authority(self) -> Path:
        """Who vouches for nginx, in PEM."""
        return self.nginx.certificate.authority

    @property
    def living(self) -> Node:
        """A node that runs."""
        return self._up[-1]

    def stream(self, *, tls: bool) -> str:
        """The address of streams; over TLS nginx speaks HTTP/2."""
        base = f"https://localhost:{self.tls.port}" if tls else f"http://127.0.0.1:{self.plain.port}"
        return f"{base}/v1/stream?named=0"

    def token(self, user: str, scope: str = "stream", lives_s: float = 3600) -> str:
        """A token; `exp` counts whole seconds."""
        now = time.time()
        claims = {"sub": user, "iat": int(now), "exp": int(now + lives_s), "scope": f"pushsse:{scope}"}
        return jwt.encode(claims, self.secret, "HS256")

    def publish(self, users: Sequence[str]) -> None:
        """The next number: to everybody, or by name, by turns."""
        to: object = "all" if self.sent % 2 else {"users": list(users)}
        event = {"type": "number", "message": self.sent, "to": to}
        headers = {"authorization": f"Bearer {self.token('ops', 'publish')}"}
        reply = self._http.post(f"{self.living.url}/v1/events", json=event, headers=headers)
        reply.raise_for_status()
        self.sent += 1

    def ticket(self, token: str) -> dict[str, object]:
        """A ticket, as a page's backend gets it."""
        headers = {"authorization": f"Bearer {token}"}
        reply = self._http.post(f"{self.living.url}/v1/tickets", headers=headers)
        reply.raise_for_status()
        found: dict[str, object] = json.loads(reply.content)
        return found

    def add_node(self) -> None:
        """Starts the node that doesn't run. When this returns nginx sends streams there."""
        self._start(next(node for node in self.nodes if node not in self._up))
        time.sleep(_NGINX_TRIES_AGAIN_S)

    def terminate(self) -> None:
        """SIGTERM to the node that has been running longer, which has the streams; returns at its end."""
        self._leaves().stop()

    def kill(self) -> None:
        """SIGKILL to it."""
        self._leaves().kill()

    def freeze(self) -> None:
        """The network is cut under all open connections."""
        for relay in (self.plain, self.tls):
            relay.freeze()

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """One node runs, and all before and behind it."""
        with ExitStack() as stack:
            for node in self.nodes:
                stack.callback(node.remove)
            self._start(self.nodes[0])
            for part in (self.nginx, self.plain, self.tls, self.site, self._http):
                stack.enter_context(part)
            yield

    def _start(self, node: Node) -> None:
        node.start()
        self._up.append(node)

    def _leaves(self) -> Node:
        """The node that has the streams; the other one is where they go."""
        assert len(self._up) == 2
        return self._up.pop(0)
