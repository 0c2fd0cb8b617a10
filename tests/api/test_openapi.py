"""The interface's document against the routes, and against the shape of OpenAPI 3.1."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from starlette.routing import Route

from pushsse.api.calls import CALLS, document
from pushsse.app import create_app
from pushsse.settings import load

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
                assert list(response["content"]) == [media]


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
