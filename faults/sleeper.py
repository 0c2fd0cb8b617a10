"""A client that doesn't read, or reads slowly: a plain socket with a small buffer."""

import asyncio
import socket
from types import TracebackType
from typing import Self

_RCVBUF = 4096


class Sleeper:
    """Opens a stream straight at a node; reads only when asked to."""

    def __init__(self, port: int, token: str) -> None:
        self.port = port
        self._token = token
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RCVBUF)
        self._socket.setblocking(False)

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        await loop.sock_connect(self._socket, ("127.0.0.1", self.port))
        head = f"GET /v1/stream HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {self._token}\r\n\r\n"
        await loop.sock_sendall(self._socket, head.encode())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    async def read(self, size: int) -> bytes:
        """Some bytes; none at the end."""
        return await asyncio.get_running_loop().sock_recv(self._socket, size)
