"""The files that browsers load: the page of `GET /`, the client with its types, and the page of `/docs`.

The page is for people of this service alone: its own origin, and in development this machine. The client is a
public script, which a page of any site may import; what a page may call with it is decided by each call.
Deliberate: the client that is served is minified and in the source tree, so that an installation needs no
Node.js; `make client` makes it anew from `client/pushsse.js`, which is what people read.
"""

import asyncio
import gzip
import html
import re
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from pushsse.api import HttpProblem
from pushsse.api.identity import refuse_strangers
from pushsse.stream.limits import ANSWER_HEADERS

_HTML, _SCRIPT, _STYLE = (f"text/{kind}; charset=utf-8" for kind in ("html", "javascript", "css"))
# Paths, each with the name of its file and its type.
PAGE = {
    "/": ("index.html", _HTML),
    "/page/page.css": ("page.css", _STYLE),
    **{
        f"/page/{name}.js": (f"{name}.js", _SCRIPT)
        for name in (
            "card",
            "desk",
            "dom",
            "exchange",
            "feed",
            "main",
            "overview",
            "questions",
            "quiet",
            "reading",
            "session",
            "state",
            "switches",
            "views",
            "words",
        )
    },
}
# What is there where identity is that of development, and nowhere else.
DEVELOPMENT_PAGE = {f"/page/{name}.js": (f"{name}.js", _SCRIPT) for name in ("demo", "development", "plug")}
DOCS = {
    "/docs": ("index.html", "text/html; charset=utf-8"),
    "/docs.js": ("docs.js", "text/javascript; charset=utf-8"),
    "/docs.css": ("docs.css", "text/css; charset=utf-8"),
}
CLIENT = {
    "/pushsse.js": ("pushsse.min.js", "text/javascript; charset=utf-8"),
    "/pushsse.d.ts": ("pushsse.d.ts", "application/typescript; charset=utf-8"),
}
CLIENT_FOLDER = Path(__file__).parents[1] / "client"
_PAGE_HEADERS = {
    "cache-control": "no-cache",
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    # What the page doesn't need, nothing in it gets.
    "permissions-policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}
_CLIENT_HEADERS = {
    # Its address stays the same from release to release: a page has the new one within ten minutes.
    "cache-control": "public, max-age=600",
    "access-control-allow-origin": "*",
    "cross-origin-resource-policy": "cross-origin",
    "x-content-type-options": "nosniff",
    # Read by Deno.
    "x-typescript-types": "./pushsse.d.ts",
    "vary": "Accept-Encoding",
}
# What is in the page where identity is that of development, and where a link may bring a token along.
_DEVELOPMENT, _LAN = (
    re.compile(rb" *<!-- %b -->.*?<!-- /%b -->\n" % (name, name), re.DOTALL)
    for name in (b"development", b"lan")
)
_LOGIN = b'<meta name="login" content="">'


def _name(request: Request) -> str:
    """The last part of a path alone: behind a sub-path a server may leave the rest of it in the path."""
    return "/" + request.url.path.rpartition("/")[2]


class PageEndpoint:
    """The page, which shows the stream, the switches and a conversation, and its files.

    In development, and only there, it can publish, too. `login_url` is where it sends who isn't signed in.
    With `lan` it takes a token from its link: anywhere else a link could sign people in as somebody else.
    """

    def __init__(self, *, development: bool, login_url: str = "", lan: bool = False) -> None:
        folder = Path(__file__).with_name("page")
        self._development = development
        files = PAGE | DEVELOPMENT_PAGE if development else PAGE
        self._files = {
            "/" + path.rpartition("/")[2]: ((folder / name).read_bytes(), kind)
            for path, (name, kind) in files.items()
        }
        page, kind = self._files["/"]
        if not development:
            page = _DEVELOPMENT.sub(b"", page)
        if not lan:
            page = _LAN.sub(b"", page)
        login = _LOGIN.replace(b'""', f'"{html.escape(login_url)}"'.encode())
        self._files["/"] = page.replace(_LOGIN, login), kind

    async def get(self, request: Request) -> Response:
        """One of the files. Raises HttpProblem 403 in development for what comes from elsewhere."""
        if self._development:
            refuse_strangers(request)
        found = self._files.get(_name(request))
        if found is None:
            raise HttpProblem(404, "not_found", "there is no such path")
        content, kind = found
        return Response(content, headers=_PAGE_HEADERS, media_type=kind)


class DocsEndpoint:
    """The interface: `/openapi.json`, and the page that draws it for people.

    `document` makes the first when somebody wants it, in a thread: it takes some 30 ms.
    """

    def __init__(self, document: Callable[[], bytes]) -> None:
        folder = Path(__file__).with_name("docs")
        self._make_document = document
        self._document = b""
        self._contents = {path: (folder / name).read_bytes() for path, (name, _) in DOCS.items()}

    async def get(self, request: Request) -> Response:
        """One of the page's files."""
        path = _name(request)
        return Response(self._contents[path], headers=_PAGE_HEADERS, media_type=DOCS[path][1])

    async def document(self, _: Request) -> Response:
        """The interface, for tools that make clients."""
        if not self._document:
            self._document = await asyncio.to_thread(self._make_document)
        return Response(self._document, headers=ANSWER_HEADERS, media_type="application/json")


@dataclass(frozen=True, slots=True)
class _Content:
    """One encoding of a file, with its entity tag (RFC 9110, 8.8.3)."""

    body: bytes
    headers: dict[str, str]


class ClientEndpoint:
    """The browser client and its types, plain and compressed."""

    def __init__(self) -> None:
        files = {path: (CLIENT_FOLDER / name).read_bytes() for path, (name, _) in CLIENT.items()}
        self._plain = {path: _content(body, "") for path, body in files.items()}
        self._gzip = {path: _content(gzip.compress(body, mtime=0), "gzip") for path, body in files.items()}

    async def get(self, request: Request) -> Response:
        """One of the files; a 304 without it for a browser that has it."""
        path = _name(request)
        content = (self._gzip if _takes_gzip(request) else self._plain)[path]
        if content.headers["etag"] in _tags(request):
            return Response(status_code=304, headers=content.headers)
        return Response(content.body, headers=content.headers, media_type=CLIENT[path][1])


def _content(body: bytes, coding: str) -> _Content:
    headers = {**_CLIENT_HEADERS, "etag": f'"{sha256(body).hexdigest()[:20]}"'}
    return _Content(body, {**headers, "content-encoding": coding} if coding else headers)


def _takes_gzip(request: Request) -> bool:
    """Whether the client takes gzip (RFC 9110, 12.5.3); a weight of zero refuses it."""
    given = [each.partition(";") for each in request.headers.get("accept-encoding", "").lower().split(",")]
    weights = {name.strip(): more.replace(" ", "") for name, _, more in given}
    return "gzip" in weights and not re.fullmatch(r"q=0(\.0*)?", weights["gzip"])


def _tags(request: Request) -> list[str]:
    """The entity tags that the client has; a proxy that compresses makes them weak."""
    return [each.strip().removeprefix("W/") for each in request.headers.get("if-none-match", "").split(",")]
