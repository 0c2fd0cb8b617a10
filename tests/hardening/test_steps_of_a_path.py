"""`.` and `..` are no names: in the path of a URL they are steps, also escaped, and lead to another call."""

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from pushsse.event import is_id, is_user
from tests.serving import Running, serving

pytestmark = pytest.mark.anyio
STEPS = (".", "..")
# These are steps for nobody.
NAMES = ("...", "..a", "a..", ".a", "a.")


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Running]:
    async with serving(tmp_path) as running:
        yield running


def test_clients_take_them_for_steps() -> None:
    # Why: what a program makes of the path that it meant.
    urls = [httpx.URL(f"http://node/v1/users/{step}/preferences").path for step in STEPS]
    assert urls == ["/v1/users/preferences", "/v1/preferences"]


@pytest.mark.parametrize("name", STEPS)
async def test_nobody_and_nothing_is_called_so(node: Running, name: str) -> None:
    reply = await node.http.get(f"/v1/preferences?user={name}")
    assert (reply.status_code, reply.json()["code"]) == (400, "user_invalid")
    event = {"type": "news", "message": 1, "to": "all"}
    few, many = ["ann", name], [*(f"user-{number}" for number in range(30)), name]
    for at, changed in (
        ("$.type", {"type": name}),
        ("$.id", {"id": name}),
        ("$.to.users[1]", {"to": {"users": few}}),
        ("$.to.users[30]", {"to": {"users": many}}),
    ):
        reply = await node.http.post("/v1/events", json=event | changed)
        assert (reply.status_code, reply.json()["errors"][0]["at"]) == (422, at)
    for path in ("/v1/questions?user=ann", "/v1/chat/completions?user=ann"):
        body = {"text": "hi", "conversation": name, "messages": [{"role": "user", "content": "hi"}]}
        wanted = {"text", "conversation"} if "questions" in path else {"messages"}
        headers = {"X-Conversation-Id": name}
        reply = await node.http.post(path, json={key: body[key] for key in wanted}, headers=headers)
        assert reply.status_code == 422
    chat = {"id": name, "messages": [{"role": "user", "parts": [{"type": "text", "text": "hi"}]}]}
    assert (await node.http.post("/v1/chat?user=ann", json=chat)).status_code == 422
    run = {"threadId": name, "runId": "1", "messages": [{"id": "1", "role": "user", "content": "hi"}]}
    assert (await node.http.post("/v1/agui?user=ann", json=run)).status_code == 422
    rows = [{"user": name, "type": "news", "enabled": False}]
    assert (await node.http.post("/v1/preferences/import?user=ann", json={"rows": rows})).status_code == 422
    assert not is_user(name)
    assert not is_id(name)
    # Escaped, httpx sends it as it is, where others go a step.
    escaped = name.replace(".", "%2e")
    for method, path in (("PUT", f"/v1/types/{escaped}"), ("POST", f"/v1/users/{escaped}/kick")):
        assert (await node.http.request(method, f"{path}?user=ann", json={})).status_code == 400


@pytest.mark.parametrize("name", NAMES)
async def test_other_names_may_have_dots(node: Running, name: str) -> None:
    event = {"type": name, "message": 1, "to": {"users": [name, "ann"]}, "id": name}
    assert (await node.http.post("/v1/events", json=event)).status_code == 202
    asked = {"text": "hi", "conversation": name}
    assert (await node.http.post(f"/v1/questions?user={name}", json=asked)).status_code == 202
    assert (await node.http.post(f"/v1/users/{name}/kick?user=ann", json={})).status_code == 200
