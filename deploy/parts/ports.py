"""Free ports of loopback, for parts that keep theirs over restarts."""

import random
import socket

# Below the range that the kernel takes for outgoing connections (32768 and up), or a client's connection
# could sit on the port of a part that is just being restarted.
_FIRST, _LAST = 20_000, 32_000


def free_port() -> int:
    """A port that nobody listens on."""
    for port in random.sample(range(_FIRST, _LAST), 200):
        if is_free(port):
            return port
    raise OSError("no free port")


def is_free(port: int) -> bool:
    """Whether a server could listen there."""
    with socket.socket() as probe:
        # As the servers do: a port in TIME_WAIT counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
            probe.listen(1)
        except OSError:
            return False
    return True


def answers(port: int, request: bytes = b"", limit_s: float = 2.0) -> bytes:
    """The first bytes that a server answers; empty where it doesn't listen or says nothing in time."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=limit_s) as connection:
            connection.sendall(request)
            return connection.recv(4096)
    except OSError:
        return b""
