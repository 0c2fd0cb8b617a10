"""`/openapi.json`: the table of calls as OpenAPI 3.1, with the types that validate, examples, and problems.

Made of `calls.CALLS` and `examples`; `api/files` serves it, and the page of `GET /docs`, which draws it. A
problem's example is made by what makes the problem itself, so it has the shape of a real one.
"""

import re
from collections.abc import Iterable, Mapping
from functools import cache
from http import HTTPStatus
from typing import Any

import msgspec

from pushsse import __version__
from pushsse.api import MEDIA_TYPE, problem_response
from pushsse.api.acks import NAME as ACK
from pushsse.api.acks import AckRequest
from pushsse.api.calls import CALLS, JSON, SSE, Call, Parameter
from pushsse.api.examples import of_text, of_type, problem_of
from pushsse.api.identity import ADMIN
from pushsse.api.limits import FIELDS
from pushsse.errors import Violation
from pushsse.event import EVENT_SCHEMA, WITHDRAW, Withdrawn
from pushsse.questions.events import DESK, AnswerErrorEvent, AnswerEvent, DeltaEvent, DeskEvent, QuestionEvent

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_REF = "#/components/schemas/{name}"
_PATH_PARAMETER = re.compile(r"{(\w+)(?::path)?}")
# A path's parameter has the name of what it stands for.
_IN_PATH = {"id": "01KB4Z8Q3V7N5M2H9R6T1W0XYE", "user": "ann", "event": "order-981-paid", "type": "news"}
# Which calls stand together, by how their paths begin; those of administrators are apart from all.
_ADMINISTRATION = "Administration"
_TAGS = (
    (
        "Stream and events",
        "hear events, publish them, say what was read",
        ("/v1/stream", "/v1/events", "/v1/acks", "/v1/unread"),
    ),
    ("Preferences", "switches and quiet hours", ("/v1/preferences",)),
    ("Questions", "ask, follow, hand over, answer", ("/v1/questions", "/v1/conversations")),
    (
        "Front ends",
        "the same questions as the AI SDK, AG-UI and OpenAI's clients ask them",
        ("/v1/chat", "/v1/agui", "/v1/models"),
    ),
    ("Identity", "who is asking, and tickets", ("/v1/me", "/v1/tickets")),
    (_ADMINISTRATION, "the catalogue, people, and all nodes", ()),
    ("Service", "the node itself", ("/",)),
)


class ProblemError(msgspec.Struct, frozen=True):
    """One thing that is wrong with the body."""

    at: str
    detail: str


class Problem(msgspec.Struct, frozen=True):
    """What is wrong with a request (RFC 9457); `code` is for programs, `detail` for people.

    `request` is what the log calls the request, with status 500 and above.
    """

    type: str
    title: str
    status: int
    code: str
    detail: str
    errors: tuple[ProblemError, ...] = ()
    request: str = ""


# What the events about questions hold, on a stream and in the reply to a question.
QUESTION_EVENTS: Mapping[str, type] = {
    "question": QuestionEvent,
    "answer.delta": DeltaEvent,
    "answer": AnswerEvent,
    "answer.error": AnswerErrorEvent,
}
# And what else a stream has, under names that no event of a person's has.
STREAM_EVENTS: Mapping[str, type] = {**QUESTION_EVENTS, ACK: AckRequest, WITHDRAW: Withdrawn, DESK: DeskEvent}


@cache
def encoded_document() -> bytes:
    """`document` as JSON, made once, when somebody asks."""
    return msgspec.json.encode(document())


def document() -> dict[str, Any]:
    """The interface as OpenAPI 3.1."""
    calls = [call for call in CALLS if call.name]
    kinds = {
        kind for call in calls for kind in (*call.bodies.values(), *call.answers.values()) if kind is not None
    }
    kinds |= {Problem, *STREAM_EVENTS.values()}
    kinds |= {call.foreign.body for call in calls if call.foreign is not None}
    ordered = sorted(kinds, key=lambda kind: (kind.__name__, kind.__module__))
    refs, components = msgspec.json.schema_components(ordered, ref_template=_REF)
    components["Event"] |= EVENT_SCHEMA
    schema = dict(zip(ordered, refs, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for call in calls:
        paths.setdefault(_PATH_PARAMETER.sub(r"{\1}", call.path), {})[call.method.lower()] = _operation(
            call, schema
        )
    found: dict[str, Any] = {
        "openapi": "3.1.0",
        "jsonSchemaDialect": _DIALECT,
        "info": {
            "title": "pushsse",
            "version": __version__,
            "description": "Events to people over Server-Sent Events, their switches, their questions.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "tags": [{"name": name, "description": text} for name, text, _ in _TAGS],
        "paths": paths,
        "components": {
            "schemas": _ecma(components),
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}},
        },
    }
    return found


def _operation(call: Call, schema: Mapping[type, Any]) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": call.name,
        "summary": call.summary,
        "tags": [_tag(call)],
        "responses": {},
    }
    if call.scope:
        operation["description"] = f"Needs the scope `pushsse:{call.scope}`. {call.text}".strip()
    elif call.text:
        operation["description"] = call.text
    if call.scope or 401 in call.problems:
        operation["security"] = [{"bearer": []}]
    path_parameters = [
        Parameter(name, "path", "", {"type": "string", "examples": [_IN_PATH[name]]})
        for name in _PATH_PARAMETER.findall(call.path)
    ]
    if parameters := [*path_parameters, *call.parameters]:
        operation["parameters"] = [_parameter(parameter) for parameter in parameters]
    if call.bodies:
        content = _content(call, call.bodies.items(), schema)
        operation["requestBody"] = {"required": call.needs_body, "content": content}
    operation["responses"] = _responses(call, schema, has_parameters=bool(path_parameters))
    return operation


def _responses(call: Call, schema: Mapping[type, Any], *, has_parameters: bool) -> dict[str, Any]:
    """By status; with parameters in the path, a 404 is one of them: what a parameter can't be is no path."""
    responses: dict[str, Any] = {}
    for (status, media), kind in call.answers.items():
        response = responses.setdefault(str(status), {"description": HTTPStatus(status).phrase})
        if media:
            response.setdefault("content", {}).update(_content(call, [(media, kind)], schema))
            if media == SSE and call.streams:
                # OpenAPI 3.1 has no word for a stream of events.
                told = STREAM_EVENTS if call.name == "stream" else QUESTION_EVENTS
                response["content"][media]["x-events"] = {name: schema[event] for name, event in told.items()}
    media, kind = (MEDIA_TYPE, Problem) if call.foreign is None else (JSON, call.foreign.body)
    for status in sorted({*call.problems, *([404] if has_parameters else [])}):
        content = {media: {"schema": schema[kind], "example": _problem(call, status)}}
        responses[str(status)] = {"description": HTTPStatus(status).phrase, "content": content}
    if call.counted:
        headers = {name: {"description": text, "schema": {"type": "string"}} for name, text in FIELDS.items()}
        for counted in (*(status for status, _ in call.answers), 429):
            responses[str(counted)]["headers"] = headers
    return responses


def _parameter(parameter: Parameter) -> dict[str, Any]:
    made = {
        "name": parameter.name,
        "in": parameter.place,
        "required": parameter.place == "path",
        "schema": _ecma(parameter.schema),
    }
    if parameter.place == "query":
        # A blank one counts as not given.
        made["allowEmptyValue"] = True
    return made | ({"description": parameter.text} if parameter.text else {})


def _content(
    call: Call, media: Iterable[tuple[str, type | None]], schema: Mapping[type, Any]
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, kind in media:
        example = of_text(call.name, name) if kind is None or kind is dict else of_type(kind)
        found[name] = {"schema": schema[kind] if kind is not None else {"type": "string"}, "example": example}
    return found


def _problem(call: Call, status: int) -> Any:
    """What a call answers with this status, in the words of its protocol."""
    problem = problem_of(call.name, status, with_body=bool(call.bodies))
    violations = tuple(Violation(*each) for each in problem.errors)
    response = problem_response(status, problem.code, problem.detail, violations=violations)
    told = response if call.foreign is None else call.foreign.retold(response)
    body = msgspec.json.decode(told.body)
    if "request" in body:
        # That of whoever asks for the document, where it is asked for over HTTP.
        del body["request"]
    return body


def _tag(call: Call) -> str:
    if call.scope == ADMIN:
        return _ADMINISTRATION
    return next(name for name, _, paths in _TAGS if call.path.startswith(paths))


def _ecma(schema: Any) -> Any:
    r"""Patterns as JSON Schema means them: ECMA-262 has no \Z, and its $ is just that."""
    if isinstance(schema, dict):
        return {
            name: inner.replace(r"\Z", "$") if name == "pattern" and isinstance(inner, str) else _ecma(inner)
            for name, inner in schema.items()
        }
    return [_ecma(inner) for inner in schema] if isinstance(schema, list | tuple) else schema
