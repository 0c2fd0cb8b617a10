"""deploy/proxies: HAProxy and Caddy as their files say, in front of a node."""

import asyncio
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from deploy.parts import PartMissing
from deploy.parts.packages import program
from deploy.parts.ports import free_port
from tests.client.conftest import SECRET, token
from tests.parts import missing
from tests.serving import LIMIT_S, Running, Stream, serving
from tests.waiting import eventually

pytestmark = [pytest.mark.anyio, pytest.mark.real, pytest.mark.long]
PROXIES = Path(__file__).parents[2] / "deploy" / "proxies"
# In the place of the 35 s of both files; a heartbeat of the node is less than half of it.
IDLE_S, HEARTBEAT_S = 2, 0.8
Command = Callable[[Path, int, Running], list[str]]


def changed(name: str, folder: Path, **values: str) -> str:
    """A file of deploy/proxies with other values. Each has to be there."""
    text = (PROXIES / name).read_text()
    for old, new in {"35s": f"{IDLE_S}s", **values}.items():
        assert old in text, old
        text = text.replace(old, new)
    made = folder / name
    made.write_text(text)
    return str(made)


def haproxy(folder: Path, port: int, node: Running) -> list[str]:
    tls = "bind :443 ssl crt /etc/haproxy/push.pem alpn h2,http/1.1"
    here = {tls: f"bind 127.0.0.1:{port}", "maxconn 200000": "maxconn 100"}
    nodes = {"10.0.0.1:8000": f"127.0.0.1:{node.port}", "    server node2 10.0.0.2:8000\n": ""}
    file = changed("haproxy.cfg", folder, **here, **nodes, **{"port 9000": f"port {node.port}"})
    return [program("haproxy", "haproxy"), "-W", "-f", file]


def caddy(folder: Path, port: int, node: Running, *, admin: str = "off", **more: str) -> list[str]:
    nodes = {"10.0.0.1:8000 10.0.0.2:8000": f"127.0.0.1:{node.port}", "9000": str(node.port)}
    here = {"push.example.com": f"{{\n\tadmin {admin}\n}}\nhttp://127.0.0.1:{port}"}
    file = changed("Caddyfile", folder, **here, **nodes, **more)
    return [program("caddy", "caddy"), "run", "--adapter", "caddyfile", "--config", file]


@asynccontextmanager
async def running(folder: Path, command: list[str], url: str) -> AsyncIterator[httpx.AsyncClient]:
    """The proxy, once it answers; and a client of it."""
    process = _started(folder, command)
    try:
        async with httpx.AsyncClient(base_url=url, timeout=LIMIT_S, trust_env=False) as client:

            async def is_there() -> bool:
                assert process.poll() is None, (folder / "log").read_text()
                try:
                    return (await client.get("/livez")).status_code == 200
                except httpx.TransportError:
                    return False

            await eventually(is_there, what="an answer through the proxy")
            yield client
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        await asyncio.to_thread(process.wait)


@pytest.mark.parametrize("proxy", [haproxy, caddy])
async def test_streams_pass_and_calls_of_the_inside_do_not(tmp_path: Path, proxy: Command) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    bearer = {"Authorization": f"Bearer {token('ann', scope='pushsse:stream pushsse:publish')}"}
    async with serving(tmp_path, jwt_secret=SECRET, heartbeat_s=HEARTBEAT_S) as node:
        try:
            command = proxy(tmp_path, port, node)
        except PartMissing as error:
            missing(error)
        async with running(tmp_path, command, url) as client:
            async with Stream(url, "/v1/stream", bearer) as stream:
                await stream.ready()
                # Quiet for longer than the proxy's limit, but for pings.
                async with asyncio.timeout(LIMIT_S):
                    began = asyncio.get_running_loop().time()
                    while asyncio.get_running_loop().time() < began + 2 * IDLE_S:
                        await stream.until("ping")
                event = {"type": "news", "message": "through", "to": "all"}
                assert (await client.post("/v1/events", json=event, headers=bearer)).status_code == 202
                assert await stream.messages(1) == ["through"]
                assert len(node.node.hub.subscribers) == 1
            for path in ("/metrics", "/readyz", "/docs"):
                assert (await client.get(path)).status_code == 404, path
            # A browser that meets no node comes back.
            node.stop()
            await eventually(lambda: _is_away(node.port), what="the node's end")

            async def is_told_to_come_back() -> bool:
                reply = await client.get("/v1/stream", headers=bearer)
                return reply.status_code == 200 and reply.text == "retry: 5000\n\n"

            await eventually(is_told_to_come_back)
            assert (await client.get("/v1/me", headers=bearer)).status_code in (502, 503)


async def test_a_reload_of_caddy_keeps_streams_open(tmp_path: Path) -> None:
    port, admin = free_port(), f"127.0.0.1:{free_port()}"
    url = f"http://127.0.0.1:{port}"
    bearer = {"Authorization": f"Bearer {token('ann', scope='pushsse:stream pushsse:publish')}"}
    async with serving(tmp_path, jwt_secret=SECRET, heartbeat_s=HEARTBEAT_S) as node:
        try:
            command = caddy(tmp_path, port, node, admin=admin)
        except PartMissing as error:
            missing(error)
        async with running(tmp_path, command, url) as client, Stream(url, "/v1/stream", bearer) as stream:
            await stream.ready()
            # A file that says the same isn't loaded.
            caddy(tmp_path, port, node, admin=admin, **{"dial_timeout 2s": "dial_timeout 3s"})
            reload = [command[0], "reload", "--address", admin, *command[2:]]
            await asyncio.to_thread(subprocess.run, reload, check=True, capture_output=True)
            event = {"type": "news", "message": "after", "to": "all"}
            assert (await client.post("/v1/events", json=event, headers=bearer)).status_code == 202
            assert await stream.messages(1) == ["after"]


async def test_caddy_compresses_files_and_no_stream(tmp_path: Path) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    # As docs/proxies.md has it. With `encode` alone an answer that streams is compressed, and held back.
    inside = "\trespond @inside 404\n"
    encode = {inside: inside + "\t@files not path */v1/*\n\tencode @files gzip\n"}
    async with serving(tmp_path, jwt_secret=SECRET, heartbeat_s=HEARTBEAT_S) as node:
        try:
            command = caddy(tmp_path, port, node, **encode)
        except PartMissing as error:
            missing(error)
        async with running(tmp_path, command, url) as client:
            file = await client.get("/pushsse.js", headers={"Accept-Encoding": "gzip"})
            assert file.headers["content-encoding"] == "gzip"
            headers = {
                "Authorization": f"Bearer {token('ann', scope='pushsse:ask')}",
                "Accept": "text/event-stream",
                "Accept-Encoding": "gzip",
            }
            # Longer than what Caddy never compresses.
            question = {"text": "How? " * 300}
            answer = await client.post("/v1/questions", json=question, headers=headers)
            assert answer.headers["content-type"].startswith("text/event-stream")
            assert "content-encoding" not in answer.headers


def _started(folder: Path, command: list[str]) -> subprocess.Popen[bytes]:
    """In a session of its own: HAProxy has a process beside its first."""
    environment = {**os.environ, "HOME": str(folder), "XDG_DATA_HOME": str(folder)}
    with (folder / "log").open("wb") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)


def _is_away(port: int) -> bool:
    with httpx.Client(trust_env=False) as client:
        try:
            client.get(f"http://127.0.0.1:{port}/livez")
        except httpx.TransportError:
            return True
    return False
