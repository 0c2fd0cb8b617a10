"""The page and the browser example in a real browser."""

import asyncio
import functools
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from deploy.parts.packages import program
from deploy.parts.part import Part
from deploy.parts.ports import answers
from tests.cli.running import served
from tests.deployed.chromium import chromium
from tests.parts import running
from tests.serving import serving
from tests.waiting import eventually, until

pytestmark = pytest.mark.real

# What the example says, and what the page says.
OPEN = (
    "!!document.querySelector('[data-state=live]') || document.getElementById('state')?.innerText === 'open'"
)
EXAMPLES = Path(__file__).parents[2] / "examples"


class SubPath(Part):
    """An nginx that has the service under /push/."""

    def __init__(self, folder: Path, upstream: int) -> None:
        super().__init__("nginx", folder)
        self._upstream = upstream
        self._program = ""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/push/"

    def is_ready(self) -> bool:
        return bool(answers(self.port, b"GET / HTTP/1.0\r\n\r\n"))

    def prepare(self) -> None:
        self._program = program("nginx", "nginx")
        # The prefix is taken away, which is how most proxies do it.
        (self.folder / "nginx.conf").write_text(f"""
            daemon off; pid {self.folder}/pid; error_log stderr;
            events {{}}
            http {{
              access_log off; client_body_temp_path {self.folder}; proxy_temp_path {self.folder};
              fastcgi_temp_path {self.folder}; uwsgi_temp_path {self.folder}; scgi_temp_path {self.folder};
              server {{
                listen 127.0.0.1:{self.port};
                location /push/ {{
                  proxy_pass http://127.0.0.1:{self._upstream}/;
                  proxy_http_version 1.1; proxy_buffering off;
                  proxy_set_header Connection ""; proxy_set_header Host $http_host;
                }}
              }}
            }}""")

    def command(self) -> list[str]:
        return [self._program, "-c", str(self.folder / "nginx.conf"), "-p", str(self.folder)]


@contextmanager
def files(folder: Path) -> Iterator[str]:
    """`python3 -m http.server`, as the example's README says."""
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(folder))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.anyio
async def test_the_page_works_under_a_sub_path(tmp_path: Path) -> None:
    async with serving(tmp_path) as node:
        proxy = SubPath(tmp_path / "nginx", node.port)
        started = running(proxy)
        await asyncio.to_thread(next, started)
        try:
            async with chromium(tmp_path / "chromium") as browser:
                await browser.open(f"{proxy.url}?user=ann")
                await browser.until("document.getElementById('state')?.dataset.state === 'live'")
                await browser.run("document.getElementById('publish').requestSubmit()")
                await browser.until("document.getElementById('events').innerText.includes('Hello')")
                await browser.until("document.querySelector('#switches input')?.checked === true")
                await browser.run("document.querySelector('#switches input').click()")

                async def is_off() -> bool:
                    reply = await node.http.get("/v1/preferences?user=ann")
                    return not reply.json()["types"][0]["enabled"]

                await eventually(is_off)
                await browser.run("document.getElementById('question').value = '怎么关闭通知？'")
                await browser.run("document.getElementById('ask').requestSubmit()")
                await browser.until("document.querySelector('.exchange a') !== null")
                link = await browser.run("document.querySelector('.exchange a').href")
                assert link == f"{proxy.url}?user=ann#switches"
                # Everything that the page loaded lies under the sub-path.
                loaded = await browser.run(
                    "performance.getEntriesByType('resource').map((each) => each.name)"
                )
                assert len(loaded) >= 4
                assert [name for name in loaded if not name.startswith((proxy.url, "data:"))] == []
        finally:
            await asyncio.to_thread(next, started, None)


@pytest.mark.anyio
async def test_the_browser_example_runs_as_its_readme_says(tmp_path: Path) -> None:
    with files(EXAMPLES / "browser") as site:
        async with (
            serving(tmp_path, allowed_origins=(site,), stream_lifetime_s=1) as node,
            chromium(tmp_path / "chromium") as browser,
        ):
            await browser.open(f"{site}/?server={node.url}&user=ann")
            await browser.until("document.getElementById('state')?.textContent === 'open'")
            for number in range(10):
                await node.publish("news", f"number {number}", "ann")
                await asyncio.sleep(0.3)  # Streams end after a second: events come on several of them.
            await browser.until("document.getElementById('events').innerText.includes('number 9')")
            shown = await browser.run(
                "[...document.querySelectorAll('#events li')].map((each) => each.innerText)"
            )
            assert shown == [f"news: number {number}" for number in reversed(range(10))]
            # One card a key, which another takes away; a click says that it was read, on all devices.
            for text, to in (("paid", "ann"), ("sale", "all"), ("sent", "ann")):
                await node.publish("order", text, to, collapse="order-981")
            orders = "[...document.querySelectorAll('#events li')].map((each) => each.innerText).slice(0, 3)"
            await browser.until(f"{orders}.join() === 'order: sent,order: sale,news: number 9'")
            await browser.run("document.querySelector('#events li').click(); 0")
            await browser.until("document.querySelector('#events li').className === 'read'")
            assert (await node.http.get("/v1/unread?user=ann")).json()["types"] == {"news": 10, "order": 1}
            await node.publish("order", None, withdraw="order-981")
            await browser.until(f"{orders}.join() === 'order: sent,news: number 9,news: number 8'")


@pytest.mark.anyio
@pytest.mark.parametrize(
    "address",
    [
        pytest.param("{site}/?server={node}&user=ann", marks=pytest.mark.long, id="example"),
        pytest.param("{node}/?user=ann", id="page"),
    ],
)
async def test_a_page_opens_anew_when_a_node_has_frozen(tmp_path: Path, address: str) -> None:
    with (
        files(EXAMPLES / "browser") as site,
        served(tmp_path, PUSHSSE_ALLOWED_ORIGINS=site, PUSHSSE_HEARTBEAT_S="1") as node,
    ):
        async with chromium(tmp_path / "chromium") as browser:
            await browser.open(address.format(site=site, node=node.url))
            await browser.until(OPEN)
            await browser.run("document.getElementById('state').textContent = 'watching'")
            node.process.send_signal(signal.SIGSTOP)
            try:
                # Nothing comes, and nothing ends. Only a new call can find out more.
                await asyncio.to_thread(until, lambda: unread_at(node.url), "a new call")
            finally:
                node.process.send_signal(signal.SIGCONT)
            await browser.until(OPEN)
            await asyncio.to_thread(node.run, "publish", "news", "still there", "--to", "ann")
            await browser.until("document.getElementById('events').innerText.includes('still there')")


def unread_at(url: str) -> bool:
    """Whether a connection waits that nobody has accepted, or bytes wait that nobody has read."""
    port = f":{int(url.rsplit(':', 1)[1]):04X}"
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()]
    return any(int(line[4].partition(":")[2], 16) for line in lines[1:] if line[1].endswith(port))
