"""The HTTP interface, and what its calls share: errors, bodies, query parameters, and limits of calls.

Errors are `application/problem+json` (RFC 9457); bodies are read within their bounds. Endpoints raise;
`app` registers the handlers below, the only place where an error becomes a response.
"""

import re
import time
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from http import HTTPStatus
from typing import TypeVar

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.responses import Response
from starlette.types import Message, Scope

from pushsse import strictjson
from pushsse.backplane import Backplane
from pushsse.errors import (
    AllowanceSpent,
    EventTooLarge,
    InvalidInput,
    NotJson,
    PushsseError,
    StatementFailed,
    Unavailable,
    Violation,
)
from pushsse.logs import served
from pushsse.settings import seconds
from pushsse.stream.limits import ANSWER_HEADERS

T = TypeVar("T")
MEDIA_TYPE = "application/problem+json"
MAX_BODY = 64 * 1024
MAX_EVENTS_BODY = 1024 * 1024
# The window of a limit of calls.
LIMIT_WINDOW_S = 60
# The header fields of a limit, for the document.
RATE_LIMIT_FIELDS = {
    "RateLimit-Policy": "how many calls (q) a person may make in how many seconds (w); with `qu` "
    "content-bytes, how many bytes they may add to the log",
    "RateLimit": "how many are left (r), and in how many seconds (t) all of them are again",
}


class HttpProblem(PushsseError):
    """A request that can't be served: its status, a code for programs, and a sentence for people."""

    def __init__(self, status: int, code: str, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.headers = headers


def json_response(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON response of anything that msgspec encodes."""
    given = ANSWER_HEADERS if headers is None else {**ANSWER_HEADERS, **headers}
    return Response(msgspec.json.encode(value), status, given, "application/json")


class ProblemResponse(Response):
    """A problem document, and what it says for whoever counts it, or tells it in other words."""

    def __init__(
        self,
        body: bytes,
        status: int,
        headers: Mapping[str, str] | None,
        code: str,
        *,
        detail: str = "",
        violations: tuple[Violation, ...] = (),
    ) -> None:
        super().__init__(body, status, {**ANSWER_HEADERS, **(headers or {})}, MEDIA_TYPE)
        self.code = code
        self.detail = detail
        self.violations = violations


# How a call of somebody else's protocol tells a problem.
Retold = Callable[[ProblemResponse], Response]
_RETOLD = "pushsse.retold"


def retell(scope: Scope, retold: Retold) -> None:
    """From now on, what goes wrong with this request is told in this way."""
    scope[_RETOLD] = retold


def problem_response(
    status: int,
    code: str,
    detail: str,
    *,
    headers: Mapping[str, str] | None = None,
    violations: tuple[Violation, ...] = (),
) -> ProblemResponse:
    """One problem document. That of an error of the server has the id that the log has of the request."""
    body: dict[str, object] = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "code": code,
        "detail": detail,
    }
    if status >= 500 and (request := served()) is not None:
        body["request"] = request.id
    if violations:
        body["errors"] = [{"at": violation.at, "detail": violation.detail} for violation in violations]
    encoded = msgspec.json.encode(body)
    return ProblemResponse(encoded, status, headers, code, detail=detail, violations=violations)


# A body that takes longer may arrive after its sender was kicked, or after the token's end.
BODY_AT_ONCE_S = 1.0
_AGAIN = "pushsse.again"


def after_body(scope: Scope, again: Callable[[Request], Awaitable[None]]) -> None:
    """Has `again` called where the request's body is long in coming: who is asking may not do so any more.

    It is given the request then. One that held it would be a cycle, since the request has the scope.
    """
    scope[_AGAIN] = again


async def read_body(request: Request, limit: int = MAX_BODY) -> bytes:
    """The body of a request, unpacked if it is gzip'd.

    Raises HttpProblem: 413 as soon as it is over `limit` bytes, packed or not; 415 for another encoding; 400
    for what isn't gzip; 401 where it took long and its sender has no access any more.
    """
    began = time.monotonic()
    body = await _read_body(request, limit)
    again: Callable[[Request], Awaitable[None]] | None = request.scope.get(_AGAIN)
    if again is not None and time.monotonic() - began > BODY_AT_ONCE_S:
        await again(request)
    return body


async def _read_body(request: Request, limit: int) -> bytes:
    announced = request.headers.get("content-length", "0")
    if announced.isdigit() and int(announced) > limit:
        raise _body_too_large(limit)
    gzip = _gzip(request)
    message = await request.receive()
    if gzip is None and message["type"] == "http.request" and not message.get("more_body"):
        # Most bodies come in one piece.
        whole: bytes = message.get("body", b"")
        if len(whole) > limit:
            raise _body_too_large(limit)
        return whole
    body = bytearray()
    received = 0
    async for chunk in _pieces(message, request):
        received += len(chunk)
        # Never more than one byte over the limit is unpacked, so a bomb costs no more than any other body.
        body += chunk if gzip is None else gzip.unpack(chunk, limit + 1 - len(body))
        if len(body) > limit or received > limit:
            raise _body_too_large(limit)
    if gzip is not None:
        gzip.close()
    return bytes(body)


def _body_too_large(limit: int) -> HttpProblem:
    # Made where it is raised: in a variable of the raising function it would be a cycle with its traceback.
    # Closed, since the rest of the body is still on its way, and may never end.
    close = {"connection": "close"}
    return HttpProblem(413, "body_too_large", f"the body has more than {limit} bytes", close)


async def _pieces(message: Message, request: Request) -> AsyncIterator[bytes]:
    """A body from its first message on. Raises ClientDisconnect."""
    while True:
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        yield message.get("body", b"")
        if not message.get("more_body"):
            return
        message = await request.receive()


def _gzip(request: Request) -> "_Gzip | None":
    encoding = request.headers.get("content-encoding", "").strip().lower()
    if encoding in ("", "identity"):
        return None
    if encoding in ("gzip", "x-gzip"):
        return _Gzip()
    # RFC 9110, 15.5.16: it says what would be taken.
    headers = {"accept-encoding": "gzip", "connection": "close"}
    detail = f"a body can be gzip'd or plain, not {encoding[:80]!r}"
    raise HttpProblem(415, "content_encoding", detail, headers)


class _Gzip:
    """One gzip member (RFC 1952). More in a row aren't taken: each would cost a copy of all that follow."""

    def __init__(self) -> None:
        self._unpacking = zlib.decompressobj(zlib.MAX_WBITS | 16)

    def unpack(self, chunk: bytes, most: int) -> bytes:
        """Up to `most` bytes of what a piece of the body holds; `most` is over 0."""
        try:
            found = self._unpacking.decompress(chunk, most)
        except zlib.error:
            raise self._broken("isn't gzip, as its Content-Encoding says") from None
        if self._unpacking.unused_data:
            raise self._broken("goes on after the end of its gzip member")
        return found

    def close(self) -> None:
        """At the end of the body."""
        if not self._unpacking.eof:
            raise self._broken("ends before its gzip member does")

    def _broken(self, what: str) -> HttpProblem:
        return HttpProblem(400, "content_encoding", f"the body {what}", {"connection": "close"})


async def read_json(request: Request, to: type[T], limit: int = MAX_BODY) -> T:
    """The body as a checked type. Raises HttpProblem 413, NotJson (400), InvalidInput (422)."""
    return strictjson.convert(strictjson.loads(await read_body(request, limit)), to)


async def on_problem(_: Request, error: Exception) -> ProblemResponse:
    """HttpProblem."""
    assert isinstance(error, HttpProblem)
    return problem_response(error.status, error.code, error.detail, headers=error.headers)


async def on_invalid(_: Request, error: Exception) -> ProblemResponse:
    """InvalidInput, and NotJson below it."""
    assert isinstance(error, InvalidInput)
    if isinstance(error, NotJson):
        return problem_response(400, "not_json", str(error), violations=error.violations)
    return problem_response(422, "invalid", str(error)[:1000], violations=error.violations)


async def on_unavailable(_: Request, error: Exception) -> ProblemResponse:
    """Unavailable: which dependency it is goes to the log, not to the world."""
    assert isinstance(error, Unavailable)
    detail = "a part of the service doesn't answer just now, try again"
    return problem_response(503, "unavailable", detail, headers={"retry-after": "2"})


async def on_allowance(_: Request, error: Exception) -> ProblemResponse:
    """AllowanceSpent, as a limit of calls says it; the quota is in bytes (`qu`, as the draft has it)."""
    assert isinstance(error, AllowanceSpent)
    headers = {
        "ratelimit-policy": f'"log_bytes";q={error.quota};qu="content-bytes";w={error.window_s}',
        "ratelimit": f'"log_bytes";r=0;t={error.whole_s}',
        "retry-after": str(error.after_s),
    }
    return problem_response(429, "rate_limited", str(error), headers=headers)


async def on_too_large(_: Request, error: Exception) -> ProblemResponse:
    """EventTooLarge: the same request can't work later either, so it isn't a 503."""
    assert isinstance(error, EventTooLarge)
    detail = f"{error}; fewer recipients make it smaller, and the other events of the request were accepted"
    return problem_response(413, "event_too_large", detail)


async def on_http_exception(_: Request, error: Exception) -> ProblemResponse:
    """Starlette's own: no such path, no such method."""
    assert isinstance(error, HTTPException)
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "refused")
    return problem_response(error.status_code, code, str(error.detail), headers=error.headers)


async def on_disconnect(_: Request, error: Exception) -> ProblemResponse:
    """The client left before its body was whole; nobody reads this answer."""
    return problem_response(400, "disconnected", "the request ended before its body did")


async def on_bug(_: Request, error: Exception) -> ProblemResponse:
    """Anything else is a bug: Starlette logs the traceback, the world learns nothing of it."""
    return problem_response(500, "internal", "an error of the server, it has been logged")


HANDLERS = {
    HttpProblem: on_problem,
    InvalidInput: on_invalid,
    Unavailable: on_unavailable,
    StatementFailed: on_bug,
    AllowanceSpent: on_allowance,
    EventTooLarge: on_too_large,
    HTTPException: on_http_exception,
    ClientDisconnect: on_disconnect,
    Exception: on_bug,
}
Told = Callable[[Request, Exception], Awaitable[ProblemResponse]]
ErrorHandler = Callable[[Request, Exception], Awaitable[Response]]


def counted(refusals: Counter[str]) -> Mapping[type[Exception], ErrorHandler]:
    """The handlers, with each problem counted by its code, and told as the call's protocol tells it.

    Deliberate: a client that has left isn't counted, nor a path that isn't there, which scanners ask for.
    """

    def handling(handler: Told, *, counts: bool) -> ErrorHandler:
        async def on_error(request: Request, error: Exception) -> Response:
            response = await handler(request, error)
            if counts:
                refusals[response.code] += 1
            retold: Retold | None = request.scope.get(_RETOLD)
            return response if retold is None else retold(response)

        return on_error

    return {
        kind: handling(handler, counts=kind not in (ClientDisconnect, HTTPException))
        for kind, handler in HANDLERS.items()
    }


_TYPE = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_MOST_TYPES = 1000  # as many as the catalogue holds
_FLAGS = {
    "0": False,
    "false": False,
    "no": False,
    "off": False,
    "1": True,
    "true": True,
    "yes": True,
    "on": True,
}
# Clients and polyfills differ in case, "-" and "_".
_NO_JOINTS = str.maketrans("", "", "-_")
_LAST_EVENT_ID = frozenset({"lasteventid", "evslasteventid"})


def parameter_problem(name: str, value: str, what: str) -> HttpProblem:
    """The problem of a query parameter that can't be used: 400, with its name and value."""
    return HttpProblem(400, "parameter_invalid", f"{name}={value[:80]!r} {what}")


@lru_cache(maxsize=256)
def _is_last_event_id(name: str) -> bool:
    """Whether a parameter carries a position, however a client spells its name."""
    return name.translate(_NO_JOINTS).lower() in _LAST_EVENT_ID


_PARSED = "pushsse.parameters"


def parameters(request: HTTPConnection) -> Sequence[tuple[str, str]]:
    """A query's names and values in their order, as Starlette's `query_params.multi_items()` has them."""
    scope = request.scope
    # A stream's are looked at twice: for who asks, and for what.
    parsed: Sequence[tuple[str, str]] | None = scope.get(_PARSED)
    if parsed is None:
        query: bytes = scope["query_string"]
        if b"%" in query or b"+" in query:
            parsed = request.query_params.multi_items()
        else:
            # With nothing to unquote this is all that `parse_qsl` does, which takes 6 us for `user=ann`.
            parsed = found = []
            for field in query.decode("latin-1").split("&"):
                if field:
                    name, _, value = field.partition("=")
                    found.append((name, value))
        scope[_PARSED] = parsed
    return parsed


class Query:
    """The query parameters of a request; each method raises HttpProblem 400 for a value that it can't use.

    Of a parameter that is given twice the last value counts; of `types` all do. Deliberate: a blank value
    counts as not given, white space around a value is ignored, and spellings that can only mean one thing are
    accepted. A 400 ends a browser's EventSource for good: it is for what can never work.
    """

    __slots__ = ("_given", "_request")

    def __init__(self, request: Request) -> None:
        self._request = request
        # In plain loops: each stream that opens passes here, and a comprehension is a call.
        self._given: dict[str, str] = {}
        if not request.scope["query_string"]:
            return
        given = parameters(request)
        for name, value in given:
            if text := value.strip():
                self._given[name] = text
        if "types" in self._given:
            self._given["types"] = ",".join(value for name, value in given if name == "types")

    def get(self, name: str) -> str | None:
        """A parameter's text; None if it isn't given."""
        return self._given.get(name)

    def positions(self) -> list[str]:
        """The positions that the client gives, the one that counts last: by query, then by header.

        EventSource sends the header by itself, and an old position in its URL for ever, so the header wins.
        Polyfills that can't send a header append the position to the page's URL, so the later of several
        wins. A proxy may have joined headers that were given twice (RFC 9110, 5.3).
        """
        named = []
        for name, value in self._given.items():
            if _is_last_event_id(name):
                named.append(value)
        for name, _ in self._request.scope["headers"]:
            if name == b"last-event-id":
                break
        else:
            return named
        headers = ",".join(self._request.headers.getlist("last-event-id"))
        return named + [value for value in map(str.strip, headers.split(",")) if value]

    def flag(self, name: str, *, default: bool) -> bool:
        """0 or 1, also as words."""
        value = self._given.get(name)
        if value is None:
            return default
        found = _FLAGS.get(value.lower())
        if found is None:
            raise parameter_problem(name, value, "is neither 0 nor 1")
        return found

    def number(self, name: str, *, default: int, least: int = 1, most: int) -> int:
        """A whole number from `least` to `most`."""
        value = self._given.get(name)
        if value is None:
            return default
        if not (value.isascii() and value.isdigit()) or len(value) > 9 or not least <= int(value) <= most:
            raise parameter_problem(name, value, f"isn't a whole number from {least} to {most}")
        return int(value)

    def age_s(self, name: str) -> float | None:
        """An age such as 30m, in seconds."""
        value = self._given.get(name)
        if value is None:
            return None
        try:
            return min(seconds(value.lower()), 366 * 86_400.0)
        except ValueError:
            raise parameter_problem(name, value, "isn't an age such as 30s, 30m, 1.5h or 7d") from None

    def types(self) -> frozenset[str] | None:
        """The names of event types in `types`, comma-separated; None for all."""
        given = self._given.get("types")
        if given is None:
            return None
        names = [name for each in given.split(",") if (name := each.strip())]
        if not names:
            return None
        if len(names) > _MOST_TYPES or not all(map(_TYPE.fullmatch, names)):
            what = f"isn't a list of at most {_MOST_TYPES} event types such as alarm,order.paid"
            raise parameter_problem("types", given, what)
        return frozenset(names)


# Limits


@dataclass(frozen=True, slots=True)
class CallLimit:
    """At most `quota` calls of a kind a minute by one person, at all nodes together; 0: no limit.

    The endpoints of questions, switches, acks and tickets call `count`. The header fields are those of
    draft-ietf-httpapi-ratelimit-headers-10: structured fields (RFC 9651), in which `q` is the quota, `w` the
    window in seconds, `r` what remains, and `t` the seconds until the quota is whole again. `limited` counts
    the calls above it.
    """

    name: str
    quota: int
    what: str
    uses: Backplane
    limited: Counter[str]

    async def count(self, user: str) -> Mapping[str, str]:
        """Counts a call, and returns the header fields of its response. Raises HttpProblem 429.

        Deliberate: a call that is refused counts, too, but makes the wait no longer. The window ends a minute
        after it began.
        """
        if not self.quota:
            return {}
        seen, left_ms = await self.uses.use(f"{self.name}:{user}", window_ms=LIMIT_WINDOW_S * 1000)
        # Rounded up: whoever comes after so many seconds finds a new window.
        left_s = -(-left_ms // 1000)
        fields = {
            "ratelimit-policy": f'"{self.name}";q={self.quota};w={LIMIT_WINDOW_S}',
            "ratelimit": f'"{self.name}";r={max(0, self.quota - seen)};t={left_s}',
        }
        if seen <= self.quota:
            return fields
        self.limited[self.name] += 1
        detail = f"you may {self.what} {self.quota} times a minute, try again in {left_s} s"
        raise HttpProblem(429, "rate_limited", detail, {**fields, "retry-after": str(left_s)})
