"""The servers that are measured: a node, the floor, and nchan where nginx has it.

Each is a part of `deploy.parts` on the servers' processor, with the requests that its interface wants.
"""

import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import jwt

from bench.generator import Generator, Publish
from bench.processors import SERVER, pinned
from deploy.parts import Node, Part
from deploy.parts.packages import find

SECRET = "the benchmark's own secret, for loopback alone"
_HERE = Path(__file__).parent
_NCHAN_PLACES = ("/usr/lib/nginx/modules", "/usr/lib64/nginx/modules", "/usr/local/nginx/modules")
_NCHAN = """\
load_module {module};
daemon off;
master_process off;
pid {folder}/pid;
error_log {folder}/error.log;
worker_rlimit_nofile {files};
events {{ worker_connections {files}; }}
http {{
  access_log off;
  keepalive_requests 10000000;
  nchan_shared_memory_size 512M;
  client_body_temp_path {folder}/bodies;
  client_max_body_size 1m;
  client_body_buffer_size 1m;
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location = /publish {{ nchan_publisher; nchan_channel_id everybody; nchan_message_buffer_length 200; }}
    location = /stream {{
      nchan_subscriber eventsource;
      nchan_channel_id everybody;
      nchan_subscriber_first_message newest;
    }}
  }}
}}
"""


def get(path: str, *headers: str) -> str:
    """A stream's request."""
    lines = (f"GET {path} HTTP/1.1", "Host: 127.0.0.1", "Accept: text/event-stream", *headers)
    return "\r\n".join(lines) + "\r\n\r\n"


def post(path: str, *headers: str) -> str:
    """The head of a publishing request; its length and body are added when it is sent."""
    lines = (f"POST {path} HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/json", *headers)
    return "\r\n".join(lines) + "\r\n"


@cache
def bearer(user: str, scope: str = "") -> str:
    """A header that says who is asking."""
    claims: dict[str, object] = {"sub": user, "exp": int(time.time()) + 7200}
    if scope:
        claims["scope"] = scope
    return f"Authorization: Bearer {jwt.encode(claims, SECRET, algorithm='HS256')}"


class BenchNode(Node):
    """A node with tokens, on the servers' processor."""

    def __init__(self, folder: Path, settings: Mapping[str, str] | None = None, workers: int = 1) -> None:
        always = {
            "PUSHSSE_JWT_SECRET": SECRET,
            "PUSHSSE_LOG_LEVEL": "warning",
            # Their tokens end two hours after the start.
            "PUSHSSE_STREAM_LIFETIME_S": "0",
            "PUSHSSE_DRAIN_DELAY_S": "0",
            "PUSHSSE_DRAIN_WINDOW_S": "0.5",
        }
        super().__init__("node", folder, {**always, **(settings or {})})
        self._workers = workers

    def command(self) -> Sequence[str]:
        return pinned([*super().command(), "--workers", str(self._workers)], SERVER)

    def generator(self, most: int) -> Generator:
        """The load, with as many people as there may be streams."""
        return Generator(self.port, self.pid, [get("/v1/stream", bearer(user(i))) for i in range(most)])

    def publish(self, to: str = '"all"', kind: str = "load") -> Publish:
        """Events to somebody, `to` as JSON."""
        head = post("/v1/events", bearer("producer", "pushsse:publish"))
        return Publish(head, f'{{"type":"{kind}","to":{to},"message":"%s"}}')


class Floor(Part):
    """The loop around send()."""

    def __init__(self, folder: Path, program: Sequence[str]) -> None:
        super().__init__("floor", folder)
        self._program = program

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def command(self) -> Sequence[str]:
        return pinned([*self._program, str(self.port)], SERVER)

    def is_ready(self) -> bool:
        return listens(self.port)

    def generator(self, most: int) -> Generator:
        """The load."""
        return Generator(self.port, self.pid, [get("/")] * most)

    def publish(self) -> Publish:
        """The text alone."""
        return Publish(post("/"), "%s")


class Nchan(Part):
    """nginx with nchan, one process."""

    def __init__(self, folder: Path, module: Path, most: int) -> None:
        super().__init__("nchan", folder)
        self._module = module
        self._most = most

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def prepare(self) -> None:
        text = _NCHAN.format(module=self._module, folder=self.folder, port=self.port, files=self._most + 3000)
        (self.folder / "nginx.conf").write_text(text)

    def command(self) -> Sequence[str]:
        return pinned([find("nginx") or "nginx", "-c", str(self.folder / "nginx.conf")], SERVER)

    def is_ready(self) -> bool:
        return listens(self.port)

    def generator(self, most: int) -> Generator:
        """The load."""
        return Generator(self.port, self.pid, [get("/stream")] * most)

    def publish(self) -> Publish:
        """The text alone."""
        return Publish(post("/publish"), "%s")


Contestant = BenchNode | Floor | Nchan


def user(number: int) -> str:
    """The name of one of the people."""
    return f"person{number}"


def floor_program(folder: Path) -> Sequence[str]:
    """The floor in C; in Python where there is no compiler."""
    compiler = shutil.which("cc")
    if compiler is not None:
        built = folder / "floor"
        source = str(_HERE / "floor.c")
        done = subprocess.run([compiler, "-O2", "-w", "-o", str(built), source], check=False, timeout=60)
        if done.returncode == 0:
            return [str(built)]
    return [sys.executable, str(_HERE / "floor.py")]


def nchan_module() -> Path | None:
    """nginx's module, where it is."""
    if find("nginx") is None:
        return None
    places = (Path(place) / "ngx_nchan_module.so" for place in _NCHAN_PLACES)
    return next((place for place in places if place.exists()), None)


def listens(port: int) -> bool:
    """Whether somebody accepts there."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    except OSError:
        return False
