"""examples/chat in a real browser, installed and bundled as its README says, at another origin."""

import asyncio
import hashlib
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from deploy.parts import PartMissing
from deploy.parts.java import parts_folder
from pushsse.backplane.memory import MemoryBackplane
from pushsse.database import Database
from pushsse.metrics import Metrics
from tests.deployed.chromium import chromium
from tests.deployed.test_browser import files
from tests.migrated import migrated
from tests.parts import missing
from tests.questions.conftest import SHARDS, Nodes
from tests.questions.front import fronts
from tests.serving import serving
from tests.waiting import eventually

pytestmark = [pytest.mark.real, pytest.mark.long]
EXAMPLE = Path(__file__).parents[2] / "examples" / "chat"
_LIMIT_S = 180


def bundled() -> Path:
    """The example's page with its script. Raises PartMissing."""
    sources = [EXAMPLE / name for name in ("package.json", "chat.jsx", "page/index.html")]
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in sources)).hexdigest()[:12]
    folder = parts_folder() / f"chat-example-{digest}"
    page = folder / "page"
    if (page / "chat.js").exists():
        return page
    if shutil.which("npm") is None or shutil.which("node") is None:
        raise PartMissing("Node.js with npm isn't installed")
    page.mkdir(parents=True, exist_ok=True)
    for file in sources:
        shutil.copy(file, folder / file.relative_to(EXAMPLE))
    for command in (["npm", "install", "--no-audit", "--no-fund"], ["npm", "run", "build"]):
        done = subprocess.run(
            command, check=False, cwd=folder, capture_output=True, text=True, timeout=_LIMIT_S
        )
        if done.returncode:
            raise PartMissing(f"{' '.join(command)}: {done.stderr[-500:].strip()}")
    return page


def ask(text: str) -> str:
    """Types a question, and sends it."""
    return ASK.replace("TEXT", json.dumps(text))


ASK = """
(() => {
  const input = document.querySelector("input");
  const { set } = Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, "value");
  set.call(input, TEXT);
  input.dispatchEvent(new Event("input", { bubbles: true }));
  return new Promise((resolve) => setTimeout(() => {
    document.querySelector("form").requestSubmit();
    resolve();
  }, 50));
})()
"""
ANSWERS = "document.querySelectorAll('.assistant').length"


@pytest.mark.anyio
async def test_the_page_asks_shows_the_answer_and_has_it_after_a_reload(tmp_path: Path) -> None:
    try:
        page = await asyncio.to_thread(bundled)
    except PartMissing as error:
        missing(error)
    with files(page) as origin:
        async with (
            serving(tmp_path, allowed_origins=(origin,)) as node,
            chromium(tmp_path / "browser") as browser,
        ):
            await browser.open(f"{origin}/?server={node.url}&user=ann")
            await browser.until("document.querySelector('form') !== null")
            await browser.run(ask("How do I get a refund?"))
            await browser.until(f"{ANSWERS} === 1 && document.querySelector('.status').innerText === ''")
            shown = await browser.run("document.querySelector('#chat').innerText")
            assert "How do I get a refund?" in shown
            await browser.run("window.before = true")
            await browser.call("Page.reload")
            await browser.until(f"window.before === undefined && {ANSWERS} === 1")
            assert await browser.run("document.querySelector('#chat').innerText") == shown
            assert await browser.run("document.querySelector('.error').innerText") == ""


@pytest.mark.anyio
async def test_the_page_goes_on_over_a_lost_connection_and_stops_an_answer(tmp_path: Path) -> None:
    try:
        page = await asyncio.to_thread(bundled)
    except PartMissing as error:
        missing(error)
    backplane = MemoryBackplane(shards=SHARDS, keep_s=3600, keep_bytes=4 * 1024**2, metrics=Metrics())
    with files(page) as origin:
        async with (
            Database(migrated(tmp_path / "questions.db"), timeout_s=10) as database,
            fronts(Nodes(database, backplane), origins=(origin,)) as front,
            chromium(tmp_path / "browser") as browser,
        ):
            texts = (
                "[...document.querySelectorAll('.assistant')].map((each) => each.innerText.trim()).join('|')"
            )
            await browser.open(f"{origin}/?server={front.url}&user=ann")
            await browser.until("document.querySelector('form') !== null")
            await browser.run(ask("+one @more +two"))
            await browser.until(f"{texts} === 'one'")
            resumed = front.requests["GET stream"]
            front.nodes[0].cut()
            await eventually(lambda: front.requests["GET stream"] > resumed)
            front.gates.open["more"].set()
            await browser.until(
                f"{texts} === 'one two' && document.querySelector('.status').innerText === ''"
            )
            assert await browser.run("document.querySelector('.error').innerText") == ""
            await browser.run(ask("+three @never"))
            await browser.until(f"{texts} === 'one two|three'")
            await browser.run("document.querySelector('form button[type=button]').click()")
            await browser.until("document.querySelector('.status').innerText === ''")
            assert await browser.run(texts) == "one two|three"
            # Asked once each, whatever was lost.
            assert len(await front.nodes[0].service.page("ann", limit=9)) == 2
