"""examples/offline-gateway as its README runs it, a push service, and what a browser shows of its notices."""

import asyncio
import base64
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from deploy.parts import PartMissing
from deploy.parts.java import parts_folder
from deploy.parts.ports import free_port
from tests.deployed.chromium import Browser
from tests.parts import missing
from tests.waiting import eventually

EXAMPLE = Path(__file__).parents[2] / "examples" / "offline-gateway"
_LIMIT_S = 180
_POINT = (Encoding.X962, PublicFormat.UncompressedPoint)


def installed() -> Path:
    """A folder with what the example needs beside pushsse; a test where that can't be had is skipped."""
    try:
        return _installed()
    except PartMissing as error:
        missing(error)


def derived(secret: bytes, salt: bytes, info: bytes, length: int) -> bytes:
    return HKDF(SHA256(), length, salt, info).derive(secret)


@dataclass
class PushService:
    """What a browser's maker runs: gets encrypted notices, which only the browser can read (RFC 8291)."""

    private: ec.EllipticCurvePrivateKey = field(
        default_factory=lambda: ec.generate_private_key(ec.SECP256R1())
    )
    auth: bytes = field(default_factory=lambda: secrets.token_bytes(16))
    notices: list[dict[str, Any]] = field(default_factory=list)
    heads: list[dict[str, str]] = field(default_factory=list)
    # What came to a webhook beside it.
    hooked: list[dict[str, Any]] = field(default_factory=list)
    # Answered with in turn, and then 201.
    statuses: list[int] = field(default_factory=list)
    port: int = 0

    @property
    def subscription(self) -> dict[str, Any]:
        """As the browser gives it to a page."""
        point = self.private.public_key().public_bytes(*_POINT)
        keys = {"p256dh": point, "auth": self.auth}
        encoded = {name: base64.urlsafe_b64encode(key).decode().rstrip("=") for name, key in keys.items()}
        return {"endpoint": f"http://127.0.0.1:{self.port}/send/1", "keys": encoded}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        fields = {
            name.lower(): value.strip()
            for name, _, value in (line.partition(":") for line in head.split("\r\n")[1:])
        }
        body = await reader.readexactly(int(fields["content-length"]))
        for_browser = not head.startswith("POST /hook ")
        status = self.statuses.pop(0) if self.statuses and for_browser else 201
        if not for_browser:
            self.hooked.append(json.loads(body))
        elif status == 201:
            self.heads.append(fields)
            self.notices.append(json.loads(self.decrypted(body)))
        writer.write(f"HTTP/1.1 {status} X\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
        await writer.drain()
        writer.close()

    def decrypted(self, body: bytes) -> bytes:
        salt, length = body[:16], body[20]
        theirs, sealed = body[21 : 21 + length], body[21 + length :]
        shared = self.private.exchange(
            ec.ECDH(), ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), theirs)
        )
        ours = self.private.public_key().public_bytes(*_POINT)
        key = derived(shared, self.auth, b"WebPush: info\0" + ours + theirs, 32)
        cipher = AESGCM(derived(key, salt, b"Content-Encoding: aes128gcm\0", 16))
        plain = cipher.decrypt(derived(key, salt, b"Content-Encoding: nonce\0", 12), sealed, None)
        return plain.rstrip(b"\0").removesuffix(b"\x02")


@asynccontextmanager
async def push_service() -> AsyncIterator[PushService]:
    """One that serves while the context lasts."""
    service = PushService()
    async with await asyncio.start_server(service.serve, "127.0.0.1", 0) as server:
        service.port = server.sockets[0].getsockname()[1]
        yield service


@asynccontextmanager
async def gateway(folder: Path, **variables: str) -> AsyncIterator[str]:
    """The process, while the context lasts; its URL."""
    libraries = await asyncio.to_thread(installed)
    port = free_port()
    environment = {
        **os.environ,
        "PYTHONPATH": str(libraries),
        "GATEWAY_PORT": str(port),
        "GATEWAY_KEY": str(folder / "vapid.pem"),
        "GATEWAY_STORE": str(folder / "gateway.db"),
        "GATEWAY_PUSH_HOSTS": "127.0.0.1",
        **variables,
    }
    program = str(EXAMPLE / "gateway.py")
    keys = await asyncio.create_subprocess_exec(sys.executable, program, "keys", env=environment)
    assert await keys.wait() == 0
    process = await asyncio.create_subprocess_exec(sys.executable, program, env=environment)
    url = f"http://127.0.0.1:{port}"
    try:

        async def answers() -> bool:
            assert process.returncode is None
            try:
                async with httpx.AsyncClient() as client:
                    return (await client.get(f"{url}/key")).status_code == 200
            except httpx.TransportError:
                return False

        await eventually(answers, 60)
        yield url
    finally:
        process.send_signal(signal.SIGINT)
        await process.wait()


async def shown(browser: Browser, origin: str, page: str, notice: dict[str, Any]) -> Any:
    """What a browser's service worker shows when its push service delivers a notice."""
    whole = Browser(browser.reader, browser.writer, numbers=browser.numbers)
    await whole.call("Browser.grantPermissions", permissions=["notifications"], origin=origin)
    await browser.open(page)
    await browser.until("document.readyState === 'complete'")
    ready = "navigator.serviceWorker.register('worker.js').then(() => navigator.serviceWorker.ready)"
    assert await browser.run(f"{ready}.then(() => true)")
    browser.send("ServiceWorker.enable")
    registration = ""
    async with asyncio.timeout(60):
        while not registration:
            told = json.loads((await browser.reader.readuntil(b"\0"))[:-1])
            if told.get("method") == "ServiceWorker.workerRegistrationUpdated":
                for each in told["params"]["registrations"]:
                    registration = each["registrationId"]
    listed = (
        "navigator.serviceWorker.ready.then((ready) => ready.getNotifications())"
        ".then((all) => all.map(({ title, body, tag }) => ({ title, body, tag })))"
    )
    found: list[Any] = []

    async def there() -> bool:
        # Again, since a worker that has just become active may miss it; of the same tag there is one.
        await browser.call(
            "ServiceWorker.deliverPushMessage",
            origin=origin,
            registrationId=registration,
            data=json.dumps(notice),
        )
        found[:] = await browser.run(listed)
        return bool(found)

    await eventually(there)
    return found


def _installed() -> Path:
    digest = sha256((EXAMPLE / "requirements.txt").read_bytes()).hexdigest()[:12]
    folder = parts_folder() / f"offline-gateway-{digest}"
    if (folder / "pywebpush").exists():
        return folder
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    if subprocess.run([*pip, "--version"], check=False, capture_output=True).returncode:
        uv = shutil.which("uv")
        if uv is None:
            raise PartMissing("neither pip nor uv is there to install pywebpush")
        pip = [uv, "pip"]
    command = [*pip, "install", "-q", "--target", str(folder), "-r", str(EXAMPLE / "requirements.txt")]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=_LIMIT_S)
    if done.returncode:
        raise PartMissing(f"pywebpush can't be installed: {done.stderr[-500:].strip()}")
    return folder
