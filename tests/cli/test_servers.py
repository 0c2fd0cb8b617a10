"""`create_app` without arguments, under other ASGI servers, started as their users start them."""

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from deploy.parts.ports import answers, free_port
from tests.cli.running import LIMIT_S, process
from tests.parts import missing
from tests.waiting import until

pytestmark = pytest.mark.real
APP = "pushsse.app:create_app"
COMMANDS = {
    "uvicorn": ("uvicorn", "--factory", APP, "--no-access-log", "--port", "{port}"),
    # Without a worker process, which would hear nothing of the signal.
    "hypercorn": ("hypercorn", f"{APP}()", "--workers", "0", "--bind", "127.0.0.1:{port}"),
    "granian": ("granian", "--interface", "asgi", "--factory", APP, "--port", "{port}"),
}


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.long)])
@pytest.mark.parametrize("server", COMMANDS)
def test_an_event_reaches_a_stream_and_a_signal_ends_it(
    tmp_path: Path, server: str, number: signal.Signals
) -> None:
    if shutil.which("curl") is None:
        missing("curl isn't installed")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    program = (sys.executable, "-m", *(part.format(port=port) for part in COMMANDS[server]))
    out = tmp_path / "stream"
    with process(tmp_path, program=program) as serving:
        until(lambda: answers(port, b"GET /readyz HTTP/1.0\r\nHost: localhost\r\n\r\n"), "answer")
        with out.open("wb") as body:
            stream = subprocess.Popen(["curl", "-sN", f"{url}/v1/stream?user=ann"], stdout=body)
        until(lambda: b"event: ready" in out.read_bytes(), "ready")
        poll = f"{url}/v1/events?user=ann&wait_s=30"
        answered = subprocess.Popen(["curl", "-sN", poll], stdout=subprocess.PIPE)
        connections = f"{url}/metrics"
        until(lambda: "pushsse_connections 2.0" in httpx.get(connections, trust_env=False).text, "poll")
        event = {"type": "news", "message": "hello", "to": {"users": ["ann"]}}
        assert httpx.post(f"{url}/v1/events?user=ops", json=event).status_code == 202
        until(lambda: b'"message":"hello"' in out.read_bytes(), "event")
        assert b'"message":"hello"' in answered.communicate(timeout=LIMIT_S)[0]
        waits = subprocess.Popen(["curl", "-sN", poll], stdout=subprocess.PIPE)
        until(lambda: "pushsse_connections 2.0" in httpx.get(connections, trust_env=False).text, "poll")
        serving.send_signal(number)
        # 0: curl has the end of the body.
        assert stream.wait(LIMIT_S) == 0
        assert b'"events":[],"position":' in waits.communicate(timeout=LIMIT_S)[0]
        serving.wait(LIMIT_S)
    assert b'"code":"shutdown"' in out.read_bytes()
