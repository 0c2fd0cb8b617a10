"""The site of a page: it serves the page, makes tickets and tokens for it, and hears what it tells."""

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Protocol
from urllib.parse import parse_qs, urlsplit

import httpx

from deploy.parts.ports import take_port

_PAGE = '<!doctype html><meta charset="utf-8"><title>A client</title><script type="module" src="{}"></script>'
_HERE = Path(__file__).parent
_FOLDERS = {
    "as_is": _HERE / "as_is",
    "right": _HERE / "right",
    "browser": _HERE.parents[1] / "examples/browser",
}


class Tickets(Protocol):
    """Who makes tickets."""

    def ticket(self, token: str) -> dict[str, object]:
        """What POST /v1/tickets answers. Raises httpx.HTTPError."""


class Site:
    """Serves while the context lasts; `hear` and `tokens` are by client."""

    def __init__(self, tickets: Tickets) -> None:
        self.port = take_port(self)
        self.hear: dict[str, Callable[[bytes], None]] = {}
        self.tokens: dict[str, Path] = {}
        self._tickets = tickets
        self._server: ThreadingHTTPServer | None = None

    @property
    def url(self) -> str:
        """Its origin."""
        return f"http://127.0.0.1:{self.port}"

    def page(self, script: str, client: str, stream: str) -> str:
        """The address of a page that runs a script as a client of a stream."""
        return f"{self.url}/page?script={script}&client={client}#{stream}"

    def __enter__(self) -> "Site":
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                """A page, a script, a ticket or a token."""
                at = urlsplit(self.path)
                query = {name: values[0] for name, values in parse_qs(at.query).items()}
                try:
                    kind, body = site.answer(at.path, query)
                except LookupError:
                    self.send_error(404)
                    return
                except httpx.HTTPError:
                    self.send_error(502)
                    return
                self.send_response(200)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_POST(self) -> None:
                """A line that a client tells."""
                told = self.rfile.read(int(self.headers["Content-Length"]))
                client = parse_qs(urlsplit(self.path).query)["client"][0]
                if client in site.hear:
                    site.hear[client](told)
                self.send_response(204)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()

    def answer(self, path: str, query: dict[str, str]) -> tuple[str, bytes]:
        """Type and body. Raises LookupError for what isn't there."""
        if path == "/page":
            return "text/html", _PAGE.format(query["script"]).encode()
        if path in ("/ticket", "/token"):
            token = self.tokens[query["client"]].read_text()
            if path == "/token":
                return "text/plain", token.encode()
            return "application/json", json.dumps(self._tickets.ticket(token)).encode()
        folder, _, name = path.strip("/").partition("/")
        file = _FOLDERS[folder] / name
        if "/" in name or not file.is_file():
            raise LookupError(path)
        return "text/javascript", file.read_bytes()
