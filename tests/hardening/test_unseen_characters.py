"""Names and ids with characters that nobody sees would look like somebody else's."""

from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.serving import Running, serving

pytestmark = pytest.mark.anyio
UNSEEN = [0xFEFF, 0xAD, 0x34F, 0x61C, 0x180E, *range(0x200B, 0x2010), *range(0x2028, 0x202F)]
UNSEEN += [*range(0x2060, 0x2070), 0xFE0F, 0xFFF9, 0xFFFA, 0xFFFB, 0xFFFE, 0x2800]
UNSEEN += [0x1BCA0, 0x1D173, 0xE0001, 0xE0061, 0xE01EF]


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Running]:
    async with serving(tmp_path) as running:
        yield running


@pytest.mark.parametrize("number", UNSEEN, ids=hex)
async def test_what_nobody_sees_is_in_no_name_and_no_id(node: Running, number: int) -> None:
    event = {"type": "news", "message": 1, "to": "all"}
    for name in (chr(number) + "ann", "ann" + chr(number), "a" + chr(number) + "nn"):
        reply = await node.http.get(f"/v1/preferences?user={quote(name)}")
        assert (reply.status_code, reply.json()["code"]) == (400, "user_invalid")
        for at, changed in (
            ("$.to.users[1]", {"to": {"users": ["ann", name]}}),
            ("$.id", {"id": name}),
        ):
            reply = await node.http.post("/v1/events", json=event | changed)
            assert (reply.status_code, reply.json()["errors"][0]["at"]) == (422, at)
        reply = await node.http.post(f"/v1/events?type=news&to={quote(name)}", content="text")
        assert reply.status_code == 422


async def test_names_of_all_scripts_are_names(node: Running) -> None:
    for name in ("张三", "Ünal", "אבי", "नेहा", "علی", "ann@example.com", "👩"):
        assert (await node.http.get(f"/v1/preferences?user={quote(name)}")).status_code == 200
        event = {"type": "news", "message": 1, "to": {"users": [name]}, "id": name}
        assert (await node.http.post("/v1/events", json=event)).status_code == 202
