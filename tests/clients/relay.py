"""A way to nginx that can be cut as a network is: what is open stays open, and nothing passes any more."""

import contextlib
import selectors
import socket
import threading

from deploy.parts.ports import take_port

_CHUNK = 65_536


class Relay:
    """Passes bytes on between its port and `target`, while the context lasts."""

    def __init__(self, target: int) -> None:
        self.port = take_port(self)
        self._target = target
        self._selector = selectors.DefaultSelector()
        self._peers: dict[socket.socket, socket.socket] = {}
        self._lock = threading.Lock()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._server = socket.socket()

    def freeze(self) -> None:
        """Nobody hears anything more on the connections that are open; new ones work."""
        with self._lock:
            for each in self._peers:
                with contextlib.suppress(KeyError):
                    self._selector.unregister(each)

    def __enter__(self) -> "Relay":
        self._server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._server.bind(("127.0.0.1", self.port))
        self._server.listen(200)
        self._selector.register(self._server, selectors.EVENT_READ)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped = True
        self._thread.join()
        for each in (self._server, *self._peers):
            each.close()
        self._selector.close()

    def _run(self) -> None:
        while not self._stopped:
            for key, _ in self._selector.select(0.1):
                with self._lock:
                    if key.fileobj is self._server:
                        self._accept()
                    elif key.fileobj in self._selector.get_map():
                        assert isinstance(key.fileobj, socket.socket)
                        self._pass(key.fileobj)

    def _accept(self) -> None:
        near, _ = self._server.accept()
        try:
            far = socket.create_connection(("127.0.0.1", self._target), 5)
        except OSError:
            near.close()
            return
        for one, other in ((near, far), (far, near)):
            self._peers[one] = other
            self._selector.register(one, selectors.EVENT_READ)

    def _pass(self, source: socket.socket) -> None:
        target = self._peers[source]
        try:
            data = source.recv(_CHUNK)
            target.sendall(data)
        except OSError:
            data = b""
        if not data:
            for each in (source, target):
                del self._peers[each]
                self._selector.unregister(each)
                each.close()
