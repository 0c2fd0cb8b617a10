"""The floor where there is no C compiler: the least that a loop in Python costs. As `floor.c`, see there.

Run by `contestants`: floor.py PORT.
"""

import select
import socket
import sys

HELLO = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
ACCEPTED = b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n"


class Floor:
    """Whoever GETs is kept; the body of every POST goes to all of them."""

    def __init__(self) -> None:
        self.poll = select.epoll()
        self.connections: dict[int, socket.socket] = {}
        self.kept: dict[int, socket.socket] = {}
        self.held = b""

    def tell(self, body: bytes) -> None:
        """One event to all."""
        event = b"event: load\ndata: %b\nid: 1\n\n" % body
        frame = b"%x\r\n%b\r\n" % (len(event), event)
        for stream in self.kept.values():
            stream.send(frame)

    def hear(self, fd: int) -> None:
        """What one connection says."""
        connection = self.connections[fd]
        try:
            said = connection.recv(1 << 20)
        except OSError:
            said = b""
        if not said:
            self.poll.unregister(fd)
            self.kept.pop(fd, None)
            self.connections.pop(fd).close()
        elif said.startswith(b"GET "):
            connection.send(HELLO)
            self.kept[fd] = connection
        else:
            self.held += said
            self.take(connection)

    def take(self, publisher: socket.socket) -> None:
        """All whole POSTs of what has come."""
        while b"\r\n\r\n" in self.held:
            head, _, rest = self.held.partition(b"\r\n\r\n")
            size = int(head.lower().partition(b"content-length:")[2].split()[0])
            if len(rest) < size:
                return
            self.held = rest[size:]
            self.tell(rest[:size])
            publisher.send(ACCEPTED)

    def run(self, port: int) -> None:
        """For ever."""
        with socket.create_server(("127.0.0.1", port), backlog=4096) as listener:
            self.poll.register(listener.fileno(), select.EPOLLIN)
            while True:
                for fd, _ in self.poll.poll():
                    if fd != listener.fileno():
                        self.hear(fd)
                        continue
                    connection, _ = listener.accept()
                    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    self.connections[connection.fileno()] = connection
                    self.poll.register(connection.fileno(), select.EPOLLIN)


if __name__ == "__main__":
    Floor().run(int(sys.argv[1]))
