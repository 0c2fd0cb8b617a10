"""`GET /docs` in a real browser, under a sub-path: all calls are there, and nothing is from elsewhere."""

import asyncio
from pathlib import Path

import pytest

from pushsse.api.document import document
from tests.deployed.chromium import chromium
from tests.deployed.test_browser import SubPath
from tests.parts import running
from tests.serving import serving

pytestmark = pytest.mark.real
OPERATIONS = [each for calls in document()["paths"].values() for each in calls.values()]


@pytest.mark.anyio
async def test_the_docs_show_every_call_with_its_examples_and_problems(tmp_path: Path) -> None:
    async with serving(tmp_path) as node:
        proxy = SubPath(tmp_path / "nginx", node.port)
        started = running(proxy)
        await asyncio.to_thread(next, started)
        try:
            async with chromium(tmp_path / "chromium") as browser:
                await browser.open(f"{proxy.url}docs#setType")
                await browser.until("document.querySelectorAll('.call').length > 0")
                shown = await browser.run("[...document.querySelectorAll('.call')].map((each) => each.id)")
                assert sorted(shown) == sorted(each["operationId"] for each in OPERATIONS)
                # The one that the address names is open.
                assert await browser.run(
                    "[...document.querySelectorAll('.call[open]')].map((each) => each.id)"
                ) == ["setType"]
                text = await browser.run("document.getElementById('setType').textContent")
                assert all(
                    each in text for each in ("PUT", "/v1/types/{type}", "type_in_file", "Payments", "409")
                )
                assert (
                    await browser.run("getComputedStyle(document.querySelector('.call')).borderTopWidth")
                    == "1px"
                )
                field = "document.getElementById('find')"
                await browser.run(f"{field}.value = 'ticket', {field}.dispatchEvent(new Event('input'))")
                left = "[...document.querySelectorAll('.call:not([hidden])')].map((each) => each.id)"
                assert set(await browser.run(left)) == {"stream", "makeTicket"}
                loaded = await browser.run(
                    "performance.getEntriesByType('resource').map((each) => each.name)"
                )
                assert {name.removeprefix(proxy.url) for name in loaded} - {"data:,"} == {
                    "docs.css",
                    "docs.js",
                    "openapi.json",
                }
        finally:
            await asyncio.to_thread(next, started, None)
