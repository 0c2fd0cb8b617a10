"""`/pushsse.js` and its types, as a browser gets them, and the package for npm."""

import json
import re
import shutil
import subprocess
from collections.abc import AsyncIterator
from hashlib import sha256
from pathlib import Path

import pytest

from pushsse import __version__
from pushsse.api.files import CLIENT, CLIENT_FOLDER
from tests.parts import missing
from tests.serving import Running, serving

pytestmark = pytest.mark.anyio
ROOT = Path(__file__).parents[2]
MOST_BYTES = 6_000
FRIEND = "http://localhost:5173"


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Running]:
    async with serving(tmp_path, allowed_origins=(FRIEND,)) as running:
        yield running


async def test_a_page_of_any_site_may_import_it(node: Running) -> None:
    for origin in ("https://anything.example", FRIEND, None):
        reply = await node.http.get("/pushsse.js", headers={"Origin": origin} if origin else {})
        assert reply.status_code == 200
        # Of two, a browser would accept none.
        assert reply.headers.get_list("access-control-allow-origin") == ["*"]
        assert reply.headers["cross-origin-resource-policy"] == "cross-origin"
        assert reply.headers["content-type"] == "text/javascript; charset=utf-8"
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["x-typescript-types"] == "./pushsse.d.ts"
    types = await node.http.get("/pushsse.d.ts")
    assert types.headers["content-type"] == "application/typescript; charset=utf-8"
    assert types.content == (CLIENT_FOLDER / "pushsse.d.ts").read_bytes()


async def test_a_browser_that_has_it_gets_it_once(node: Running) -> None:
    for coding in ("gzip", "identity", "gzip;q=0", "br, gzip;q=0.5"):
        headers = {"Accept-Encoding": coding}
        first = await node.http.get("/pushsse.js", headers=headers)
        assert first.headers.get("content-encoding") == (
            "gzip" if coding in ("gzip", "br, gzip;q=0.5") else None
        )
        assert "Accept-Encoding" in first.headers["vary"]
        assert first.headers["cache-control"] == "public, max-age=600"
        assert first.content == (CLIENT_FOLDER / "pushsse.min.js").read_bytes()
        tag = first.headers["etag"]
        for known in (tag, f"W/{tag}", f'"other", {tag}'):
            again = await node.http.get("/pushsse.js", headers={**headers, "If-None-Match": known})
            assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
        other = await node.http.get("/pushsse.js", headers={**headers, "If-None-Match": '"other"'})
        assert other.status_code == 200
    plain = await node.http.get("/pushsse.js", headers={"Accept-Encoding": "identity"})
    packed = await node.http.get("/pushsse.js", headers={"Accept-Encoding": "gzip"})
    assert plain.headers["etag"] != packed.headers["etag"]


async def test_it_is_small(node: Running) -> None:
    async with node.http.stream("GET", "/pushsse.js", headers={"Accept-Encoding": "gzip"}) as reply:
        size = len(b"".join([piece async for piece in reply.aiter_raw()]))
    assert 1_000 < size < MOST_BYTES


def test_what_is_served_was_made_from_the_source() -> None:
    source = sha256((CLIENT_FOLDER / "pushsse.js").read_bytes()).hexdigest()[:16]
    first = (CLIENT_FOLDER / "pushsse.min.js").read_text().partition("\n")[0]
    assert first.endswith(f"SHA-256 of the source: {source} */"), "run `make client`"


def test_the_package_has_the_version_and_the_licence_of_the_service() -> None:
    package = json.loads((CLIENT_FOLDER / "package.json").read_text())
    assert package["version"] == __version__
    assert (CLIENT_FOLDER / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()


@pytest.mark.real
@pytest.mark.long
def test_make_client_packs_what_people_import(tmp_path: Path) -> None:
    if shutil.which("npm") is None:
        missing("npm isn't installed")
    for each in ("Makefile", "pushsse/client"):
        target = tmp_path / each
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if (ROOT / each).is_dir() else shutil.copy)(ROOT / each, target)
    (tmp_path / "pushsse/client/pushsse.min.js").unlink()
    done = subprocess.run(["make", "-s", "client"], cwd=tmp_path, capture_output=True, text=True, check=False)
    if "network" in done.stderr or "ENOTFOUND" in done.stderr:
        missing(done.stderr)
    assert done.returncode == 0, done.stderr
    made = (tmp_path / "pushsse/client/pushsse.min.js").read_bytes()
    assert made == (CLIENT_FOLDER / "pushsse.min.js").read_bytes()
    listed = subprocess.run(
        ["tar", "-tzf", f"dist/pushsse-{__version__}.tgz"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    wanted = {"package.json", "LICENSE", "README.md", "pushsse.js", "pushsse.min.js", "pushsse.d.ts"}
    assert set(listed.stdout.split()) == {f"package/{name}" for name in wanted}


def test_each_file_that_is_served_is_in_the_package() -> None:
    files = json.loads((CLIENT_FOLDER / "package.json").read_text())["files"]
    assert {name for name, _ in CLIENT.values()} <= set(files)
    assert not re.search(r"\beval\(|new Function", (CLIENT_FOLDER / "pushsse.js").read_text())
