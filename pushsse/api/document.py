"""`/openapi.json`: the table of calls as OpenAPI 3.1, with the types that validate, examples, and problems.

Made of `calls.CALLS` and the examples below; `api/files` serves it, and the page of `GET /docs`, which draws
it. A problem's example is made by what makes the problem itself, so it has the shape of a real one. A test
checks each example against its schema, and sends those of bodies to a node.
"""

import re
from collections.abc import Iterable, Mapping
from functools import cache
from http import HTTPStatus
from typing import Any, NamedTuple

import msgspec

from pushsse import __version__
from pushsse.api import (
    MEDIA_TYPE,
    RATE_LIMIT_FIELDS,
    agui,
    chat,
    completions,
    events,
    problem_response,
    questions,
)
from pushsse.api.access import Me, TicketRequest, TicketView
from pushsse.api.acks import NAME as ACK
from pushsse.api.acks import AckRequest, Unread
from pushsse.api.admin import (
    ExportView,
    ImportRequest,
    KickView,
    PersonView,
    PresenceRequest,
    PresenceView,
    TypeList,
)
from pushsse.api.calls import CALLS, JSON, SSE, Call, Parameter
from pushsse.api.identity import ADMIN
from pushsse.api.polls import Events
from pushsse.api.preferences import ChangeRequest, PreferenceList
from pushsse.errors import Violation
from pushsse.event import EVENT_SCHEMA, WITHDRAW, Event, Withdrawn
from pushsse.explain import Explanation
from pushsse.overview import OverviewView
from pushsse.preferences import Imported
from pushsse.preferences.catalogue import TypeRules, TypeView
from pushsse.questions import DESK, AnswerErrorEvent, AnswerEvent, DeltaEvent, DeskEvent, QuestionEvent
from pushsse.retention import Forgotten

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
        if status == 404 and has_parameters:
            # Where there is no such path, no call is there to say so in its own form.
            no_path = problem_response(404, "not_found", "there is no such path")
            content.setdefault(
                MEDIA_TYPE, {"schema": schema[Problem], "example": msgspec.json.decode(no_path.body)}
            )
        responses[str(status)] = {"description": HTTPStatus(status).phrase, "content": content}
    if call.counted:
        headers = {
            name: {"description": text, "schema": {"type": "string"}}
            for name, text in RATE_LIMIT_FIELDS.items()
        }
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
        example = _of_text(call.name, name) if kind is None or kind is dict else _of_type(kind)
        found[name] = {"schema": schema[kind] if kind is not None else {"type": "string"}, "example": example}
    return found


def _problem(call: Call, status: int) -> Any:
    """What a call answers with this status, in the words of its protocol."""
    problem = _problem_of(call.name, status, with_body=bool(call.bodies))
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


# Examples: one for each type that calls take or give, for each text, and of what may be wrong


class _ProblemExample(NamedTuple):
    """What is wrong: the code, a sentence, and where in the body."""

    code: str
    detail: str
    errors: tuple[tuple[str, str], ...] = ()


def _of_type(kind: type) -> Any:
    """The example of a type."""
    return _OF_TYPES[kind]


def _of_text(call: str, media: str) -> Any:
    """The example of what a call takes or gives as text, or as an object without a type."""
    return _OF_TEXTS[call, media]


def _problem_of(call: str, status: int, *, with_body: bool) -> _ProblemExample:
    """What may be wrong with a call; where it has a body, that most often."""
    if status == 400 and with_body:
        return _NO_JSON
    return _OF_CALLS.get((call, status), _PROBLEMS[status])


_QUESTION = "01KB4Z8Q3V7N5M2H9R6T1W0XYE"
_POSITION = "3kq0zt81-12.m2x9aw4c-7"
_EVENT = {
    "id": "order-981-paid",
    "type": "order.paid",
    "message": {"order": 981, "total": "49.90"},
    "desc": "Order 981 is paid",
    "ts": "2026-11-23T08:00:00Z",
}
_CLOUD_EVENT = (
    '{"specversion":"1.0","type":"order.paid","source":"/shop","id":"order-981-paid",'
    '"pushsseto":"ann","data":{"order":981}}'
)
_ANSWER = {
    "text": "Within 14 days, under Orders.",
    "seq": 3,
    "by": {"kind": "bot", "name": "faq"},
    "links": [{"title": "Refunds", "url": "/account/refunds"}],
    "suggestions": ["How long does a refund take?"],
    "truncated": False,
    "parts": [],
}
_ANSWERED = {
    "id": _QUESTION,
    "conversation": "refunds",
    "text": "How do I get a refund?",
    "status": "answered",
    "asked_at": "2026-11-23T08:00:00Z",
    "updated_at": "2026-11-23T08:00:01Z",
    "context": None,
    "answer": _ANSWER,
    "error": None,
    "feedback": {"rating": "up", "comment": ""},
    "regenerations": 0,
}
_HANDED_OVER = {
    "id": "refunds",
    "user": "ann",
    "title": "How do I get a refund?",
    "status": "handed_over",
    "created_at": "2026-11-23T08:00:00Z",
    "newest": _QUESTION,
    "handed_over": {
        "at": "2026-11-23T08:05:00Z",
        "by": "person",
        "reason": "the answer didn't help",
        "until": "2026-11-24T08:05:00Z",
        "waiting": 1,
    },
}
_RULES = {
    "title": {"en": "Payments", "zh": "付款"},
    "description": {"en": "When an order is paid"},
    "category": "orders",
    "default": True,
    "mandatory": False,
    "order": 10,
    "urgent": False,
    "hidden": False,
}
_TYPE = {**_RULES, "name": "order.paid", "in_file": False}
_PERSON = {
    "user": "ann",
    "online": True,
    "streams": 2,
    "nodes": [{"node": "push-1", "streams": 2, "since": "2026-11-23T08:00:00Z"}],
    "last_seen": None,
}
_SWITCHES = [
    {"user": "ann", "type": "news", "enabled": False},
    {"user": "bo", "category": "orders", "enabled": True},
]

_OF_TYPES: Mapping[type, Any] = {
    Event: {**_EVENT, "to": {"users": ["ann", "bo"]}, "ttl_s": 3600},
    events.AcceptedEvents: {"accepted": 1, "ids": ["order-981-paid"], "rejected": [], "repeated": 0},
    Events: {
        "events": [{"event": "order.paid", "data": _EVENT, "id": _POSITION}],
        "position": _POSITION,
        "gap": False,
        "more": False,
    },
    AckRequest: {"state": "read", "ids": ["order-981-paid"]},
    Unread: {
        "unread": 3,
        "types": {"order.paid": 1, "news": 2},
        "since": "2026-11-22T08:00:00Z",
        "position": _POSITION,
        "complete": True,
    },
    PreferenceList: {
        "types": [
            {
                "name": "order.paid",
                "title": "Payments",
                "description": "When an order is paid",
                "category": "orders",
                "enabled": True,
                "mandatory": False,
            }
        ],
        "categories": {"orders": True},
        "quiet": [{"from": "22:00", "to": "07:00", "days": ["sat", "sun"]}],
        "zone": "Europe/Berlin",
        "paused_until": None,
    },
    ChangeRequest: {
        "categories": {"orders": None},
        "quiet": [{"from": "22:00", "to": "07:00", "days": ["sat", "sun"]}],
        "zone": "Europe/Berlin",
    },
    questions.QuestionRequest: {"text": "How do I get a refund?", "context": {"order": 981}},
    questions.AcceptedQuestion: {"id": _QUESTION, "conversation": "refunds", "status": "pending"},
    questions.QuestionView: _ANSWERED,
    questions.QuestionList: {"questions": [_ANSWERED], "more": False},
    questions.FeedbackRequest: {"rating": "down", "comment": "It was about another order."},
    questions.SaidRequest: {
        "text": "Your refund is on its way.",
        "links": [{"title": "Refunds", "url": "/account/refunds"}],
        "name": "Sam",
    },
    chat.ChatRequest: {
        "id": "refunds",
        "messages": [{"role": "user", "parts": [{"type": "text", "text": "How do I get a refund?"}]}],
    },
    chat.ChatMessages: {
        "messages": [
            {"id": "m1", "role": "user", "parts": [{"type": "text", "text": "How do I get a refund?"}]},
            {
                "id": _QUESTION,
                "role": "assistant",
                "parts": [{"type": "text", "text": "Within 14 days, under Orders.", "state": "done"}],
            },
        ],
        "more": False,
        "before": None,
    },
    agui.RunRequest: {
        "threadId": "refunds",
        "runId": "run-1",
        "messages": [{"id": "m1", "role": "user", "content": "How do I get a refund?"}],
    },
    completions.CompletionRequest: {
        "model": "pushsse",
        "messages": [{"role": "user", "content": "How do I get a refund?"}],
    },
    completions.ChatCompletion: {
        "id": f"chatcmpl-{_QUESTION}",
        "object": "chat.completion",
        "created": 1_763_884_800,
        "model": "pushsse",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Within 14 days, under Orders.", "refusal": None},
                "finish_reason": "stop",
                "logprobs": None,
            }
        ],
        "usage": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
    },
    completions.ModelList: {
        "object": "list",
        "data": [{"id": "pushsse", "object": "model", "created": 1_767_225_600, "owned_by": "pushsse"}],
    },
    questions.ConversationView: _HANDED_OVER,
    questions.ConversationList: {"conversations": [_HANDED_OVER], "more": False},
    questions.HandoverRequest: {"reason": "the answer didn't help"},
    Me: {"user": "ann", "scope": "pushsse:stream pushsse:ask", "expires_in_s": 3540},
    TicketRequest: {"user": "ann"},
    TicketView: {
        "ticket": "q3Zt8yXc0Lw5Vn2Rb7Kd9Hs4Fg6Jm1Pa",
        "expires_in_s": 30,
        "position": _POSITION,
        "user": "ann",
    },
    KickView: {"user": "ann", "kicked_at": 1_763_884_800, "within_s": 5},
    Explanation: {
        "user": "ann",
        "event": "order-981-paid",
        "verdict": "written",
        "timeline": [
            {
                "at": "2026-11-23T08:00:00Z",
                "what": "switch",
                "detail": "order.paid on, its own switch",
                "how": "admin",
                "by": "carl",
                "since": "2026-11-20T16:31:07.5Z",
            },
            {"at": "2026-11-23T08:00:00Z", "what": "published", "detail": "push.events-3-981"},
            {"at": "2026-11-23T08:00:00.012Z", "what": "written", "node": "push-1"},
        ],
        "incomplete": [],
    },
    OverviewView: {
        "at": "2026-11-23T08:00:01.5Z",
        "nodes": [
            {
                "node": "push-1",
                "version": "1.0.0",
                "started_at": "2026-11-23T07:00:00Z",
                "at": "2026-11-23T08:00:00Z",
                "state": "ready",
                "streams": 15_210,
                "people": 14_987,
                "behind": 3,
                "opened_per_s": 4.1,
                "published_per_s": 120.5,
                "delivered_per_s": 18_340.0,
                "records_per_s": 118.2,
                "lag": {"push.events": 12},
                "held": 0,
                "dead_letters": 2,
                "backplane": True,
                "database": True,
                "cpu": 0.31,
                "memory_bytes": 183_500_800,
            }
        ],
        "totals": {
            "streams": 15_210,
            "people": 14_987,
            "published_per_s": 120.5,
            "delivered_per_s": 18_340.0,
            "lag": 12,
            "dead_letters": 2,
        },
        "lag": {"push.events": 12},
        "chosen": [{"name": "news", "on": 12, "off": 431}],
    },
    ExportView: {"rows": _SWITCHES, "next": None},
    ImportRequest: {"rows": [{"user": "ann", "category": "orders", "enabled": True}]},
    Imported: {"people": 1, "changed": 1},
    TypeList: {"types": [_TYPE]},
    TypeRules: _RULES,
    TypeView: _TYPE,
    PersonView: _PERSON,
    PresenceRequest: {"users": ["ann"]},
    PresenceView: {"users": [_PERSON]},
    Forgotten: {
        "user": "ann",
        "deleted": {"questions": 2, "switches": 3, "switched": 5},
        "remaining": [{"where": "log", "detail": "events", "until": "2026-11-24T08:00:00+00:00"}],
    },
}
_STREAM = f"""retry: 3412
event: ready
data: {{"user":"ann","node":"push-1","stream":"9f2c","resume":"new","heartbeat_s":15}}
id: {_POSITION}

event: order.paid
data: {{"id":"order-981-paid","type":"order.paid","message":{{"order":981}},\
"desc":"","ts":"2026-11-23T08:00:00Z"}}
id: {_POSITION[:-1]}8

"""
_REPLY = f"""event: answer.delta
data: {{"question":"{_QUESTION}","seq":1,"from":0,"text":"Within 14 days"}}

event: answer
data: {{"question":"{_QUESTION}","text":"Within 14 days, under Orders.","by":{{"kind":"bot","name":"faq"}},\
"links":[],"suggestions":[],"truncated":false}}

"""
_UI_MESSAGES = f"""data: {{"type":"start","messageId":"{_QUESTION}"}}

data: {{"type":"text-delta","id":"1","delta":"Within 14 days"}}

data: {{"type":"finish"}}

data: [DONE]

"""
# By the call's name and the media type.
_OF_TEXTS: Mapping[tuple[str, str], Any] = {
    ("stream", "text/event-stream"): _STREAM,
    ("publishEvents", "application/x-ndjson"): '{"type":"news","message":"one","to":"all"}\n'
    '{"type":"alarm","message":"two","to":{"users":["ann"]}}\n',
    ("publishEvents", "text/plain"): "deployed",
    ("publishEvents", "application/cloudevents+json"): _CLOUD_EVENT,
    ("publishEvents", "application/cloudevents-batch+json"): f"[{_CLOUD_EVENT}]",
    ("ask", "text/event-stream"): _REPLY,
    ("regenerateAnswer", "text/event-stream"): _REPLY,
    ("chat", "text/event-stream"): _UI_MESSAGES,
    ("resumeChat", "text/event-stream"): _UI_MESSAGES,
    ("runAgent", "text/event-stream"): 'data: {"type":"RUN_STARTED","threadId":"refunds","runId":"run-1"}\n\n'
    'data: {"type":"RUN_FINISHED","threadId":"refunds","runId":"run-1"}\n\n',
    ("completeChat", "text/event-stream"): f'data: {{"id":"chatcmpl-{_QUESTION}",'
    '"object":"chat.completion.chunk","created":1763884800,"model":"pushsse",'
    '"choices":[{"index":0,"delta":{"content":"Within 14 days"},"finish_reason":null}]}\n\ndata: [DONE]\n\n',
    ("livez", "application/json"): {"status": "alive"},
    ("readyz", "application/json"): {"status": "ready", "parts": {"database": True, "backplane": True}},
    ("metrics", "text/plain"): "# TYPE pushsse_connections gauge\npushsse_connections 2.0\n",
    ("page", "text/html"): "<!doctype html>",
    ("docs", "text/html"): "<!doctype html>",
    ("openapi", "application/json"): {"openapi": "3.1.0"},
}
_PROBLEMS: Mapping[int, _ProblemExample] = {
    400: _ProblemExample("parameter_invalid", "limit='many' is no whole number"),
    401: _ProblemExample("token_expired", "the token has expired"),
    403: _ProblemExample("scope_missing", "this needs the scope pushsse:admin"),
    404: _ProblemExample("not_found", "there is no such path"),
    409: _ProblemExample("being_taken", "a request with the same Idempotency-Key is being served"),
    413: _ProblemExample("body_too_large", "the body has more than 65536 bytes"),
    415: _ProblemExample("content_encoding", "a body can be gzip'd or plain, not 'br'"),
    422: _ProblemExample("invalid", "$.text: is required", (("$.text", "is required"),)),
    429: _ProblemExample("rate_limited", "you may do this 20 times in a minute, try again in 12 s"),
    502: _ProblemExample("answerer_failed", "the question couldn't be answered"),
    503: _ProblemExample("unavailable", "a part of the service doesn't answer just now, try again"),
}
# Where a status has another cause with one call than with most.
_NO_JSON = _ProblemExample(
    "not_json", "$: isn't JSON: unexpected end", (("$", "isn't JSON: unexpected end"),)
)
_KICKS = _ProblemExample("too_many_kicks", "100000 people were kicked within a day")
_ENDED = _ProblemExample("already_ended", "the question has an answer already, or has ended otherwise")
_NOT_ENDED = _ProblemExample("not_ended", "the question has no end yet")
_NO_PEOPLE = _ProblemExample("no_people", "nobody takes conversations over here")
_IN_FILE = _ProblemExample("type_in_file", "order.paid is set in the settings file")
_OF_CALLS: Mapping[tuple[str, int], _ProblemExample] = {
    ("kick", 409): _KICKS,
    ("forget", 409): _KICKS,
    ("answerQuestion", 409): _ENDED,
    ("regenerateAnswer", 409): _NOT_ENDED,
    ("rateAnswer", 409): _NOT_ENDED,
    ("handOver", 409): _NO_PEOPLE,
    ("setType", 409): _IN_FILE,
    ("removeType", 409): _IN_FILE,
    ("readEvents", 503): _ProblemExample("overloaded", "too many look far back just now, try again"),
}
