"""The catalogue by HTTP, and what it does on open streams, in replays and for other devices."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.serving import Running, serving
from tests.waiting import eventually

pytestmark = pytest.mark.anyio


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Running]:
    file = [{"name": "law", "mandatory": True, "title": {"en": "Law", "zh": "法律"}, "order": 5}]
    async with serving(tmp_path, types=file) as running:
        await running.until_known("law")
        yield running


async def put(node: Running, name: str, /, **rules: object) -> httpx.Response:
    return await node.http.put(f"/v1/types/{name}?user=root", json=rules)


async def change(node: Running, user: str, **wanted: object) -> Any:
    reply = await node.http.post(f"/v1/preferences?user={user}", json=wanted)
    assert reply.status_code == 200, reply.text
    return reply.json()


async def enabled(node: Running, user: str) -> dict[str, bool]:
    reply = await node.http.get(f"/v1/preferences?user={user}")
    return {one["name"]: one["enabled"] for one in reply.json()["types"]}


async def test_a_type_is_set_listed_and_removed(node: Running) -> None:
    rules = {"title": {"zh": "警报", "en": "Alarms"}, "category": "ops", "default": False, "urgent": True}
    made = await put(node, "alarm", **rules)
    assert made.status_code == 201
    assert made.json() == rules | {
        "name": "alarm",
        "description": "",
        "mandatory": False,
        "order": 0,
        "hidden": False,
        "in_file": False,
    }
    assert (await put(node, "alarm", **rules)).status_code == 200
    listed = (await node.http.get("/v1/types?user=root")).json()["types"]
    assert listed[0] == made.json()
    assert (listed[1]["name"], listed[1]["in_file"], listed[1]["mandatory"]) == ("law", True, True)
    assert await enabled(node, "ann") == {"alarm": False, "law": True}
    assert (await node.http.delete("/v1/types/alarm?user=root")).status_code == 204
    gone = await node.http.delete("/v1/types/alarm?user=root")
    assert (gone.status_code, gone.json()["code"]) == (404, "type_unknown")
    assert await enabled(node, "ann") == {"law": True}


@pytest.mark.parametrize(
    ("name", "rules", "status", "at"),
    [
        ("law", {}, 409, "type_in_file"),
        ("ping", {}, 400, "type_invalid"),
        ("pushsse.x", {}, 400, "type_invalid"),
        ("a%20b", {}, 400, "type_invalid"),
        ("a%2Fb", {}, 404, "not_found"),
        ("x" * 65, {}, 400, "type_invalid"),
        ("alarm", {"default": "off"}, 422, "$.default"),
        ("alarm", {"name": "alarm"}, 422, "$"),
        ("alarm", {"category": "a b"}, 422, "$.category"),
        ("alarm", {"title": "x" * 201}, 422, "$.title"),
        ("alarm", {"title": {"not a language": "x"}}, 422, "$.title"),
        ("alarm", {"description": {"en": "x" * 2001}}, 422, "$.description"),
        ("alarm", {"order": 1 << 40}, 422, "$.order"),
    ],
)
async def test_what_cannot_be_set_is_named(
    node: Running, name: str, rules: dict[str, object], status: int, at: str
) -> None:
    reply = await put(node, name, **rules)
    assert reply.status_code == status, reply.text
    if status == 422:
        assert reply.json()["errors"][0]["at"].startswith(at)
        assert "got " in reply.json()["detail"]
    else:
        assert reply.json()["code"] == at


async def test_texts_come_in_the_language_that_is_asked_for(node: Running) -> None:
    await put(node, "alarm", title={"en": "Alarms", "zh": "警报"}, description={"en": "Loud", "zh": "很吵"})
    for header, title, description in (
        ("zh-CN,zh;q=0.9,en;q=0.8", "警报", "很吵"),
        ("fr, en;q=0.1", "Alarms", "Loud"),
        ("", "Alarms", "Loud"),
    ):
        reply = await node.http.get("/v1/preferences?user=ann", headers={"accept-language": header})
        assert reply.headers["vary"] == "Accept-Language"
        [alarm, _] = reply.json()["types"]
        assert (alarm["title"], alarm["description"]) == (title, description)
    asked = {"accept-language": "zh"}
    reply = await node.http.post("/v1/preferences?user=ann", json={"types": {}}, headers=asked)
    assert [one["title"] for one in reply.json()["types"]] == ["警报", "法律"]


async def test_a_default_acts_on_open_streams_and_in_replays(node: Running) -> None:
    await put(node, "promo")
    async with node.stream("ann") as ann, node.stream("bo") as bo:
        start = (await ann.next()).id
        await bo.ready()
        await change(node, "bo", types={"promo": True})
        await node.publish("promo", 1)
        assert await ann.messages(1) == [1]
        await put(node, "promo", default=False)
        await eventually(lambda: "promo" in person(node, "ann").off)
        await node.publish("promo", 2)
        await node.publish("promo", 3, to=["ann", "bo"])
        await node.publish("law", 4)
        # Who has chosen it keeps it.
        assert await bo.messages(4) == [1, 2, 3, 4]
        assert await ann.messages(1) == [4]
        assert await replayed(node, "ann", start) == [4]
        await put(node, "promo", default=True)
        await eventually(lambda: "promo" not in person(node, "ann").off)
        await node.publish("promo", 5)
        assert await ann.messages(1) == [5]
        assert (await replayed(node, "ann", start))[-2:] == [4, 5]


async def test_what_became_mandatory_reaches_who_had_it_off_also_in_a_replay(node: Running) -> None:
    await put(node, "terms")
    async with node.stream("ann") as ann:
        start = (await ann.next()).id
        await change(node, "ann", types={"terms": False})
        await node.publish("terms", 1)
        await put(node, "terms", mandatory=True)
        await eventually(lambda: not person(node, "ann").off)
        await node.publish("terms", 2)
        await node.publish("terms", 3, to="ann")
        assert await ann.messages(2) == [2, 3]
    # The log says that it was off from the switch on; the catalogue has changed that since.
    assert (await replayed(node, "ann", start))[-2:] == [2, 3]
    refused = await node.http.post("/v1/preferences?user=ann", json={"types": {"terms": False}})
    assert refused.status_code == 422
    assert refused.json()["errors"][0]["at"] == "$.types.terms"
    # The old switch counts again when it isn't mandatory any more.
    await put(node, "terms")
    assert (await enabled(node, "ann"))["terms"] is False


async def test_a_category_acts_as_a_switch_does(node: Running) -> None:
    for name in ("promo", "tips"):
        await put(node, name, category="marketing")
    async with node.stream("ann") as phone, node.stream("ann") as desk:
        start = (await phone.next()).id
        await desk.ready()
        shown = await change(node, "ann", categories={"marketing": False}, types={"tips": True})
        assert shown["categories"] == {"marketing": False}
        assert [one["enabled"] for one in shown["types"]] == [False, True, True]
        assert (await node.http.get("/v1/preferences?user=ann")).json() == shown
        for device in (phone, desk):
            told = json.loads((await device.until("preferences")).data)
            assert told == {"types": {"promo": False}, "categories": {"marketing": False}}
        for to in ("all", "ann"):
            await node.publish("promo", "off", to=to)
            await node.publish("tips", "on", to=to)
        assert await phone.messages(2) == ["on", "on"]
        assert await replayed(node, "ann", start) == ["on", "on"]
        await change(node, "ann", categories={"marketing": None})
        await node.publish("promo", "again")
        assert await phone.messages(1) == ["again"]
        # What was published while it was off stays away.
        assert await replayed(node, "ann", start) == ["on", "on", "again"]
    refused = await node.http.post("/v1/preferences?user=ann", json={"categories": {"nope": True}})
    assert (refused.status_code, refused.json()["errors"][0]["at"]) == (422, "$.categories.nope")


async def test_quiet_hours_are_told_and_hold_nothing_back(node: Running) -> None:
    night = {"days": ["mon", "sun"], "from": "00:00", "to": "24:00"}
    schedule = {"quiet": [night], "zone": "Asia/Shanghai", "paused_until": "2099-01-01T08:00:00+08:00"}
    async with node.stream("ann") as phone:
        assert "quiet" not in await phone.ready()
        shown = await change(node, "ann", **schedule)
        told = json.loads((await phone.until("preferences")).data)
        kept = schedule | {"paused_until": "2099-01-01T00:00:00Z"}
        assert told == {"types": {}} | kept
        assert {name: shown[name] for name in kept} == kept
        await node.publish("law", 1)
        assert await phone.messages(1) == [1]
        async with node.stream("ann") as desk:
            assert (await desk.ready()).items() >= kept.items()
        # What isn't said stays.
        assert (await change(node, "ann", paused_until=None))["quiet"] == [night]
        told = json.loads((await phone.until("preferences")).data)
        assert (told["quiet"], told["paused_until"]) == ([night], None)
        assert (await change(node, "ann", quiet=[], zone=""))["zone"] == ""
        async with node.stream("ann") as desk:
            assert "quiet" not in await desk.ready()


@pytest.mark.parametrize(
    ("wanted", "at"),
    [
        ({"quiet": [{"from": "22:00", "to": "07:00"}]}, "$.zone"),
        ({"quiet": [], "zone": "Mars/Olympus"}, "$.zone"),
        ({"quiet": [{"from": "25:00", "to": "07:00"}], "zone": "UTC"}, "$.quiet[0]"),
        ({"quiet": [{"from": "22:00"}], "zone": "UTC"}, "$.quiet[0]"),
        ({"quiet": [{"from": "22:00", "to": "22:00"}], "zone": "UTC"}, "$.quiet[0].to"),
        ({"quiet": [{"days": ["monday"], "from": "22:00", "to": "07:00"}], "zone": "UTC"}, "$.quiet[0].days"),
        ({"quiet": [{"from": "22:00", "to": "07:00"}] * 21, "zone": "UTC"}, "$.quiet"),
        ({"paused_until": "2099-01-01T00:00:00"}, "$.paused_until"),
        ({"paused_until": "tomorrow"}, "$.paused_until"),
    ],
)
async def test_quiet_hours_that_cannot_be_used_are_named(node: Running, wanted: object, at: str) -> None:
    reply = await node.http.post("/v1/preferences?user=ann", json=wanted)
    assert reply.status_code == 422
    assert reply.json()["errors"][0]["at"].startswith(at)


async def test_an_administrator_sees_and_changes_somebody_s(node: Running) -> None:
    await put(node, "promo", category="marketing")
    async with node.stream("ann/b") as ann:
        await ann.ready()
        path = "/v1/users/ann%2Fb/preferences?user=root"
        changed = await node.http.post(path, json={"categories": {"marketing": False}})
        assert changed.status_code == 200
        assert json.loads((await ann.until("preferences")).data)["types"] == {"promo": False}
        assert (await node.http.get(path)).json() == changed.json()
    assert await enabled(node, "root") == {"promo": True, "law": True}
    assert (await node.http.post(path, json={"types": {"law": False}})).status_code == 422
    assert (await node.http.post(path, json={})).status_code == 422
    assert (await node.http.get("/v1/users/a%20b/preferences?user=root")).status_code == 400


def person(node: Running, user: str) -> Any:
    [subscriber, *_] = node.node.hub.subscribers_of(user)
    return subscriber.person


async def replayed(node: Running, user: str, position: str) -> list[Any]:
    """The messages after a position, as one gets them who comes back with it."""
    reply = await node.http.get("/v1/events", params={"user": user, "after": position})
    found = [one["data"].get("message") for one in reply.json()["events"] if one["event"] != "preferences"]
    async with node.stream(user, last_event_id=position) as stream:
        assert (await stream.ready())["resume"] == "complete"
        assert await stream.messages(len(found)) == found
    return found


async def test_an_import_that_cannot_be_used_is_refused_as_a_whole(node: Running) -> None:
    path = "/v1/preferences/import?user=root"
    row = {"user": "ann", "type": "law", "enabled": True}
    for rows, at in (
        ([row, {"user": "a b", "type": "law", "enabled": True}], "$.rows[1].user"),
        ([row, {"user": "ann", "type": "law"}], "$.rows[1].enabled"),
        ([row, {"user": "ann", "type": "law", "enabled": False}], "$.rows[1].enabled"),
        ([row, row | {"colour": 1}], "$.rows[1].colour"),
        ([row] * 501, "$.rows"),
        ([], "$.rows"),
    ):
        reply = await node.http.post(path, json={"rows": rows})
        assert reply.status_code == 422
        assert reply.json()["errors"][0]["at"].replace("[...]", "[1]") == at
    assert (await node.http.post(path, json={"rows": [row] * 20_000})).status_code == 413
    exported = await node.http.get("/v1/preferences/export?user=root")
    assert exported.json()["rows"] == []
    for wrong in ("after=x", "after=bm9uZQ==", "after=%C3%A9", "after=WyJraW5kIl0=", "limit=0", "limit=1001"):
        reply = await node.http.get(f"/v1/preferences/export?user=root&{wrong}")
        assert (reply.status_code, reply.json()["code"]) == (400, "parameter_invalid"), wrong


async def test_where_new_types_are_refused_one_that_is_set_is_accepted_at_once(tmp_path: Path) -> None:
    async with serving(tmp_path, new_types="refuse", types=[{"name": "law"}]) as node:
        event = {"type": "news", "message": 1, "to": "all"}

        async def refused() -> bool:
            return (await node.http.post("/v1/events?user=ops", json=event)).status_code == 422

        await eventually(refused)
        for _ in range(5):
            assert (await put(node, "news")).status_code == 201
            assert (await node.http.post("/v1/events?user=ops", json=event)).status_code == 202
            assert (await node.http.delete("/v1/types/news?user=root")).status_code == 204
            assert await refused()


async def test_an_explanation_names_each_switch_of_the_person(node: Running) -> None:
    await put(node, "promo", category="marketing")
    await change(node, "ann", types={"promo": False})
    await change(node, "ann", categories={"marketing": False})
    await change(node, "ann", types={"promo": None}, categories={"marketing": None})
    await change(node, "ann", paused_until="2126-12-01T08:00:00Z")

    async def switched() -> list[str]:
        found = (await node.http.get("/v1/users/ann/explain/none?user=root")).json()
        return [step["detail"] for step in found["timeline"] if step["what"] == "switched"]

    assert await switched() == [
        "promo off",
        "category marketing off",
        "promo on, category marketing by default",
        "quiet hours",
    ]


async def test_an_explanation_names_all_switches_of_a_change_with_several_events(node: Running) -> None:
    names = [f"type{number:03}" for number in range(900)]
    await node.node.preference_store.join(names, hidden=False)
    await change(node, "ann", types=dict.fromkeys(names, False))
    found = (await node.http.get("/v1/users/ann/explain/none?user=root")).json()
    steps = [step for step in found["timeline"] if step["what"] == "switched"]
    assert ", ".join(step["detail"] for step in steps) == ", ".join(f"{name} off" for name in names)
    assert [step["by"] for step in steps] == ["ann"] * 3


async def test_an_explanation_says_who_had_set_the_switch_and_when(node: Running) -> None:
    async def explained(user: str, event: str) -> tuple[list[Any], list[Any]]:
        reply = await node.http.get(f"/v1/users/{user}/explain/{event}?user=root")
        steps = reply.json()["timeline"]
        keys = ("detail", "how", "by")
        return tuple(
            [[step.get(key, "") for key in keys] for step in steps if step["what"] == what]
            for what in ("switch", "switched")
        )  # type: ignore[return-value]

    await put(node, "promo", category="marketing")
    await node.publish("promo", 1, id="first")
    await change(node, "ann", types={"promo": False})
    await node.publish("promo", 1, id="second")
    row = {"user": "ann", "type": "promo", "enabled": True}
    reply = await node.http.post("/v1/preferences/import?user=root", json={"rows": [row]})
    assert reply.status_code == 200
    await node.publish("promo", 1, "ann", id="third")
    await change(node, "ann", types={"promo": None}, categories={"marketing": False})
    await node.publish("promo", 1, id="fourth")
    await put(node, "promo", mandatory=True)
    await node.publish("promo", 1, "ann", id="fifth")
    await node.publish("law", 1, id="sixth")
    switched = [
        ["promo off", "development", "ann"],
        ["promo on", "import", "root"],
        ["promo off, category marketing off", "development", "ann"],
    ]
    for event, held in (
        ("first", ["promo on, by default", "development", "root"]),
        ("second", ["promo off, its own switch", "development", "ann"]),
        ("third", ["promo on, its own switch", "import", "root"]),
        ("fourth", ["promo off, category marketing", "development", "ann"]),
        ("fifth", ["promo on, which is mandatory", "development", "root"]),
        ("sixth", ["law on, which is mandatory", "settings", ""]),
    ):
        assert await explained("ann", event) == ([held], switched), event
    assert await explained("bo", "second") == ([["promo on, by default", "development", "root"]], [])
    # Not of an event that nobody knows.
    assert await explained("bo", "none") == ([], [])
