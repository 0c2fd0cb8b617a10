"""Lines of the log: for people, and as JSON, each with what it knows of the request that it belongs to."""

import asyncio
import io
import json
import logging
import socket
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any, Literal

import httpx
import pytest
import uvicorn
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pushsse import logs
from pushsse.api import HANDLERS
from pushsse.api.direct import Application, Direct
from tests.serving import started

Configure = Callable[[Literal["console", "json"]], io.StringIO]


@pytest.fixture
def configure() -> Iterator[Configure]:
    """Logging as the command line sets it up, into a buffer."""
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]

    def begin(form: Literal["console", "json"]) -> io.StringIO:
        logs.configure("warning", form)
        written = io.StringIO()
        [handler] = root.handlers
        assert isinstance(handler, logging.StreamHandler)
        handler.setStream(written)
        return written

    yield begin
    root.handlers[:] = handlers
    root.setLevel(level)


def entries(written: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in written.getvalue().splitlines()]


def test_json_is_an_object_a_line_with_time_level_logger_and_ids(configure: Configure) -> None:
    written = configure("json")
    before = datetime.now(UTC)
    ids = {"stream": "s1", "event": "t-0-7", "question": "q", "user": "ann", "unheard-of": "x"}
    logging.getLogger("pushsse.hub").warning("%d of %s", 3, "them", extra=ids)
    [entry] = entries(written)
    assert abs((datetime.fromisoformat(entry.pop("time")) - before).total_seconds()) < 5
    del ids["unheard-of"]
    assert entry == {"level": "warning", "logger": "pushsse.hub", "message": "3 of them", **ids}


@pytest.mark.parametrize("name", ["uvicorn.error", "aiokafka", "tortoise", "asyncio"])
def test_the_lines_of_libraries_have_the_same_form(configure: Configure, name: str) -> None:
    written = configure("json")
    logging.getLogger(name).critical("one\ntwo")
    [entry] = entries(written)
    assert (entry["logger"], entry["message"]) == (name, r"one\ntwo")


@pytest.mark.parametrize("evil", ['"}\n{"level": "error"', "\u202e\x1b]52;", "\ud800", "\x00", "\u2028"])
def test_text_from_elsewhere_is_escaped_and_cut_in_each_member(configure: Configure, evil: str) -> None:
    written = configure("json")
    try:
        raise ValueError(f"{evil}{'e' * 100_000}end")
    except ValueError:
        logging.getLogger("x").exception("%s", evil + "m" * 100_000, extra={"user": evil + "u" * 100_000})
    [entry] = entries(written)
    assert not any(logs.CONTROL.search(str(value).replace("\n", "")) for value in entry.values())
    assert len(entry["user"]) < 240
    assert len(entry["message"]) < 2_100
    assert len(entry["exception"]) < 8_100
    assert entry["exception"].startswith("Traceback")
    assert entry["exception"].endswith("end")


def test_a_traceback_that_uvicorn_passes_as_text_is_one_member(configure: Configure) -> None:
    written = configure("json")
    logging.getLogger("uvicorn.error").error(
        'Traceback (most recent call last):\n  File "x"\nOSError: gone\n'
    )
    [entry] = entries(written)
    assert entry["message"] == "OSError: gone"
    assert entry["exception"].splitlines()[1] == '  File "x"'


async def failing(request: Request) -> Response:
    asked = logs.served()
    assert asked is not None
    asked.user = "ann"
    logging.getLogger("pushsse.x").warning("about to fail")
    raise RuntimeError("a bug")


def ask(**headers: str) -> httpx.Response:
    return asyncio.run(_ask(headers))


async def _ask(headers: dict[str, str]) -> httpx.Response:
    direct = Direct({}, handlers=HANDLERS, origins=False)
    app = Application(direct=direct, routes=[Route("/bug", failing)], exception_handlers=HANDLERS)
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off"))

    def stop() -> None:
        server.should_exit = True

    async with started(server, listener, stop), httpx.AsyncClient(trust_env=False) as client:
        port = listener.getsockname()[1]
        return await client.get(f"http://127.0.0.1:{port}/bug", headers=headers)


@pytest.mark.parametrize("given", ["4f0c9e7a-11d2", "a" * 64])
def test_a_request_keeps_the_id_that_it_comes_with(configure: Configure, given: str) -> None:
    written = configure("json")
    reply = ask(**{"X-Request-Id": given})
    assert reply.status_code == 500
    assert reply.json()["request"] == given
    found = entries(written)
    assert {entry["message"] for entry in found} >= {"about to fail"}
    assert "RuntimeError: a bug" in found[-1]["exception"]
    assert {entry["request"] for entry in found} == {given}
    assert {entry["user"] for entry in found} == {"ann"}


@pytest.mark.parametrize("given", ["", "a" * 65, "with blank", 'x"}'])
def test_an_odd_id_is_replaced(configure: Configure, given: str) -> None:
    written = configure("json")
    headers = {"X-Request-Id": given} if given else {}
    reply = ask(**headers)
    [made] = {entry["request"] for entry in entries(written)}
    assert made == reply.json()["request"]
    assert len(made) == 16


def test_lines_for_people_name_the_request_too(configure: Configure) -> None:
    written = configure("console")
    ask(**{"X-Request-Id": "r-1"})
    first = written.getvalue().splitlines()[0]
    assert first.endswith("pushsse.x: about to fail [request r-1]")
    logging.getLogger("pushsse.x").warning("later")
    assert written.getvalue().splitlines()[-1].endswith("pushsse.x: later")
