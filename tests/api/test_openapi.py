"""The interface's document against the routes, and against the shape of OpenAPI 3.1."""

import json
import re
import threading
from collections.abc import Iterator
from contextvars import copy_context
from pathlib import Path
from typing import Any, NamedTuple

import jsonschema_rs
import pytest
from starlette.requests import Request
from starlette.routing import Route

from pushsse.api.calls import CALLS
from pushsse.api.document import document
from pushsse.api.files import DocsEndpoint
from pushsse.app import create_app
from pushsse.logs import serving as serving_request
from pushsse.settings import load
from tests.schemas import Schemas
from tests.serving import serving

ROOT = Path(__file__).parents[2]
WITHDRAWN = ("id", "type", "withdraw", "to", "ts")
METHODS = {"get", "post", "put", "delete", "patch"}


def _references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for inner in node.values():
            yield from _references(inner)
    elif isinstance(node, list):
        for inner in node:
            yield from _references(inner)


def _operations() -> Iterator[tuple[str, str, Any]]:
    for path, calls in document()["paths"].items():
        for method, operation in calls.items():
            yield path, method, operation


def test_every_route_is_in_the_document_and_nothing_else(tmp_path: Path) -> None:
    app = create_app(load({"PUSHSSE_DATABASE_URL": f"sqlite://{tmp_path}/x.db"}))
    there = {
        (route.path_format, method.lower())
        for route in app.routes
        if isinstance(route, Route) and not re.search(r"\.(js|css|ts)$", route.path)
        for method in (route.methods or {"GET"}) - {"HEAD"}
    }
    assert {(path, method) for path, method, _ in _operations()} == there


def test_document_has_the_shape_of_openapi() -> None:
    found = json.loads(json.dumps(document()))
    assert found["openapi"].startswith("3.1.")
    assert found["info"]["title"]
    assert found["info"]["version"]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+", name) for name in found["components"]["schemas"])
    names = []
    for path, method, operation in _operations():
        assert path.startswith("/")
        assert method in METHODS
        names.append(operation["operationId"])
        assert operation["responses"]
        for status, response in operation["responses"].items():
            assert re.fullmatch(r"[1-5]\d\d", status)
            assert response["description"]
        for parameter in operation.get("parameters", []):
            assert parameter["in"] in {"path", "query", "header", "cookie"}
            assert parameter["schema"]
        declared = {each["name"] for each in operation.get("parameters", []) if each["in"] == "path"}
        assert declared == set(re.findall(r"{(\w+)}", path))
    assert len(set(names)) == len(names)


def test_every_reference_leads_somewhere() -> None:
    found = document()
    references = set(_references(found))
    assert references
    for reference in references:
        place: Any = found
        for step in reference.removeprefix("#/").split("/"):
            place = place[step]
        assert place["type"]


def test_patterns_are_those_of_json_schema() -> None:
    assert r"\\Z" not in json.dumps(document())


def test_refusals_are_problems() -> None:
    told = {(call.path, call.method.lower()) for call in CALLS if call.foreign is not None}
    for path, method, operation in _operations():
        # A protocol of others has its own way of telling them.
        media = "application/json" if (path, method) in told else "application/problem+json"
        for status, response in operation["responses"].items():
            if status.startswith("4"):
                # Which is that of a call: where there is no such path, there is none.
                no_path = ["application/problem+json"] if status == "404" and "{" in path else []
                assert list(response["content"]) == list(dict.fromkeys([media, *no_path]))


def _patterns(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        if "pattern" in node:
            yield node
        for inner in node.values():
            yield from _patterns(inner)
    elif isinstance(node, list):
        for inner in node:
            yield from _patterns(inner)


def test_every_pattern_of_a_body_says_in_words_what_it_allows() -> None:
    """Errors say these words, not the pattern."""
    found = list(_patterns(document()["components"]))
    assert found
    for schema in found:
        assert schema.get("description"), schema
        assert schema.get("examples"), schema


def test_the_events_about_questions_are_in_the_document() -> None:
    found = document()
    content = found["paths"]["/v1/stream"]["get"]["responses"]["200"]["content"]["text/event-stream"]
    name = content["x-events"]["answer.delta"]["$ref"].rpartition("/")[2]
    assert set(found["components"]["schemas"][name]["properties"]) == {
        "question",
        "seq",
        "from",
        "text",
        "part",
    }


def test_the_events_of_acks_and_keys_are_in_the_document() -> None:
    found = document()
    content = found["paths"]["/v1/stream"]["get"]["responses"]["200"]["content"]["text/event-stream"]
    for name, members in (("ack", {"state", "ids", "up_to"}), ("pushsse.withdraw", set(WITHDRAWN))):
        schema = content["x-events"][name]["$ref"].rpartition("/")[2]
        assert set(found["components"]["schemas"][schema]["properties"]) == members


class Shown(NamedTuple):
    """An example, what it is an example of, and whether a node is sent it."""

    place: str
    schema: Any
    value: Any


def _shown() -> Iterator[Shown]:
    for path, method, operation in _operations():
        for media, content in operation.get("requestBody", {}).get("content", {}).items():
            yield Shown(f"{method} {path} body {media}", content["schema"], content.get("example"))
        for status, response in operation["responses"].items():
            for media, content in response.get("content", {}).items():
                yield Shown(f"{method} {path} {status} {media}", content["schema"], content.get("example"))


def test_every_body_and_answer_has_an_example_that_its_schema_takes() -> None:
    schemas = Schemas(document())
    shown = list(_shown())
    assert len(shown) > 300
    for place, schema, value in shown:
        assert value is not None, place
        schemas.validate(schema, value)


def test_an_example_that_is_wrong_would_be_found() -> None:
    with pytest.raises(jsonschema_rs.ValidationError):
        Schemas(document()).validate({"$ref": "#/components/schemas/AckRequest"}, {"state": "lost"})


def test_every_call_has_a_tag_that_is_told_of_and_each_tag_has_calls() -> None:
    told = [tag["name"] for tag in document()["tags"]]
    used = [operation["tags"] for _, _, operation in _operations()]
    assert all(len(tags) == 1 for tags in used)
    assert {tags[0] for tags in used} == set(told)


def test_codes_of_problems_are_those_of_the_code() -> None:
    source = "\n".join(
        file.read_text() for file in (ROOT / "pushsse").rglob("*.py") if file.name != "document.py"
    )
    for place, _, value in _shown():
        if "problem+json" in place:
            assert f'"{value["code"]}"' in source, (place, value["code"])
            assert value["status"] == int(place.split()[2])


def test_a_document_that_is_asked_for_by_http_has_no_id_of_that_request() -> None:
    def asked() -> str:
        serving_request("01-mine")
        return json.dumps(document())

    assert "01-mine" not in copy_context().run(asked)


@pytest.mark.anyio
async def test_the_document_is_made_once_and_not_on_the_event_loop() -> None:
    threads = []

    def make() -> bytes:
        threads.append(threading.current_thread())
        return b"{}"

    docs = DocsEndpoint(make)
    for _ in range(2):
        assert (await docs.document(Request({"type": "http"}))).body == b"{}"
    assert len(threads) == 1
    assert threads[0] is not threading.current_thread()


# What a call needs that was there before it: staff, a question, a type of the catalogue.
_NEEDS = {"answerQuestion", "rateAnswer", "handOver", "sendMessage"}


@pytest.mark.anyio
async def test_a_node_takes_the_examples_of_bodies(tmp_path: Path) -> None:
    async with serving(tmp_path) as node:
        # A type with a category comes before what people choose for it.
        for path, method, operation in sorted(_operations(), key=lambda each: each[1], reverse=True):
            for media, content in operation.get("requestBody", {}).get("content", {}).items():
                name, value = operation["operationId"], content["example"]
                where = (
                    path.replace("{user}", "ann").replace("{type}", "order.paid").replace("{id}", "refunds")
                )
                body = value if isinstance(value, str) else json.dumps(value)
                query = "?user=ann&type=news&to=all" if media == "text/plain" else "?user=ann"
                headers = {"content-type": media}
                reply = await node.http.request(method, where + query, content=body, headers=headers)
                expected = {200, 201, 404, 409} if name in _NEEDS else {200, 201, 202, 204}
                assert reply.status_code in expected, (name, media, reply.text)
