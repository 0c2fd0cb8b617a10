"""A site of its own whose page listens to pushsse: its backend makes a ticket for whoever is signed in.

    export PUSHSSE_TOKEN=$(pushsse token --user site --scope admin)
    python3 server.py                    # http://127.0.0.1:8080/?user=ann

Needs nothing but Python. PUSHSSE_URL says where pushsse is (http://127.0.0.1:8000), PORT where this site is.
Who is signed in is a matter of your own sessions. Here the page's address says it, and a cookie keeps it: for
trying it out alone.
"""

import json
import os
import sys
import urllib.request
from http.client import HTTPException
from http.cookies import SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlsplit

PUSHSSE = os.environ.get("PUSHSSE_URL", "http://127.0.0.1:8000")
TOKEN = os.environ.get("PUSHSSE_TOKEN", "")
PAGE = Path(__file__).with_name("index.html").read_text().replace("http://127.0.0.1:8000", PUSHSSE)


def ticket(user: str) -> bytes:
    """What pushsse answers: `{"ticket", "expires_in_s", "position", "user"}`, for the page as it is.

    Raises OSError, HTTPException where it doesn't answer, or refuses.
    """
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    body = json.dumps({"user": user}).encode()
    request = urllib.request.Request(f"{PUSHSSE}/v1/tickets", body, headers, method="POST")
    with urllib.request.urlopen(request, timeout=5) as reply:
        found: bytes = reply.read()
        return found


class Site(BaseHTTPRequestHandler):
    """The page, and `/ticket`."""

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        if address.path == "/":
            user = parse_qs(address.query).get("user", ["ann"])[0]
            self.answer(
                PAGE.encode(),
                "text/html; charset=utf-8",
                cookie=f"user={quote(user)}; HttpOnly",
            )
        elif address.path == "/ticket":
            session = SimpleCookie(self.headers.get("Cookie", "")).get("user")
            if session is None:
                self.send_error(401)
            else:
                self.answer_ticket(unquote(session.value))
        else:
            self.send_error(404)

    def answer_ticket(self, user: str) -> None:
        try:
            body = ticket(user)
        except (OSError, HTTPException) as error:
            # The page asks again by itself.
            self.log_error("no ticket from %s: %s", PUSHSSE, error)
            self.send_error(502)
        else:
            self.answer(body, "application/json")

    def answer(self, body: bytes, kind: str, cookie: str = "") -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Cache-Control", "no-store")
        if cookie:
            self.send_header("Set-Cookie", cookie)
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    if not TOKEN:
        sys.exit("PUSHSSE_TOKEN is missing: a token with the scope pushsse:admin, from `pushsse token`")
    server = ThreadingHTTPServer(("127.0.0.1", int(os.environ.get("PORT", "8080"))), Site)
    print(f"http://127.0.0.1:{server.server_port}/?user=ann", flush=True)
    server.serve_forever()
