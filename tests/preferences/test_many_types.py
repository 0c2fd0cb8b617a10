"""An id in the names of types: more of them than the catalogue holds."""

import json
from pathlib import Path

import httpx
import pytest

from tests.cli.running import served
from tests.waiting import until

pytestmark = pytest.mark.real

MOST = 1_000


def body(count: int) -> str:
    return "\n".join(json.dumps({"type": f"order-{n}", "to": "all", "message": n}) for n in range(count))


def test_types_without_room_are_delivered_and_said_once(tmp_path: Path) -> None:
    with served(tmp_path) as node, httpx.Client(base_url=node.url, trust_env=False) as client:
        position = client.get("/v1/events?user=ann").json()["position"]
        assert client.post("/v1/events?user=ops", content=body(MOST)).json()["accepted"] == MOST

        def listed() -> int:
            return len(client.get("/v1/preferences?user=ann").json()["types"])

        until(lambda: listed() == MOST, "full catalogue")
        late = {"type": "order-late", "to": "all", "message": "late"}

        def left_out() -> float:
            client.post("/v1/events?user=ops", json=late)
            text = client.get("/metrics").text
            line = next(x for x in text.split("\n") if x.startswith("pushsse_types_left_out_total"))
            return float(line.split()[1])

        until(lambda: left_out() >= 3, "word of it")
        assert "pushsse_types 1000.0" in client.get("/metrics").text
        assert listed() == MOST
        got = client.get("/v1/events", params={"user": "ann", "after": position, "limit": 1000}).json()
        rest = client.get("/v1/events", params={"user": "ann", "after": got["position"]}).json()
        assert [e["event"] for e in got["events"]] == [f"order-{n}" for n in range(MOST)]
        assert {e["event"] for e in rest["events"]} == {"order-late"}
        answer = client.post("/v1/preferences?user=ann", json={"types": {"order-late": False}})
        assert (answer.status_code, answer.json()["errors"][0]["at"]) == (422, "$.types.order-late")
        assert node.logged.count("the catalogue is full") == 1


def test_where_new_types_are_refused_what_has_no_room_is_refused(tmp_path: Path) -> None:
    with served(tmp_path, PUSHSSE_NEW_TYPES="refuse") as node:
        late = {"type": "order-late", "to": "all", "message": "late"}

        def refused() -> bool:
            return httpx.post(f"{node.url}/v1/events", json=late, trust_env=False).status_code == 422

        until(refused, "refusal")
