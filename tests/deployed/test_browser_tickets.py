"""EventSource with a ticket, in a real browser, by the code of docs/clients.md."""

import asyncio
import json
import re
import time
from collections.abc import Mapping
from pathlib import Path

import jwt
import pytest

from pushsse.api import access
from tests.deployed.chromium import Browser, chromium
from tests.deployed.test_browser import EXAMPLES, files
from tests.serving import Running, serving
from tests.waiting import eventually

pytestmark = [pytest.mark.real, pytest.mark.anyio]
SECRET = "a secret of more than thirty-two bytes, as it has to be"
CLIENTS = Path(__file__).parents[2] / "docs" / "clients.md"
# Its backend gives it the tickets that the test has made, one after another.
PAGE = """
globalThis.made = [];
globalThis.given = 0;
globalThis.ended = [];
globalThis.seen = [];
globalThis.fetch = async () => ({json: async () => made[given++]});
globalThis.EventSource = class extends EventSource {
  constructor(url) {
    super(url);
    this.addEventListener("news", (event) => {
      seen.push(JSON.parse(event.data).message);
      position = event.lastEventId;
    });
    this.addEventListener("exception", (event) => ended.push(JSON.parse(event.data).code));
  }
};
"""


def bearer(user: str, **claims: object) -> Mapping[str, str]:
    now = int(time.time())
    token = jwt.encode({"sub": user, "iat": now, "exp": now + 600, **claims}, SECRET)
    return {"authorization": f"Bearer {token}"}


async def ticket(node: Running, **claims: object) -> object:
    reply = await node.http.post("/v1/tickets", headers=bearer("ann", **claims))
    assert reply.status_code == 200
    return reply.json()


async def publish(node: Running, message: object) -> None:
    event = {"type": "news", "message": message, "to": "all"}
    await node.http.post("/v1/events", json=event, headers=bearer("sender", scope="pushsse:publish"))


async def listen(browser: Browser, node: Running, *tickets: object) -> None:
    """Runs the documented code, with these tickets."""
    found = re.search(r"```js\n(let events, position.*?)```", CLIENTS.read_text(), re.DOTALL)
    assert found is not None
    code = found[1].replace("https://push.example.com", node.url)
    assert node.url in code
    await browser.run(f"{PAGE} {code} made = {json.dumps(tickets)}; listen(); 0")
    await browser.until("globalThis.events?.readyState === 1 || events.readyState === 1")


async def test_it_comes_back_by_itself_and_misses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Its URL alone opens nothing any more when the first stream ends.
    monkeypatch.setattr(access, "FRESH_S", 0.8)
    with files(EXAMPLES / "browser") as site:
        async with (
            serving(tmp_path, jwt_secret=SECRET, allowed_origins=(site,), stream_lifetime_s=2) as node,
            chromium(tmp_path / "chromium") as browser,
        ):
            await browser.open(f"{site}/README.md")
            await listen(browser, node, await ticket(node))
            number = 0

            async def three_streams_have_ended() -> bool:
                nonlocal number
                await publish(node, number)
                number += 1
                # A pace: each look costs the browser more than it costs a test.
                await asyncio.sleep(0.1)
                return len(await browser.run("ended")) >= 3

            await eventually(three_streams_have_ended)
            await browser.until(f"seen.length >= {number}")
            assert await browser.run("seen") == list(range(number))
            assert set(await browser.run("ended")) == {"lifetime"}
            assert await browser.run("given") == 1


async def test_it_takes_a_new_ticket_at_the_end_of_the_token_and_stays_away_after_a_kick(
    tmp_path: Path,
) -> None:
    with files(EXAMPLES / "browser") as site:
        async with (
            serving(tmp_path, jwt_secret=SECRET, allowed_origins=(site,)) as node,
            chromium(tmp_path / "chromium") as browser,
        ):
            await browser.open(f"{site}/README.md")
            first = await ticket(node, exp=time.time() + 3)
            await listen(browser, node, first, await ticket(node))
            await publish(node, "by the first")
            await browser.until("ended.includes('token_expired')")
            await publish(node, "in between")
            await browser.until("given === 2 && seen.includes('in between')")
            assert await browser.run("seen") == ["by the first", "in between"]
            admin = bearer("root", scope="pushsse:admin")
            assert (await node.http.post("/v1/users/ann/kick", headers=admin)).status_code == 200
            await browser.until("ended.includes('revoked')")
            assert await browser.run("ended") == ["token_expired", "revoked"]
            # It waits for five minutes before it tries again by itself, and asks for no ticket.
            assert await browser.run("events.readyState") == 0
            assert await browser.run("given") == 2
            assert not node.node.hub.subscribers
