"""`GET /`: the plain H5 page that shows the stream, the switches and a question box. Wired by `app`."""

from dataclasses import dataclass
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

HEADERS = {
    "cache-control": "no-cache",
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'self'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}
_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
}


@dataclass(frozen=True, slots=True)
class PageEndpoint:
    """The page and its two files, read once."""

    contents: dict[str, bytes]

    async def get(self, request: Request) -> Response:
        """One of them."""
        # The last part alone: under a sub-path a server may leave the rest of it there.
        path = "/" + request.url.path.rpartition("/")[2]
        return Response(self.contents[path], headers=HEADERS, media_type=_FILES[path][1])


def load() -> PageEndpoint:
    """Reads the page's files, which are part of the package."""
    folder = Path(__file__).parent
    return PageEndpoint({path: (folder / name).read_bytes() for path, (name, _) in _FILES.items()})


PATHS = tuple(_FILES)
