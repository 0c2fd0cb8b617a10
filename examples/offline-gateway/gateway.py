"""Reaches people who are offline: Web Push to their browsers, and a webhook for everything else.

It reads `offline` from the topic of outcomes. For each it asks pushsse for the person's quiet hours: what
isn't urgent waits until they are over, and then comes as one summary. What has been told is remembered for a
day, so that a record that comes twice is told once. Everything is in one SQLite file and one process.

    python gateway.py keys            makes the key by which push services know this gateway (vapid.pem)
    python gateway.py                 serves the page's calls and forwards outcomes, for ever
"""

import asyncio
import base64
import json
import logging
import os
import random
import sqlite3
import sys
import time
from collections.abc import Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import msgspec
import uvicorn
from aiokafka import AIOKafkaConsumer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from py_vapid import Vapid02
from pywebpush import WebPushException, webpush
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from pushsse.preferences.quiet import Schedule, quiet_until

logger = logging.getLogger("gateway")
HERE = Path(__file__).parent
KAFKA = os.environ.get("GATEWAY_KAFKA", "localhost:9092")
TOPIC = os.environ.get("GATEWAY_TOPIC", "push.outcomes")
PUSHSSE = os.environ.get("GATEWAY_PUSHSSE", "http://127.0.0.1:8000")
# A token with the scope pushsse:admin; none in development.
TOKEN = os.environ.get("GATEWAY_TOKEN", "")
PORT = int(os.environ.get("GATEWAY_PORT", "8090"))
STORE = os.environ.get("GATEWAY_STORE", "gateway.db")
KEY = Path(os.environ.get("GATEWAY_KEY", "vapid.pem"))
# How push services reach whoever runs this, if something is wrong (RFC 8292, 2.1).
CONTACT = os.environ.get("GATEWAY_CONTACT", "mailto:ops@example.com")
# Gets a POST for each notice: what a service behind APNs, FCM, JPush or WeChat forwards.
WEBHOOK = os.environ.get("GATEWAY_WEBHOOK", "")
# A browser names the address of its push service, and this process calls it: no other addresses.
HOSTS = tuple(
    os.environ.get(
        "GATEWAY_PUSH_HOSTS",
        "fcm.googleapis.com,push.services.mozilla.com,notify.windows.com,push.apple.com",
    ).split(",")
)
_CALL_S = 10.0
_LOOK_S = 2.0
_TRIES = 5
_KEEP_S = 86_400
_MOST_SUBSCRIPTIONS = 20
_AT_ONCE = 16


class Store:
    """Subscriptions, what was told, and what waits for the end of quiet hours."""

    def __init__(self, file: str) -> None:
        self._database = sqlite3.connect(file, isolation_level=None)
        self._database.executescript("""
            PRAGMA journal_mode = wal;
            CREATE TABLE IF NOT EXISTS subscription (
                endpoint TEXT PRIMARY KEY, user TEXT, info TEXT, added_at REAL);
            CREATE INDEX IF NOT EXISTS subscription_user ON subscription (user);
            CREATE TABLE IF NOT EXISTS told (user TEXT, event TEXT, at REAL, PRIMARY KEY (user, event));
            CREATE INDEX IF NOT EXISTS told_at ON told (at);
            CREATE TABLE IF NOT EXISTS held (user TEXT, event TEXT, until REAL, notice TEXT,
                PRIMARY KEY (user, event));
            CREATE INDEX IF NOT EXISTS held_until ON held (until)""")

    def close(self) -> None:
        """Closes the file."""
        self._database.close()

    def subscribe(self, user: str, info: Mapping[str, Any]) -> None:
        """Adds a browser of a person; of more than twenty the oldest go."""
        row = (info["endpoint"], user, json.dumps(info), time.time())
        self._database.execute("INSERT OR REPLACE INTO subscription VALUES (?, ?, ?, ?)", row)
        self._database.execute(
            """DELETE FROM subscription WHERE user = ? AND endpoint NOT IN
               (SELECT endpoint FROM subscription WHERE user = ? ORDER BY added_at DESC LIMIT ?)""",
            (user, user, _MOST_SUBSCRIPTIONS),
        )

    def unsubscribe(self, endpoint: str, user: str | None = None) -> None:
        """Removes a browser."""
        text = "DELETE FROM subscription WHERE endpoint = ?" + ("" if user is None else " AND user = ?")
        self._database.execute(text, (endpoint,) if user is None else (endpoint, user))

    def subscriptions(self, user: str) -> list[dict[str, Any]]:
        """A person's browsers."""
        rows = self._database.execute("SELECT info FROM subscription WHERE user = ?", (user,))
        return [json.loads(info) for (info,) in rows]

    def is_told(self, user: str, event: str) -> bool:
        """Whether a person has been told of an event, or is to be told later."""
        return any(
            self._database.execute(
                f"SELECT 1 FROM {table} WHERE user = ? AND event = ?", (user, event)
            ).fetchone()
            for table in ("told", "held")
        )

    def tell(self, user: str, event: str) -> None:
        """Notes that a person has been told, and forgets whom that was long ago."""
        now = time.time()
        self._database.execute("INSERT OR REPLACE INTO told VALUES (?, ?, ?)", (user, event, now))
        self._database.execute("DELETE FROM told WHERE at < ?", (now - _KEEP_S,))

    def hold(self, notice: "Notice", until: float) -> None:
        """Keeps a notice until a time."""
        row = (notice.user, notice.event, until, msgspec.json.encode(notice).decode())
        self._database.execute("INSERT OR REPLACE INTO held VALUES (?, ?, ?, ?)", row)

    def due(self) -> list[tuple[str, list["Notice"]]]:
        """The people whose quiet hours are over, with what was held of each, oldest first."""
        users = self._database.execute(
            "SELECT user FROM held GROUP BY user HAVING min(until) <= ? LIMIT 100", (time.time(),)
        ).fetchall()
        found = []
        for (user,) in users:
            rows = self._database.execute("SELECT notice FROM held WHERE user = ? ORDER BY rowid", (user,))
            found.append((user, [msgspec.json.decode(text, type=Notice) for (text,) in rows]))
        return found

    def release(self, user: str, notices: list["Notice"]) -> None:
        """What was held of a person has been told."""
        for notice in notices:
            self.tell(user, notice.event)
            self._database.execute("DELETE FROM held WHERE user = ? AND event = ?", (user, notice.event))


class Notice(msgspec.Struct, frozen=True):
    """What a person is told. One with the same `tag` takes the place of the one before."""

    user: str
    event: str
    type: str
    title: str
    body: str
    tag: str
    urgent: bool = False
    count: int = 1


@dataclass(frozen=True, slots=True)
class Person:
    """What a notice has to respect."""

    schedule: Schedule
    titles: Mapping[str, str]
    enabled: frozenset[str]
    urgent: frozenset[str]


class Gateway:
    """From outcomes to notices."""

    def __init__(self, store: Store) -> None:
        self.store = store
        headers = {"authorization": f"Bearer {TOKEN}"} if TOKEN else {}
        self.http = httpx.AsyncClient(base_url=PUSHSSE, headers=headers, timeout=_CALL_S)
        self.hook = httpx.AsyncClient(timeout=_CALL_S)

    # From Kafka

    async def forward(self) -> None:
        """Reads outcomes, for ever; an offset is committed when its notices are told or held."""
        consumer = AIOKafkaConsumer(
            TOPIC,
            bootstrap_servers=KAFKA,
            group_id="offline-gateway",
            enable_auto_commit=False,
            auto_offset_reset="latest",
        )
        await until_there()
        await consumer.start()
        logger.info("reading %s at %s", TOPIC, KAFKA)
        try:
            while True:
                batches = await consumer.getmany(timeout_ms=1000, max_records=200)
                records = [record for batch in batches.values() for record in batch]
                limit = asyncio.Semaphore(_AT_ONCE)
                await asyncio.gather(*(self._take(record.value, limit) for record in records))
                if records:
                    await consumer.commit()
        finally:
            await consumer.stop()

    async def _take(self, value: bytes | None, limit: asyncio.Semaphore) -> None:
        try:
            outcome = json.loads(value or b"{}")
            if outcome.get("outcome") != "offline":
                return
            user, event = outcome["user"], outcome["event"]
        except (ValueError, KeyError, AttributeError) as error:
            logger.warning("a record of %s can't be read, and is skipped: %s", TOPIC, error)
            return
        async with limit:
            if not self.store.is_told(user, event):
                await self._decide(outcome)

    async def _decide(self, outcome: Mapping[str, Any]) -> None:
        """Tells a person now, or holds it until their quiet hours are over."""
        user, name = outcome["user"], outcome["type"]
        person = await self._person(user)
        if person.enabled and name not in person.enabled:
            # Switched off since.
            return
        data = outcome.get("data") or {}
        notice = Notice(
            user,
            outcome["event"],
            name,
            person.titles.get(name, name),
            data.get("desc") or _text(data.get("message")),
            tag=data.get("collapse") or outcome["event"],
            urgent=name in person.urgent,
        )
        until = None if notice.urgent else quiet_until(person.schedule, datetime.now(UTC))
        if until is not None:
            self.store.hold(notice, until.timestamp())
            return
        await self.send(notice)
        self.store.tell(user, notice.event)

    async def _person(self, user: str) -> Person:
        """The person's preferences; tried until pushsse answers."""
        path = f"/v1/users/{_segment(user)}/preferences"
        tries = 0
        while True:
            try:
                reply = await self.http.get(path)
                reply.raise_for_status()
                found = reply.json()
                break
            except (httpx.HTTPError, ValueError) as error:
                logger.warning("pushsse doesn't say what a person prefers: %s; trying again", error)
                tries += 1
                await asyncio.sleep(min(30.0, 2.0**tries * random.uniform(0.5, 1.0)))
        members = {name: found[name] for name in ("quiet", "zone", "paused_until") if name in found}
        types = found["types"]
        return Person(
            msgspec.convert(members, Schedule),
            {each["name"]: each["title"] for each in types},
            frozenset(each["name"] for each in types if each["enabled"]),
            frozenset(each["name"] for each in types if each.get("urgent")),
        )

    async def release_held(self) -> None:
        """Tells people whose quiet hours are over, in one notice each, for ever."""
        while True:
            for user, notices in self.store.due():
                await self.send(_summary(user, notices))
                self.store.release(user, notices)
            await asyncio.sleep(1.0)

    # To people

    async def send(self, notice: Notice) -> None:
        """Sends to all browsers of a person, and to the webhook."""
        pushes = [self._push(info, notice) for info in self.store.subscriptions(notice.user)]
        await asyncio.gather(*pushes, *([self._call(notice)] if WEBHOOK else []))

    async def _push(self, info: dict[str, Any], notice: Notice) -> None:
        content = {"title": notice.title, "body": notice.body, "tag": notice.tag, "event": notice.event}
        # What replaces an earlier one does so at the push service, too (RFC 8030, 5.4: 32 characters).
        topic = base64.urlsafe_b64encode(sha256(notice.tag.encode()).digest()).decode()[:32]
        for number in range(_TRIES):
            try:
                await asyncio.to_thread(
                    webpush,
                    info,
                    json.dumps(content),
                    vapid_private_key=str(KEY),
                    vapid_claims={"sub": CONTACT},
                    ttl=3600,
                    timeout=_CALL_S,
                    headers={"Topic": topic, "Urgency": "high" if notice.urgent else "normal"},
                )
                return
            except WebPushException as error:
                status = error.response.status_code if error.response is not None else 0
                if status in (404, 410):
                    # The browser has unsubscribed.
                    self.store.unsubscribe(info["endpoint"])
                    return
                if status and status != 429 and status < 500:
                    logger.warning("a push service refuses a notice: %d", status)
                    return
                reason: object = status or error
            except OSError as error:
                reason = error
            await asyncio.sleep(2.0**number * random.uniform(0.5, 1.0))
        logger.warning("a push service takes no notice after %d tries: %s", _TRIES, reason)

    async def _call(self, notice: Notice) -> None:
        for number in range(_TRIES):
            try:
                reply = await self.hook.post(WEBHOOK, json=msgspec.to_builtins(notice))
                if reply.status_code < 500 and reply.status_code != 429:
                    return
                reason: object = reply.status_code
            except httpx.HTTPError as error:
                reason = error
            await asyncio.sleep(2.0**number * random.uniform(0.5, 1.0))
        logger.warning("the webhook takes no notice after %d tries: %s", _TRIES, reason)

    # The page's calls

    async def key(self, _: Request) -> Response:
        """The public key that the page subscribes with."""
        return JSONResponse({"key": public_key()})

    async def subscription(self, request: Request) -> Response:
        """Adds or removes the browser of whoever is asking, which pushsse says."""
        user = await self._user(request)
        if user is None:
            return Response(status_code=401)
        try:
            info = json.loads(await request.body())
            endpoint, keys = str(info["endpoint"]), info["keys"]
            wanted = {"endpoint": endpoint, "keys": {name: str(keys[name]) for name in ("p256dh", "auth")}}
        except (ValueError, KeyError, TypeError):
            return JSONResponse({"error": "isn't a PushSubscription"}, 422)
        if request.method == "DELETE":
            self.store.unsubscribe(endpoint, user)
            return Response(status_code=204)
        if not _is_push_service(endpoint):
            return JSONResponse({"error": "the endpoint isn't a push service in GATEWAY_PUSH_HOSTS"}, 422)
        self.store.subscribe(user, wanted)
        return Response(status_code=204)

    async def _user(self, request: Request) -> str | None:
        passed = {name: value for name in ("authorization", "cookie") if (value := request.headers.get(name))}
        query = {"user": request.query_params["user"]} if "user" in request.query_params else {}
        with suppress(httpx.HTTPError, ValueError, KeyError):
            async with httpx.AsyncClient(base_url=PUSHSSE, timeout=_CALL_S) as client:
                reply = await client.get("/v1/me", headers=passed, params=query)
                return str(reply.json()["user"]) if reply.status_code == 200 else None
        return None


def _summary(user: str, notices: list[Notice]) -> Notice:
    """One notice for all that was held; of those with the same tag the last one counts."""
    last = {notice.tag: notice for notice in notices}
    if len(last) == 1:
        return next(iter(last.values()))
    titles = ", ".join(dict.fromkeys(notice.title for notice in last.values()))
    return Notice(
        user,
        notices[-1].event,
        "summary",
        f"{len(last)} new messages",
        titles[:500],
        "summary",
        count=len(last),
    )


def _text(message: object) -> str:
    return (message if isinstance(message, str) else json.dumps(message, ensure_ascii=False))[:500]


def _segment(user: str) -> str:
    return httpx.URL("http://x/").copy_with(path=f"/{user}").raw_path.decode()[1:].replace("/", "%2F")


def _is_push_service(endpoint: str) -> bool:
    try:
        found = urlsplit(endpoint)
        host = found.hostname or ""
    except ValueError:
        return False
    local = host in ("127.0.0.1", "localhost") and host in HOSTS
    allowed = any(host == each or host.endswith(f".{each}") for each in HOSTS if each)
    return allowed and (found.scheme == "https" or local)


async def until_there() -> None:
    """Waits for the topic. A consumer that began before would skip what is written first."""
    told = ""
    while True:
        admin = AIOKafkaAdminClient(bootstrap_servers=KAFKA)
        try:
            await admin.start()
            if TOPIC in await admin.list_topics():
                return
            why = f"{TOPIC} isn't there: make it, and run nodes with PUSHSSE_OUTCOMES=on"
        except KafkaError as error:
            why = f"{KAFKA} can't be reached: {error}"
        finally:
            await admin.close()
        if why != told:
            logger.warning("%s; trying again until it works", why)
            told = why
        await asyncio.sleep(_LOOK_S)


def public_key() -> str:
    """The public key in the form that browsers take."""
    point = Vapid02.from_file(str(KEY)).public_key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    return base64.urlsafe_b64encode(point).rstrip(b"=").decode()


async def serve() -> None:
    """Runs everything."""
    with closing(Store(STORE)) as store:
        gateway = Gateway(store)
        app = Starlette(
            routes=[
                Route("/key", gateway.key),
                Route("/subscriptions", gateway.subscription, methods=["POST", "DELETE"]),
                Mount("/", StaticFiles(directory=HERE / "page", html=True)),
            ]
        )
        server = uvicorn.Server(uvicorn.Config(app, port=PORT, log_level="warning"))
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(gateway.forward()), tasks.create_task(gateway.release_held())]
            await server.serve()
            for task in running:
                task.cancel()


def main() -> None:
    """The command line."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s %(message)s")
    for library in ("httpx", "aiokafka"):
        logging.getLogger(library).setLevel(logging.WARNING)
    if sys.argv[1:] == ["keys"]:
        if KEY.exists():
            raise SystemExit(f"{KEY} is there already: browsers have subscribed with it")
        made = Vapid02()
        made.generate_keys()
        made.save_key(str(KEY))
        KEY.chmod(0o600)
        return
    if not KEY.exists():
        raise SystemExit(f"{KEY} isn't there: run `python gateway.py keys` once")
    # Ctrl-C: uvicorn has ended by then.
    with suppress(KeyboardInterrupt):
        asyncio.run(serve())


if __name__ == "__main__":
    main()
