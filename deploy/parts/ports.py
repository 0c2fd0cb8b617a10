"""Free ports of loopback, for parts that keep theirs over restarts."""

import random
import socket
import weakref

# Below the range that the kernel takes for outgoing connections (32768 and up), or a client's connection
# could sit on the port of a part that is just being restarted.
# Apart from each other: a port that is free, and not yet listened on, may not become a part's.
_FREE, _TAKEN = range(20_000, 23_000), range(23_000, 32_000)


def free_port() -> int:
    """A port that nobody listens on, and no part has taken."""
    for port in random.sample(_FREE, 200):
        if (claim := _claim(port)) is not None:
            claim.close()
            return port
    raise OSError("no free port")


def take_port(holder: object) -> int:
    """A port that nobody listens on, and that nobody else gets while the holder is there.

    A part draws its port long before it listens, and doesn't listen while it is being restarted.
    """
    for port in random.sample(_TAKEN, 200):
        if (claim := _claim(port)) is not None:
            weakref.finalize(holder, claim.close)
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


def _claim(port: int) -> socket.socket | None:
    """Takes a port until the socket is closed; None where it isn't free.

    By a name in Linux's abstract namespace: it holds between processes, and ends with ours however that ends.
    """
    claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        claim.bind(f"\0pushsse-port-{port}")
    except OSError:
        claim.close()
        return None
    if is_free(port):
        return claim
    claim.close()
    return None


def answers(port: int, request: bytes = b"", limit_s: float = 2.0) -> bytes:
    """The first bytes that a server answers; empty where it doesn't listen or says nothing in time."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=limit_s) as connection:
            connection.sendall(request)
            return connection.recv(4096)
    except OSError:
        return b""
