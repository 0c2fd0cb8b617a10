"""Text from elsewhere on a terminal: a real pseudo-terminal, and servers that mean no good."""

import json
import os
import pty
import re
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from rich.cells import cell_len

from pushsse.logs import visible
from tests.cli.running import LIMIT_S, Served, environment, pushsse, served
from tests.starting import start

pytestmark = pytest.mark.real

# A title, the clipboard (OSC 52), the screen cleared, reverse video, C1's CSI, an override of direction, a
# forged line.
EVIL = (
    "\x1b]0;title\x07 \x1b]52;c;cm0gLXJm\x07 \x1b[2J \x1b[7m \x9b31m"
    " \u202egnp.exe\u202c\r\nforged  line \u2028end"
)
# What must never reach a terminal in what others say. CR LF at a line's end is the terminal's own.
COMMANDS = re.compile(
    "[\x00-\x09\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]|\r(?!\n)"
)
# The commands' own colours, and what erases the line that says what they are at.
OWN = re.compile("\x1b\\[(0|1|2|3[1236])m|\x1b\\[\\?25[lh]|\r?(\x1b\\[1A)?\x1b\\[2K|[\u2800-\u28ff]")
FAQ = {
    "nothing": {"en": EVIL},
    "entry": [
        {
            "en": {
                "ask": ["What is evil?"],
                "answer": f"first\n{EVIL}",
                "links": [{"title": EVIL, "url": "/x"}],
            }
        }
    ],
}


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("node")
    (folder / "faq.json").write_text(json.dumps(FAQ))
    with served(folder, PUSHSSE_ANSWERER=f"faq:{folder}/faq.json") as running:
        yield running


def on_terminal(folder: Path, *arguments: str, until: str = "", **settings: str) -> str:
    """What a command writes to a terminal, to its end or until a word, without the command's own colours."""
    return OWN.sub("", exactly(folder, *arguments, until=until, **settings))


def exactly(folder: Path, *arguments: str, until: str = "", **settings: str) -> str:
    """The same with them."""
    ours, theirs = pty.openpty()
    started = start(
        *arguments, cwd=folder, env=environment(settings), stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    try:
        return _written(ours, until)
    finally:
        started.kill()
        started.wait()
        os.close(ours)


def _written(terminal: int, until: str) -> str:
    written = b""
    end = time.monotonic() + LIMIT_S
    while not until or until not in written.decode(errors="replace"):
        assert select.select([terminal], [], [], max(0.0, end - time.monotonic()))[0], written
        try:
            piece = os.read(terminal, 65536)
        except OSError:  # EIO: the other side is closed.
            break
        if not piece:
            break
        written += piece
    return written.decode()


@contextmanager
def answering(status: int, body: object) -> Iterator[str]:
    """A service that gives one answer to everything; bytes are an event stream."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            if content is body:
                self.send_header("content-type", "text/event-stream")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.do_GET()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="module")
def published(node: Served) -> Served:
    event = {"type": "news", "to": "all", "message": EVIL, "desc": EVIL}
    lines = node.folder / "evil.ndjson"
    lines.write_text(f"{json.dumps(event)}\n" + '{"type":"n","to":"all","message":1}\n')
    assert node.run("publish", "--file", str(lines)).returncode == 0
    return node


def test_a_message_cannot_command_the_terminal(published: Served) -> None:
    written = on_terminal(
        published.folder, "listen", "--since", "1h", "--count", "2", "--user", "ann", "--url", published.url
    )
    assert not COMMANDS.search(written), ascii(written)
    assert r"\x1b]52;c;cm0gLXJm\x07" in written
    assert r"\u202egnp.exe" in written
    # One event, one line.
    assert len(written.splitlines()) == 2
    assert r"\r\nforged" in written


def test_json_on_a_terminal_has_the_same_value(published: Served) -> None:
    arguments = ("listen", "--json", "--since", "1h", "--count", "2", "--user", "ann", "--url", published.url)
    written = on_terminal(published.folder, *arguments)
    assert not COMMANDS.search(written), ascii(written)
    heard = [json.loads(line) for line in written.splitlines()]
    assert [each["data"]["message"] for each in heard if each["event"] == "news"] == [EVIL]


def test_a_pipe_gets_it_exact(published: Served) -> None:
    arguments = ("listen", "--since", "1h", "--count", "2", "--user", "ann")
    text = published.run(*arguments).stdout
    assert EVIL in text
    lines = published.run(*arguments, "--json").stdout.split("\n")[:-1]
    assert json.loads(lines[-2])["data"]["message"] == EVIL


def test_numbers_keep_their_digits(node: Served) -> None:
    message = '{"n":[0.1000,12345678901234567890.5,1e3,-0],"long":' + "9" * 5000 + "}"
    event = f'event: n\ndata: {{"id":"x","type":"n",\ndata: "message":{message}}}\nid: p-1\n\n'
    with answering(200, event.encode()) as url:
        as_json = node.run("listen", "--json", "--count", "1", "--url", url).stdout
        text = node.run("listen", "--count", "1", "--url", url).stdout
    assert as_json == f'{{"event":"n","data":{{"id":"x","type":"n", "message":{message}}},"id":"p-1"}}\n'
    assert message in text


def test_an_answer_keeps_its_lines_and_nothing_else(node: Served) -> None:
    written = on_terminal(node.folder, "ask", "What is evil?", "--user", "ann", "--url", node.url)
    assert not COMMANDS.search(written), ascii(written)
    assert written.startswith("first\r\n")
    assert r"\x1b[2J" in written


@pytest.mark.parametrize(
    ("arguments", "status", "body"),
    [
        (["prefs"], 200, {"types": [{"name": EVIL, "title": EVIL, "mandatory": False, "enabled": True}]}),
        (["prefs", "--json"], 200, {"types": [{"name": EVIL, "title": EVIL}]}),
        (["prefs"], 403, {"code": EVIL, "detail": EVIL}),
        (["publish", "a", "b", "--to", "all"], 202, {"ids": [EVIL], "rejected": [], "accepted": 1}),
        (["publish", "a", "b", "--to", "all"], 422, {"code": "invalid", "detail": EVIL}),
        (["ask", "why"], 500, {"code": "internal", "detail": EVIL}),
        (["listen"], 403, {"code": EVIL, "detail": EVIL}),
    ],
)
def test_whatever_a_server_says(tmp_path: Path, arguments: list[str], status: int, body: object) -> None:
    with answering(status, body) as url:
        written = on_terminal(tmp_path, *arguments, "--url", url)
    assert "title" in written
    assert not COMMANDS.search(written), ascii(written)


def test_doctor_shows_what_a_redis_says(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(65536)
                    connection.sendall(f"-ERR {EVIL.splitlines()[0]}\r\n".encode() * 20)

        thread = threading.Thread(target=serve)
        thread.start()
        url = f"redis://127.0.0.1:{server.getsockname()[1]}"
        try:
            written = on_terminal(tmp_path, "doctor", PUSHSSE_REDIS_URL=url)
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()
    assert r"\x1b]52" in written
    assert not COMMANDS.search(written), ascii(written)


def test_an_entry_of_the_log_is_one_line_whatever_is_in_it() -> None:
    script = (
        "import logging; from pushsse import logs; logs.configure('info'); log = logging.getLogger('x')\n"
        f"log.warning('%s', {EVIL!r})\n"
        f"try: raise OSError({EVIL!r})\n"
        "except OSError: log.exception('failed')\n"
    )
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True).stderr.decode()
    assert not COMMANDS.search(said), ascii(said)
    warning, failed, *trace = said.splitlines()
    assert warning.endswith(r"\r\nforged  line \u2028end")
    assert failed.endswith("x: failed")
    assert trace[0].startswith("Traceback")
    assert all(line.startswith("  ") for line in trace[1:])


def test_harmless_text_is_shown_as_it_is() -> None:
    text = "张三 é 👩‍👩‍👧 עברית \\x1b 100 %"
    assert visible(text) == text
    assert visible("a\tb\r\nc", lines=True) == "a\tb\nc"
    assert visible("\ud800") == "\\ud800"


def test_a_terminal_has_colours_and_no_color_takes_them_away(published: Served) -> None:
    command = ("listen", "--since", "1h", "--count", "1", "--user", "ann", "--url", published.url)
    assert "\x1b[36mnews\x1b[0m" in exactly(published.folder, *command)
    assert "\x1b[3" not in exactly(published.folder, *command, NO_COLOR="1")
    failed = ("listen", "--url", "http://127.0.0.1:1")
    assert "\x1b[31mpushsse: \x1b[0m" in exactly(published.folder, *failed)
    assert exactly(published.folder, *failed, NO_COLOR="1").startswith("pushsse: http://127.0.0.1:1: ")
    # What isn't a terminal has none, whatever is set.
    assert "\x1b[36m" not in published.run(*command[:-2], FORCE_COLOR="1", CLICOLOR_FORCE="1").stdout


def test_doctor_says_what_weighs_most_first(tmp_path: Path) -> None:
    settings = {"PUSHSSE_REDIS_URL": "redis://127.0.0.1:1", "PUSHSSE_REDIS_URI": "redis://127.0.0.1"}
    shown = on_terminal(tmp_path, "doctor", **settings).splitlines()
    begins = [line.split()[:2] for line in shown if re.match("fault|warning|ok", line)]
    verdicts = [verdict for verdict, _ in begins]
    assert begins[0] == ["fault", "redis"]
    assert verdicts == sorted(verdicts, key=["fault", "warning", "ok"].index)
    assert shown[-1] == "1 fault, 2 warnings"
    ended = pushsse(tmp_path, "doctor", "--json", **settings)
    found = [json.loads(line) for line in ended.stdout.splitlines()]
    assert (ended.returncode, found[0]["verdict"], found[0]["part"]) == (1, "fault", "redis")
    assert "PUSHSSE_REDIS_URL" in found[0]["text"]
    assert [each["verdict"] for each in found] == verdicts


def test_staff_see_what_waits_as_a_table(tmp_path: Path) -> None:
    held = {"waiting": 2, "reason": "please"}
    body = {
        "conversations": [{"id": "order-1", "user": "ann", "title": "[red]Refund?", "handed_over": held}],
        "more": False,
    }
    with answering(200, body) as url:
        shown = on_terminal(tmp_path, "desk", "--url", url).splitlines()
        piped = pushsse(tmp_path, "desk", "--url", url).stdout
    assert shown[0].split() == ["CONVERSATION", "WAITING", "USER", "TITLE", "REASON"]
    assert shown[2].split() == ["order-1", "2", "ann", "[red]Refund?", "please"]
    assert piped == "order-1  2 waiting  ann: [red]Refund?  (please)\n"


def test_columns_stand_below_each_other_in_any_script(tmp_path: Path) -> None:
    rules = {"title": "订单", "order": 0, "mandatory": False, "default": True}
    rules |= dict.fromkeys(("urgent", "hidden", "in_file"), False)
    types = [
        {"name": "order", "category": "市场营销", **rules},
        {"name": "news", "category": "marketing", **rules},
    ]
    with answering(200, {"types": types}) as url:
        head, *rows = pushsse(tmp_path, "types", "--url", url).stdout.splitlines()
        shown = on_terminal(tmp_path, "types", "--url", url).splitlines()
    assert {cell_len(row.partition("on")[0]) for row in rows} == {head.index("BY DEFAULT")}
    assert len({cell_len(row.partition("on")[0]) for row in shown[2:]}) == 1
