"""docs/getting-started.md: its commands, in its order, and its page in a browser."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from deploy.parts.ports import free_port
from tests.deployed.chromium import chromium

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/getting-started.md").read_text()
BLOCKS = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
RUN, CURL, LISTEN, COPY, RUN_WITH_KEY, SITE, PUBLISH = BLOCKS


class Newcomer:
    """Somebody with the page, in a copy of what it needs of the repository, on two ports of its own."""

    def __init__(self, folder: Path) -> None:
        self.node, self.site = free_port(), free_port()
        (folder / "examples").mkdir()
        shutil.copytree(ROOT / "examples/ticket", folder / "examples/ticket")
        # `make run`, which tests/package installs with, starts this.
        (folder / ".venv").symlink_to(Path(sys.executable).parents[1])
        self.folder = folder

    def command(self, block: str) -> str:
        """What somebody pastes."""
        here = block.replace("make run", "exec .venv/bin/pushsse serve").replace(
            "\npython3", "\nexec python3"
        )
        return here.replace("8000", str(self.node)).replace("8080", str(self.site))

    def environment(self) -> dict[str, str]:
        mine = {name: value for name, value in os.environ.items() if not name.startswith("PUSHSSE_")}
        url = f"http://127.0.0.1:{self.node}"
        return {**mine, "PUSHSSE_PORT": str(self.node), "PUSHSSE_URL": url, "PORT": str(self.site)}

    def run(self, block: str, *, exits: int = 0) -> str:
        done = subprocess.run(
            ["sh", "-ec", self.command(block)],
            cwd=self.folder,
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == exits, done.stdout + done.stderr
        return done.stdout

    @contextmanager
    def running(self, block: str, port: int) -> Iterator[subprocess.Popen[str]]:
        """The block in a shell of its own, once what it starts has said where it is."""
        with subprocess.Popen(
            ["sh", "-ec", self.command(block)],
            cwd=self.folder,
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        ) as process:
            assert process.stdout is not None
            try:
                while f":{port}/" not in (line := process.stdout.readline()):
                    assert line, f"it ended: {block}"
                yield process
            finally:
                process.send_signal(signal.SIGINT)


@pytest.mark.real
@pytest.mark.long
@pytest.mark.anyio
async def test_a_newcomer_gets_from_the_page_to_a_page_of_their_own(tmp_path: Path) -> None:
    (folder := tmp_path / "repository").mkdir()
    newcomer = Newcomer(folder)
    async with chromium(tmp_path / "chromium") as browser:
        with newcomer.running(RUN, newcomer.node):
            await browser.open(f"http://127.0.0.1:{newcomer.node}/")
            await browser.until("document.getElementById('state')?.dataset.state === 'live'")
            newcomer.run(CURL)
            await browser.until("document.body.innerText.includes('hello')")
            # 28: ended by --max-time, since a stream never ends.
            assert "event: ready" in newcomer.run(LISTEN.replace("curl", "curl -s -m 1"), exits=28)
        newcomer.run(COPY)
        page = folder / "my-site/index.html"
        page.write_text(newcomer.command(page.read_text()))
        with newcomer.running(RUN_WITH_KEY, newcomer.node), newcomer.running(SITE, newcomer.site):
            await browser.open(f"http://127.0.0.1:{newcomer.site}/?user=ann")
            await browser.until("document.getElementById('state')?.textContent.startsWith('live')")
            newcomer.run(PUBLISH)
            await browser.until("document.getElementById('events').innerText === 'news: Hello, Ann'")


def test_the_page_in_the_docs_is_the_one_of_the_example() -> None:
    """Somebody copies it from there."""
    page = (ROOT / "examples/ticket/index.html").read_text()
    for line in (
        'import { connect } from "http://127.0.0.1:8000/pushsse.js";',
        'fetch("/ticket").then((reply) => (reply.status === 401 ? null : reply.json()))',
        'push.on("gap", () => location.reload());',
    ):
        assert line in PAGE
        assert line in page
