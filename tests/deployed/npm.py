"""npm packages that browsers use for streams, installed once into the folder of parts, run by Node.js."""

import asyncio
import json
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deploy.parts import PartMissing
from deploy.parts.java import parts_folder

EVENTSOURCE = ("eventsource", "3.0.7")
FETCH_EVENT_SOURCE = ("@microsoft/fetch-event-source", "2.0.1")
POLYFILL = ("event-source-polyfill", "1.0.31")
AXE = ("axe-core", "4.14.1")
_LIMIT_S = 120


def package(name: str, version: str) -> Path:
    """The folder where Node.js finds it. Raises PartMissing."""
    if shutil.which("npm") is None or shutil.which("node") is None:
        raise PartMissing("Node.js with npm isn't installed")
    folder = parts_folder() / f"{name.rpartition('/')[2]}-{version}"
    if not (folder / "node_modules" / name).exists():
        folder.mkdir(parents=True, exist_ok=True)
        command = ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(folder), f"{name}@{version}"]
        try:
            done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=_LIMIT_S)
        except subprocess.TimeoutExpired:
            raise PartMissing(f"npm didn't install {name} within {_LIMIT_S} s") from None
        if done.returncode:
            raise PartMissing(f"npm can't install {name}: {done.stderr[-500:].strip()}")
    return folder


def axe() -> str:
    """The script that looks for what keeps people out of a page. Raises PartMissing."""
    return (package(*AXE) / "node_modules/axe-core/axe.min.js").read_text()


def eventsource() -> Path:
    """The package `eventsource`. Raises PartMissing."""
    return package(*EVENTSOURCE)


@dataclass
class Page:
    """What the client printed: names and data."""

    told: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def count(self, name: str) -> int:
        """How many events of a name came."""
        return sum(1 for each, _ in self.told if each == name)


@asynccontextmanager
async def page(folder: Path, url: str, token: str, script: str = "eventsource.mjs") -> AsyncIterator[Page]:
    """A client in a Node.js of its own, while the context lasts."""
    path = Path(__file__).with_name(script)
    process = await asyncio.create_subprocess_exec(
        "node", str(path), str(folder), url, token, stdout=asyncio.subprocess.PIPE
    )
    found = Page()

    async def read() -> None:
        assert process.stdout is not None
        async for line in process.stdout:
            told = json.loads(line)
            found.told.append((told["name"], told["data"]))

    async with asyncio.TaskGroup() as group:
        group.create_task(read())
        try:
            yield found
        finally:
            process.kill()
            await process.wait()
