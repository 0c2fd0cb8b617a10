"""The socket that a node listens on, bound before anything heavy is imported or started.

Called by the command line first of all, so that a port that can't be had is said at once, and by each worker.
"""

import socket

import msgspec

from pushsse.settings import Settings

# Accepted sockets inherit these (tcp(7)): a peer that is gone, or doesn't read, is noticed.
_SOCKET_OPTIONS = (
    (socket.SOL_SOCKET, socket.SO_SNDBUF, 128 * 1024),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
)
_LINUX_OPTIONS = (
    ("TCP_KEEPIDLE", 20),
    ("TCP_KEEPINTVL", 5),
    ("TCP_KEEPCNT", 3),
    ("TCP_USER_TIMEOUT", 30_000),
)


def listening_socket(settings: Settings) -> socket.socket:
    """The socket to accept on, bound. Raises OSError."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if settings.workers > 1:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        for level, option, value in _SOCKET_OPTIONS:
            listener.setsockopt(level, option, value)
        for name, value in _LINUX_OPTIONS:
            if hasattr(socket, name):
                listener.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        listener.bind((settings.host, settings.port))
    except BaseException:
        listener.close()
        raise
    return listener


def reserved_socket(settings: Settings) -> socket.socket:
    """The port, held for this process or its workers, accepting nothing. Raises OSError."""
    if settings.workers == 1:
        return listening_socket(settings)
    # SO_REUSEPORT alone would share the port with another service of the same user.
    with listening_socket(msgspec.structs.replace(settings, workers=1)) as alone:
        port = alone.getsockname()[1]
    return listening_socket(msgspec.structs.replace(settings, port=port))
