"""uvicorn's HTTP protocol, which answers the most frequent calls itself: without a task and without ASGI.

`server` gives `ImmediateHttp` to uvicorn; its calls are the application's. A small request that arrives whole
goes to its call while it is parsed, and the answer is written at once. All else goes through ASGI, and so
does every request whose call can't answer it at once.

Deliberate:
- One read must hold exactly one request. Then nothing of it is missing, and no further request is behind it
  that would have to wait for its turn.
- A call that returns None, or raises, has changed nothing. ASGI runs the request again from its beginning, so
  each error is made into a response in one place.
- httptools still parses each request: what is a valid request is decided in one place, too.
- The answer has the bytes that uvicorn's own cycle would write, in one write.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, cast

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope
from uvicorn import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle
from uvicorn.server import ServerState

from pushsse.stream.handover import HandoverHttp

# A request with its head.
MOST_BYTES = 16 * 1024
# Answers a request and its body. None, or any exception: nothing has happened, and ASGI is to answer.
Call = Callable[[Request, bytes], Response | None]
# By method and path.
Calls = Mapping[tuple[bytes, bytes], Call]
# Whatever changes how a request or its body is read.
_UNUSUAL = frozenset({b"expect", b"upgrade", b"transfer-encoding", b"content-encoding"})
NO_CALLS: Calls = {}


class ImmediateHttp(HandoverHttp):
    """Looks for an immediate call behind each request."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        plain = not (self.root_path or config.access_log or self.limit_concurrency is not None)
        self._calls: Calls = getattr(self.app, "immediate", NO_CALLS) if plain else NO_CALLS
        # What was read and is being parsed, and whether its request began with it.
        self._data = b""
        self._began = False
        # The call behind the request that is being parsed, and the request's body.
        self._call: Call | None = None
        self._body = b""

    def data_received(self, data: bytes) -> None:
        self._data, self._began = data, False
        super().data_received(data)
        self._data = b""

    def on_message_begin(self) -> None:
        self._began = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._call = self._found()
        if self._call is None:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if self._call is None:
            super().on_body(body)

    def on_message_complete(self) -> None:
        call, self._call = self._call, None
        if call is None:
            super().on_message_complete()
            return
        body, self._body = self._body, b""
        # Here, and not later: the parser says whether to keep the connection only within this callback.
        if not self.answer(call, body):
            super().on_headers_complete()
            if body:
                super().on_body(body)
            super().on_message_complete()

    def _found(self) -> Call | None:
        """The call behind a request that is plain, small and whole; it leaves the body in `_body`."""
        path, _, query = self.url.partition(b"?")
        call = self._calls.get((self.parser.get_method(), path))
        data = self._data
        if call is None or not self._began or len(data) > MOST_BYTES or b"#" in query:
            return None
        if self._is_answering() or self.flow.write_paused:
            return None
        body_bytes = 0
        for name, value in self.headers:
            if name == b"content-length":
                body_bytes = int(value)
            elif name in _UNUSUAL:
                return None
        start = data.find(b"\r\n\r\n") + 4
        if start + body_bytes != len(data) or self.parser.get_http_version() != "1.1":
            return None
        scope = cast(Scope, self.scope)
        scope["method"] = self.parser.get_method().decode("ascii")
        scope["path"], scope["raw_path"], scope["query_string"] = path.decode("ascii"), path, query
        self._body = data[start:]
        return call

    def _is_answering(self) -> bool:
        """Whether ASGI is still at an earlier request."""
        cycle = cast(RequestResponseCycle | None, self.cycle)
        return cycle is not None and not cycle.response_complete

    def answer(self, call: Call, body: bytes) -> bool:
        """Answers the request; False where ASGI is to do so."""
        try:
            response = call(Request(cast(Scope, self.scope)), body)
        except Exception:  # noqa: BLE001  whatever it is: ASGI comes upon it again, and makes it a response
            return False
        if response is None:
            return False
        keep_alive = self.parser.should_keep_alive()
        self.transport.write(_bytes_of(response, self.server_state.default_headers, keep_alive=keep_alive))
        if not keep_alive:
            self.transport.close()
        self.on_response_complete()
        return True


def _bytes_of(response: Response, default: list[tuple[bytes, bytes]], *, keep_alive: bool) -> bytes:
    """An answer as uvicorn's cycle writes it."""
    lines = [STATUS_LINE[response.status_code]]
    for name, value in (*default, *response.raw_headers):
        lines += [name, b": ", value, b"\r\n"]
    lines += [b"\r\n" if keep_alive else b"connection: close\r\n\r\n", bytes(response.body)]
    return b"".join(lines)
