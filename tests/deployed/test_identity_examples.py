"""examples/identity: each site runs with its framework, and its page in a browser, in all three ways."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest

from deploy.parts import PartMissing
from deploy.parts.java import java, parts_folder
from deploy.parts.ports import free_port
from tests.client.conftest import SECRET, token
from tests.deployed.chromium import chromium
from tests.parts import missing
from tests.serving import serving
from tests.waiting import eventually

pytestmark = [pytest.mark.anyio, pytest.mark.real, pytest.mark.long]
EXAMPLES = Path(__file__).parents[2] / "examples" / "identity"
_LIMIT_S = 300


def done(*command: str, folder: Path) -> None:
    """Runs what installs a framework. Raises PartMissing."""
    try:
        ran = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=_LIMIT_S, check=False
        )
    except (FileNotFoundError, subprocess.TimeoutExpired) as error:
        raise PartMissing(f"{command[0]}: {error}") from None
    if ran.returncode:
        raise PartMissing(f"{' '.join(command)}: {(ran.stdout + ran.stderr)[-500:].strip()}")


def copied(name: str) -> Path:
    """A copy of an example in the folder of parts, by what it has."""
    source = EXAMPLES / name
    files = sorted(
        file
        for file in (*source.rglob("*"), EXAMPLES / "index.html")
        if file.is_file()
        and not {"node_modules", "target", "venv", "__pycache__"} & set(file.relative_to(EXAMPLES).parts)
    )
    digest = sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]
    folder = parts_folder() / f"identity-{name}-{digest}"
    for file in files:
        target = folder / file.relative_to(EXAMPLES)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    return folder / name


def django() -> tuple[Path, list[str]]:
    folder = copied("django")
    python = folder / "venv/bin/python"
    if not (folder / "installed").exists():
        if uv := shutil.which("uv"):
            done(uv, "venv", "-q", "--allow-existing", "-p", sys.executable, "venv", folder=folder)
            pip = [uv, "pip", "install", "-q", "--python", str(python)]
        else:
            done(sys.executable, "-m", "venv", "venv", folder=folder)
            pip = [str(python), "-m", "pip", "install", "-q"]
        done(*pip, "-r", "requirements.txt", folder=folder)
        (folder / "installed").touch()
    return folder, [str(python), "site.py"]


def express() -> tuple[Path, list[str]]:
    folder = copied("express")
    if not (folder / "node_modules/express").exists():
        done("npm", "install", "--no-audit", "--no-fund", folder=folder)
    return folder, ["node", "site.js"]


def spring() -> tuple[Path, list[str]]:
    folder = copied("spring")
    jar = folder / "target/site-1.jar"
    if not jar.exists():
        done("mvn", "-q", "-B", "package", folder=folder)
    return folder, [java(), "-Xmx256m", "-jar", str(jar)]


@contextmanager
def running(folder: Path, command: list[str], log: Path, **settings: str) -> Iterator[None]:
    with (
        log.open("wb") as output,
        subprocess.Popen(
            command, cwd=folder, env={**os.environ, **settings}, stdout=output, stderr=output
        ) as process,
    ):
        try:
            yield
        finally:
            process.terminate()


async def a_login_has_a_session_of_its_own(origin: str) -> None:
    """Who gives ann's browser a session, and waits for her login, learns nothing (session fixation)."""
    options: dict[str, Any] = {"base_url": origin, "follow_redirects": True, "timeout": 10}
    async with httpx.AsyncClient(**options) as mallory, httpx.AsyncClient(**options) as ann:
        await mallory.get("/login?user=mallory")
        assert (await mallory.get("/push/session")).json()["user"] == "mallory"
        ann.cookies.update(mallory.cookies)
        await ann.get("/login?user=ann")
        assert (await ann.get("/push/session")).json()["user"] == "ann"
        # One value of each name: `update` has kept no older one beside it.
        assert len(ann.cookies.jar) == len({cookie.name for cookie in ann.cookies.jar})
        told = await mallory.get("/push/session")
        assert told.status_code == 401, told.text


@pytest.mark.parametrize("site", [django, express, spring])
async def test_a_site_says_who_is_asking(tmp_path: Path, site: Callable[[], tuple[Path, list[str]]]) -> None:
    try:
        folder, command = site()
    except PartMissing as error:
        missing(error)
    port, log = free_port(), tmp_path / "site.log"
    origin = f"http://127.0.0.1:{port}"
    async with serving(
        tmp_path, jwt_secret=SECRET, auth_url=f"{origin}/push/session", allowed_origins=(origin,)
    ) as node:
        settings = {"PORT": str(port), "PUSHSSE_URL": node.url, "PUSHSSE_JWT_SECRET": SECRET}
        settings["SITE_DB"] = str(tmp_path / "site.db")
        with running(folder, command, log, **settings):
            async with httpx.AsyncClient(base_url=origin, follow_redirects=True, timeout=10) as visitor:

                async def answers() -> bool:
                    try:
                        return (await visitor.get("/")).status_code == 200
                    except httpx.TransportError:
                        return False

                await eventually(answers, what="an answer of the site")
                for path in ("session", "token", "ticket"):
                    assert (await visitor.get(f"/push/{path}")).status_code == 401, path
                await visitor.get("/login?user=ann")
                told = await visitor.get("/push/session")
                assert told.json()["user"] == "ann"
                assert 600 < told.json()["expires_in_s"] <= 2_000_000
                assert "no-store" in told.headers["Cache-Control"]
            await a_login_has_a_session_of_its_own(origin)
            async with chromium(tmp_path / "chromium") as browser:
                await browser.open(f"{origin}/login?user=ann")
                for way in ("session", "token", "ticket"):
                    await browser.open(f"{origin}/?way={way}")
                    await browser.until("document.getElementById('state')?.textContent === 'live ann'")
                    headers = {"Authorization": f"Bearer {token('sender', scope='pushsse:publish')}"}
                    for user in ("bo", "ann"):
                        event = {"type": "news", "message": f"{way} for {user}", "to": {"users": [user]}}
                        reply = await node.http.post("/v1/events", json=event, headers=headers)
                        assert reply.status_code == 202
                    await browser.until(
                        f"document.getElementById('events').innerText === 'news: \"{way} for ann\"'"
                    )
