"""The examples with pushsse.js in a browser: a site with tickets, a hook for React, a composable for Vue."""

import asyncio
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from deploy.parts.java import parts_folder
from deploy.parts.ports import free_port
from tests.client.conftest import SECRET, token
from tests.deployed.chromium import chromium
from tests.deployed.test_browser import files
from tests.parts import missing
from tests.serving import Running, serving

pytestmark = [pytest.mark.real, pytest.mark.anyio]
ROOT = Path(__file__).parents[2]
_LIMIT_S = 180


@contextmanager
def site(port: int, **settings: str) -> Iterator[None]:
    """The example's site as its page says, until it has said where it is."""
    command = [sys.executable, str(ROOT / "examples/ticket/server.py")]
    environment: Mapping[str, str] = {**os.environ, "PORT": str(port), **settings}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        try:
            assert str(port) in process.stdout.readline().decode()
            yield
        finally:
            process.terminate()


async def publish(node: Running, message: str, user: str) -> None:
    headers = {"Authorization": f"Bearer {token('sender', scope='pushsse:publish')}"}
    event = {"type": "news", "message": message, "to": {"users": [user]}}
    assert (await node.http.post("/v1/events", json=event, headers=headers)).status_code == 202


async def test_a_site_whose_service_is_down_says_so_in_one_line_and_its_page_may_ask_again() -> None:
    port = free_port()
    command = [sys.executable, str(ROOT / "examples/ticket/server.py")]
    environment = {**os.environ, "PORT": str(port), "PUSHSSE_URL": f"http://127.0.0.1:{free_port()}"}
    unset = await asyncio.create_subprocess_exec(
        *command, env={**environment, "PUSHSSE_TOKEN": ""}, stderr=subprocess.PIPE
    )
    assert (await unset.communicate())[1].decode().count("\n") == 1
    site = await asyncio.create_subprocess_exec(
        *command,
        env={**environment, "PUSHSSE_TOKEN": "any"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert site.stdout is not None
    try:
        await site.stdout.readline()
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as browser:
            assert (await browser.get("/ticket")).status_code == 401
            assert (await browser.get("/ticket", headers={"Cookie": "user=ann"})).status_code == 502
    finally:
        site.terminate()
    said = (await site.communicate())[1].decode()
    assert "Traceback" not in said
    assert [line for line in said.splitlines() if "no ticket from" in line]


@pytest.mark.long
async def test_a_site_of_another_origin_gets_its_page_tickets(tmp_path: Path) -> None:
    port = free_port()
    async with (
        serving(tmp_path, jwt_secret=SECRET, allowed_origins=(f"http://127.0.0.1:{port}",)) as node,
        chromium(tmp_path / "chromium") as browser,
    ):
        with site(port, PUSHSSE_URL=node.url, PUSHSSE_TOKEN=token("site", scope="pushsse:admin")):
            await browser.open(f"http://127.0.0.1:{port}/?user=ann")
            await browser.until("document.getElementById('state')?.textContent.startsWith('live')")
            await publish(node, "for bo", "bo")
            await publish(node, "for ann", "ann")
            await browser.until("document.getElementById('events').innerText === 'news: for ann'")


def bundled(name: str) -> Path:
    """The page of an example, installed and bundled as its README says."""
    if shutil.which("npm") is None:
        missing("npm isn't installed")
    example, client = ROOT / "examples" / name, ROOT / "pushsse/client"
    sources = [file for file in (*example.rglob("*"), *client.iterdir()) if file.is_file()]
    sources = [file for file in sources if "node_modules" not in file.parts and file.name != "main.js.map"]
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in sorted(sources))).hexdigest()[:12]
    folder = parts_folder() / f"{name}-example-{digest}"
    copy = folder / "examples" / name
    if not (copy / "page/main.js").exists():
        for file in sources:
            target = folder / file.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target)
        for command in (["npm", "install", "--no-audit", "--no-fund"], ["npm", "run", "build"]):
            done = subprocess.run(
                command, check=False, cwd=copy, capture_output=True, text=True, timeout=_LIMIT_S
            )
            if done.returncode:
                missing(f"{' '.join(command)}: {done.stderr[-500:].strip()}")
    return copy / "page"


@pytest.mark.long
@pytest.mark.parametrize("name", ["react", "vue"])
async def test_a_component_has_the_stream(tmp_path: Path, name: str) -> None:
    with files(bundled(name)) as origin:
        async with (
            serving(tmp_path, allowed_origins=(origin,)) as node,
            chromium(tmp_path / "chromium") as browser,
        ):
            await browser.open(f"{origin}/?server={node.url}/%3Fuser=ann")
            await browser.until("document.getElementById('state')?.textContent === 'live'")
            await node.publish("news", "Hello", "ann")
            await browser.until("document.getElementById('events').innerText.includes('news: \"Hello\"')")
            assert await browser.run("document.querySelectorAll('#events li').length") == 1
            assert len(node.node.hub.subscribers) == 1
