"""Two networks that fail, each with a client, before a node and nginx: when is the last connection gone?

`test_half_open` runs it in a network namespace of its own (unshare(1)); it makes one more for each client.
It prints the seconds as JSON: by part, by network.
"""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import jwt

from deploy.parts.nginx import Nginx
from deploy.parts.node import Node
from tests.waiting import until

SECRET = "a secret of thirty-two bytes and more"
LIMIT_S = 75.0
STREAMS = 10
# What a client's end does, so that nothing comes from there any more and nobody says so. `blackhole`: its
# packets are dropped, and what is sent to it still arrives. `down`: the cable is pulled.
CUTS = {
    "silent": ("route", "add", "blackhole", "{server}/32"),
    "unplugged": ("link", "set", "{link}", "down"),
}
_ENDED = {"06", "07"}  # TIME_WAIT and CLOSE in /proc/net/tcp


class Network(NamedTuple):
    """A cable between here and a client's namespace."""

    name: str
    number: int

    @property
    def server(self) -> str:
        return f"10.203.{self.number}.1"

    @property
    def client(self) -> str:
        return f"10.203.{self.number}.2"


class OpenNode(Node):
    """A node that listens for everybody."""

    def command(self) -> Sequence[str]:
        return [part.replace("127.0.0.1", "0.0.0.0") for part in super().command()]


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, timeout=10)


# The client's side


def hold(network: Network, ports: Sequence[int]) -> None:
    """A client: opens streams and idle connections, cuts its own network when it is told, and holds them."""
    link = f"c{network.number}"
    _await("configure")
    ip("addr", "add", f"{network.client}/30", "dev", link)
    ip("link", "set", link, "up")
    _say("configured")
    _await("open")
    held = []
    for port in ports:
        for number in range(STREAMS):
            held.append(_asked(network.server, port, "/v1/stream", f"user{number}", b"event: ready"))
            held.append(_asked(network.server, port, "/livez", f"user{number}", b"alive"))
    _say("opened")
    _await("cut")
    cut = [word.format(server=network.server, link=link) for word in CUTS[network.name]]
    ip(*cut)
    _say("cut")
    # Held until the end of the input.
    sys.stdin.read()
    del held


def _asked(server: str, port: int, path: str, user: str, wanted: bytes) -> socket.socket:
    made = socket.create_connection((server, port), timeout=10)
    token = jwt.encode({"sub": user, "exp": int(time.time()) + 600}, SECRET)
    made.sendall(f"GET {path} HTTP/1.1\r\nHost: {server}\r\nAuthorization: Bearer {token}\r\n\r\n".encode())
    found = b""
    while wanted not in found:
        more = made.recv(4096)
        assert more, found
        found += more
    return made


def _await(word: str) -> None:
    said = sys.stdin.readline().strip()
    assert said == word, said


def _say(word: str) -> None:
    print(word, flush=True)


# The server's side


class Client:
    """A client in a namespace of its own."""

    def __init__(self, network: Network, ports: Sequence[int]) -> None:
        self._process = subprocess.Popen(
            ["unshare", "--net", sys.executable, "-m", "tests.hardening.half_open", network.name]
            + [str(number) for number in (network.number, *ports)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._network = network

    def connect(self) -> None:
        """Puts a cable between here and there."""
        here, there = f"s{self._network.number}", f"c{self._network.number}"
        # unshare(1) becomes the program that it runs: the process is in its own namespace before long.
        place, ours = f"/proc/{self._process.pid}/ns/net", os.readlink("/proc/self/ns/net")
        until(lambda: os.readlink(place) != ours, "a namespace")
        ip("link", "add", here, "type", "veth", "peer", "name", there)
        ip("link", "set", there, "netns", str(self._process.pid))
        ip("addr", "add", f"{self._network.server}/30", "dev", here)
        ip("link", "set", here, "up")

    def order(self, word: str, answer: str) -> None:
        """Has it do something, and waits until that is done."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(f"{word}\n")
        stdin.flush()
        said = stdout.readline().strip()
        assert said == answer, f"{self._network.name}: {said!r}"

    def end(self) -> None:
        """Ends it."""
        self._process.kill()
        self._process.wait(10)


@contextmanager
def parts(folder: Path) -> Iterator[tuple[Node, Nginx]]:
    """A node with its own settings, and nginx in front of it."""
    # docs/operations.md: nginx can't set TCP_USER_TIMEOUT, and needs this.
    Path("/proc/sys/net/ipv4/tcp_retries2").write_text("6")
    settings = {
        "PUSHSSE_JWT_SECRET": SECRET,
        "PUSHSSE_DATABASE_URL": f"sqlite://{folder}/node.db",
        "PUSHSSE_DRAIN_DELAY_S": "0",
        "PUSHSSE_DRAIN_WINDOW_S": "0.2",
    }
    node = OpenNode("node", folder / "node", settings)
    with ExitStack() as stack:
        stack.callback(node.remove)
        node.start()
        nginx = Nginx(folder / "nginx", [f"127.0.0.1:{node.port}"], address="0.0.0.0")
        stack.callback(nginx.remove)
        nginx.start()
        yield node, nginx


def measure(folder: Path) -> Mapping[str, Mapping[str, float]]:
    """When the last connection of each part to each network was gone, in seconds after the cut."""
    ip("link", "set", "lo", "up")
    networks = [Network(name, number) for number, name in enumerate(CUTS, start=1)]
    with parts(folder) as (node, nginx), ExitStack() as stack:
        ports = {"node": node.port, "nginx": nginx.port}
        clients = [Client(network, list(ports.values())) for network in networks]
        for client in clients:
            stack.callback(client.end)
        for client in clients:
            client.connect()
            client.order("configure", "configured")
            client.order("open", "opened")
        for network in networks:
            for port in ports.values():
                assert _connections(network, port) == 2 * STREAMS
        for client in clients:
            client.order("cut", "cut")
        began = time.monotonic()
        gone: dict[str, dict[str, float]] = {part: {} for part in ports}
        while time.monotonic() < began + LIMIT_S and sum(map(len, gone.values())) < len(ports) * len(
            networks
        ):
            for part, port in ports.items():
                for network in networks:
                    if network.name not in gone[part] and not _connections(network, port):
                        gone[part][network.name] = time.monotonic() - began
            time.sleep(0.1)
    return gone


def _connections(network: Network, port: int) -> int:
    """The connections of a port here with a client, as the kernel has them."""
    client = "".join(f"{int(number):02X}" for number in reversed(network.client.split(".")))
    found = 0
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, state, *_ = line.split()
        found += local.endswith(f":{port:04X}") and remote.startswith(client) and state not in _ENDED
    return found


def main() -> None:
    name, *words = sys.argv[1:]
    if name in CUTS:
        hold(Network(name, int(words[0])), [int(port) for port in words[1:]])
    else:
        print(json.dumps(measure(Path(name))))


if __name__ == "__main__":
    main()
