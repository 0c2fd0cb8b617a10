"""examples/chat in a real browser, installed and bundled as its README says, at another origin."""

import asyncio
import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest

from deploy.parts import PartMissing
from deploy.parts.java import parts_folder
from tests.deployed.chromium import chromium
from tests.deployed.test_browser import files
from tests.parts import missing
from tests.serving import serving

pytestmark = pytest.mark.real
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


ASK = """
(() => {
  const input = document.querySelector("input");
  const { set } = Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, "value");
  set.call(input, "How do I get a refund?");
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
            await browser.run(ASK)
            await browser.until(f"{ANSWERS} === 1 && document.querySelector('.status').innerText === ''")
            shown = await browser.run("document.querySelector('#chat').innerText")
            assert "How do I get a refund?" in shown
            await browser.run("window.before = true")
            await browser.call("Page.reload")
            await browser.until(f"window.before === undefined && {ANSWERS} === 1")
            assert await browser.run("document.querySelector('#chat').innerText") == shown
            assert await browser.run("document.querySelector('.error').innerText") == ""
