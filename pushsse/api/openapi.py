"""`/openapi.json`: the interface, from the types that validate it and a table of calls. Wired by `routes`."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from pushsse import __version__
from pushsse.api.calls import CALLS, QUESTION_EVENTS, SSE, Call, Parameter
from pushsse.api.problem import MEDIA_TYPE

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_REF = "#/components/schemas/{name}"
_PATH_PARAMETER = re.compile(r"{(\w+)}")


class ProblemError(msgspec.Struct, frozen=True):
    """One thing that is wrong with the body."""

    at: str
    detail: str


class Problem(msgspec.Struct, frozen=True):
    """What is wrong with a request (RFC 9457); `code` is for programs, `detail` for people."""

    type: str
    title: str
    status: int
    code: str
    detail: str
    errors: tuple[ProblemError, ...] = ()


@dataclass(frozen=True, slots=True)
class OpenApiEndpoint:
    """The document, encoded once."""

    content: bytes

    async def get(self, _: Request) -> Response:
        """The document."""
        return Response(self.content, media_type="application/json")


def load() -> OpenApiEndpoint:
    """Makes the document."""
    return OpenApiEndpoint(msgspec.json.encode(document()))


def document() -> dict[str, Any]:
    """The interface as OpenAPI 3.1."""
    kinds = {
        kind for call in CALLS for kind in (*call.bodies.values(), *call.answers.values()) if kind is not None
    }
    kinds |= {Problem, *QUESTION_EVENTS.values()}
    ordered = sorted(kinds, key=lambda kind: (kind.__name__, kind.__module__))
    refs, components = msgspec.json.schema_components(ordered, ref_template=_REF)
    schema = dict(zip(ordered, refs, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for call in CALLS:
        paths.setdefault(call.path, {})[call.method.lower()] = _operation(call, schema)
    found: dict[str, Any] = {
        "openapi": "3.1.0",
        "jsonSchemaDialect": _DIALECT,
        "info": {
            "title": "pushsse",
            "version": __version__,
            "description": "Events to people over Server-Sent Events, their switches, their questions.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "paths": paths,
        "components": {
            "schemas": _ecma(components),
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}},
        },
    }
    return found


def _operation(call: Call, schema: Mapping[type, Any]) -> dict[str, Any]:
    operation: dict[str, Any] = {"operationId": call.name, "summary": call.summary, "responses": {}}
    if call.scope:
        operation["description"] = f"Needs the scope `pushsse:{call.scope}`. {call.text}".strip()
        operation["security"] = [{"bearer": []}]
    elif call.text:
        operation["description"] = call.text
    path_parameters = [
        Parameter(name, "path", "", {"type": "string"}) for name in _PATH_PARAMETER.findall(call.path)
    ]
    if parameters := [*path_parameters, *call.parameters]:
        operation["parameters"] = [_parameter(parameter) for parameter in parameters]
    if call.bodies:
        operation["requestBody"] = {"required": True, "content": _content(call.bodies.items(), schema)}
    responses = operation["responses"]
    for (status, media), kind in call.answers.items():
        response = responses.setdefault(str(status), {"description": HTTPStatus(status).phrase})
        if media:
            response.setdefault("content", {}).update(_content([(media, kind)], schema))
            if media == SSE:
                # OpenAPI 3.1 has no word for a stream of events.
                response["content"][media]["x-events"] = {
                    name: schema[event] for name, event in QUESTION_EVENTS.items()
                }
    for status in call.problems:
        problem = {
            "description": HTTPStatus(status).phrase,
            "content": {MEDIA_TYPE: {"schema": schema[Problem]}},
        }
        responses[str(status)] = problem
    return operation


def _parameter(parameter: Parameter) -> dict[str, Any]:
    made = {
        "name": parameter.name,
        "in": parameter.place,
        "required": parameter.place == "path",
        "schema": parameter.schema,
    }
    return made | ({"description": parameter.text} if parameter.text else {})


def _content(media: Iterable[tuple[str, type | None]], schema: Mapping[type, Any]) -> dict[str, Any]:
    return {
        name: {"schema": schema[kind] if kind is not None else {"type": "string"}} for name, kind in media
    }


def _ecma(schema: Any) -> Any:
    r"""Patterns as JSON Schema means them: ECMA-262 has no \Z, and its $ is just that."""
    if isinstance(schema, dict):
        return {
            name: inner.replace(r"\Z", "$") if name == "pattern" and isinstance(inner, str) else _ecma(inner)
            for name, inner in schema.items()
        }
    return [_ecma(inner) for inner in schema] if isinstance(schema, list | tuple) else schema
