"""A headless Chromium with one page, driven over a pipe (the DevTools protocol), for tests in a browser."""

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from deploy.parts import PartMissing, packages
from tests.parts import missing

LIMIT_S = 60.0
_PAUSE_S = 0.03
# A name of this machine that browsers take for another one, over plain HTTP without a secure context.
INSECURE_HOST = "phone.test"
_PROGRAMS = ("chromium", "chromium-browser", "google-chrome")


@dataclass
class Browser:
    """One page; the others of the same browser share its pipe, so only one is called at a time."""

    reader: asyncio.StreamReader
    writer: int
    session: str = ""
    target: str = ""
    numbers: Iterator[int] = field(default_factory=lambda: count(1))

    async def another(self) -> "Browser":
        """One more page, in a tab of its own."""
        browser = Browser(self.reader, self.writer, numbers=self.numbers)
        made = await browser.call("Target.createTarget", url="about:blank")
        browser.target = made["targetId"]
        attached = await browser.call("Target.attachToTarget", targetId=browser.target, flatten=True)
        browser.session = attached["sessionId"]
        return browser

    async def close(self) -> None:
        """Closes the tab, whatever its page does."""
        browser = Browser(self.reader, self.writer, numbers=self.numbers)
        await browser.call("Target.closeTarget", targetId=self.target)

    def send(self, method: str, **parameters: Any) -> int:
        """One command; returns its number, which its answer has, if one comes."""
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.writer, json.dumps(message).encode() + b"\0")
        return number

    async def call(self, method: str, **parameters: Any) -> Any:
        """One command, and its answer; events are passed over."""
        number = self.send(method, **parameters)
        async with asyncio.timeout(LIMIT_S):
            while True:
                answer = json.loads((await self.reader.readuntil(b"\0"))[:-1])
                if answer.get("id") == number:
                    assert "error" not in answer, answer
                    return answer["result"]

    async def open(self, url: str) -> None:
        """Goes to a page."""
        result = await self.call("Page.navigate", url=url)
        assert "errorText" not in result, result

    async def run(self, script: str) -> Any:
        """The value of an expression in the page."""
        result = await self._evaluate(script)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    async def until(self, script: str) -> None:
        """Until an expression is true; what it looks at may not be there yet.

        Each look costs the browser more than it costs a test.
        """
        end = time.monotonic() + LIMIT_S
        while True:
            result = await self._evaluate(script)
            thrown = result.get("exceptionDetails", {}).get("exception", {})
            assert thrown.get("className", "TypeError") == "TypeError", result
            if not thrown and result["result"].get("value"):
                return
            said = thrown.get("description", "")
            assert time.monotonic() < end, (
                f"not so: {script}; {said} {await self.run('document.body.innerText')}"
            )
            await asyncio.sleep(_PAUSE_S)

    async def _evaluate(self, script: str) -> Any:
        return await self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)


@asynccontextmanager
async def chromium(folder: Path) -> AsyncIterator[Browser]:
    """The browser, while the context lasts."""
    found = await asyncio.to_thread(_program)
    theirs_in, ours_out = os.pipe()
    ours_in, theirs_out = os.pipe()
    process = await _start(found, folder, theirs_in, theirs_out)
    os.close(theirs_in)
    os.close(theirs_out)
    reader = asyncio.StreamReader(limit=2**24)
    pipe = os.fdopen(ours_in, "rb", 0)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), pipe
    )
    try:
        yield await Browser(reader, ours_out).another()
    finally:
        transport.close()
        os.close(ours_out)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


def _program() -> str:
    """Its path. Installs Debian's package where no such browser is."""
    found = next((path for name in _PROGRAMS if (path := packages.find(name))), None)
    try:
        return found or packages.program("chromium", "chromium")
    except PartMissing as error:
        missing(error)


async def _start(program: str, folder: Path, commands: int, answers: int) -> asyncio.subprocess.Process:
    # It reads commands from 3 and answers on 4; a shell puts them there (dash takes no number over 9).
    arguments = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--disable-background-networking",
        "--remote-debugging-pipe",
        f"--host-resolver-rules=MAP {INSECURE_HOST} 127.0.0.1",
        f"--user-data-dir={folder}",
    ]
    return await asyncio.create_subprocess_exec(
        "bash",
        "-c",
        f'exec "$@" 3<&{commands} 4>&{answers}',
        "bash",
        program,
        *arguments,
        pass_fds=(commands, answers),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        start_new_session=True,
    )
