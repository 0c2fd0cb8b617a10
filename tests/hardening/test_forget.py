"""`DELETE /v1/users/USER`: the person's streams end everywhere, and whoever comes back begins anew."""

import asyncio
import json
import time
from pathlib import Path

import pytest

from tests.backplane.redis_server import RedisServer
from tests.hardening.test_kick import (
    bearer,
    issued_now,
    status,
    stream,
    two_nodes,
    until_revoked,
)
from tests.serving import Running

pytestmark = [pytest.mark.anyio, pytest.mark.real]
# Made before the first test runs.
ROOT = bearer("root", scope="pushsse:admin", exp=time.time() + 36_000)


async def switch(node: Running, headers: dict[str, str], **types: bool) -> None:
    reply = await node.http.post("/v1/preferences", headers=headers, json={"types": types})
    assert reply.status_code == 200, reply.text


async def publish(node: Running, type_: str, message: str) -> None:
    body = {"type": type_, "message": message, "to": "all"}
    reply = await node.http.post("/v1/events", headers=bearer("ops", scope="pushsse:publish"), json=body)
    assert reply.status_code == 202


async def test_streams_end_on_all_nodes_and_the_switches_of_whoever_comes_back_work_at_once(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    async with two_nodes(redis_server, f"sqlite://{tmp_path}/both.db") as (one, two):
        await two.node.preference_store.join(["alarm"], hidden=False)
        before = issued_now("ann")
        # Some changes, so that the next ones would be older if they were numbered anew.
        for on in (False, True, False):
            await switch(one, before, alarm=on)
        async with stream(one, before) as here, stream(two, before) as there, stream(two, bearer("bo")) as bo:
            for each in (here, there, bo):
                await each.ready()
            reply = await one.http.delete("/v1/users/ann", headers=ROOT)
            assert reply.status_code == 200
            assert reply.json()["deleted"] == {
                "person": 1, "changes": 0, "switches": 1, "switched": 3, "questions": 0, "conversations": 0,
                "seen": 0, "kicks": 1,
            }  # fmt: skip
            assert {entry["where"] for entry in reply.json()["remaining"]} >= {"log", "backups"}
            await until_revoked(here)
            await until_revoked(there)
            await publish(one, "alarm", "still here")
            assert json.loads((await bo.until("alarm")).data)["message"] == "still here"
        assert await status(two, before) == (401, "token_revoked")
        # A token of the next second, as after signing in again.
        fresh = bearer("ann", iat=int(time.time()) + 1)
        async with stream(two, fresh) as again:
            await again.ready()
            await publish(one, "alarm", "on by default")
            assert json.loads((await again.until("alarm")).data)["message"] == "on by default"
            await switch(one, fresh, alarm=False)
            await again.until("preferences")
            await publish(one, "alarm", "off")
            await publish(one, "news", "last")
            names = []
            while (event := await again.next()).event != "news":
                names.append(event.event)
            assert "alarm" not in names


async def test_without_redis_nothing_is_deleted(redis_server: RedisServer, tmp_path: Path) -> None:
    async with two_nodes(redis_server, f"sqlite://{tmp_path}/both.db") as (one, _):
        await one.node.preference_store.join(["alarm"], hidden=False)
        await switch(one, issued_now("ann"), alarm=False)
        redis_server.freeze()
        reply = await one.http.delete("/v1/users/ann", headers=ROOT)
        assert (reply.status_code, reply.json()["code"]) == (503, "unavailable")
        assert await one.node.preference_store.off_among(["ann"], ["alarm"]) == {("ann", "alarm")}
        redis_server.thaw()


async def test_only_one_segment_of_the_path_is_a_name(redis_server: RedisServer, tmp_path: Path) -> None:
    async with two_nodes(redis_server, f"sqlite://{tmp_path}/both.db") as (one, _):
        await one.node.preference_store.join(["alarm"], hidden=False)
        await switch(one, issued_now("ann"), alarm=False)
        for path in ("ann/kick", "ann/../../stream", "../stream", "..", "x/../ann", "ann/", ""):
            # As it is written: a client would tidy it up.
            reader, writer = await asyncio.open_connection("127.0.0.1", one.port)
            head = f"DELETE /v1/users/{path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
            writer.write(f"{head}Authorization: {ROOT['authorization']}\r\n\r\n".encode())
            assert (await reader.readline()).split()[1] in (b"404", b"405"), path
            writer.close()
        assert (await one.http.post("/v1/users/x%2Fkick", headers=ROOT)).status_code == 404
        assert not one.node.kicked.size
        assert await one.node.preference_store.off_among(["ann"], ["alarm"]) == {("ann", "alarm")}
