"""Examples of what calls take and give, for `/openapi.json`: one for each type and for each text.

Asked by `document`. A test checks each one against its schema, and sends those of bodies to a node.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from pushsse.api import agui, chat, completions, conversations, events, questions
from pushsse.api.access import Me, TicketRequest, TicketView
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
from pushsse.api.polls import Events
from pushsse.api.preferences import ChangeRequest, PreferenceList
from pushsse.event import Event
from pushsse.explain import Explanation
from pushsse.overview import OverviewView
from pushsse.preferences.catalogue import TypeRules, TypeView
from pushsse.preferences.transfer import Imported
from pushsse.retention import Forgotten


class ProblemExample(NamedTuple):
    """What is wrong: the code, a sentence, and where in the body."""

    code: str
    detail: str
    errors: tuple[tuple[str, str], ...] = ()


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
    completions.Completion: {
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
    conversations.ConversationView: _HANDED_OVER,
    conversations.ConversationList: {"conversations": [_HANDED_OVER], "more": False},
    conversations.HandoverRequest: {"reason": "the answer didn't help"},
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
        "deleted": {"questions": 2, "switches": 3},
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
_PROBLEMS: Mapping[int, ProblemExample] = {
    400: ProblemExample("parameter_invalid", "limit='many' is no whole number"),
    401: ProblemExample("token_expired", "the token has expired"),
    403: ProblemExample("scope_missing", "this needs the scope pushsse:admin"),
    404: ProblemExample("not_found", "there is no such path"),
    409: ProblemExample("being_taken", "a request with the same Idempotency-Key is being served"),
    413: ProblemExample("body_too_large", "the body has more than 65536 bytes"),
    415: ProblemExample("content_encoding", "a body can be gzip'd or plain, not 'br'"),
    422: ProblemExample("invalid", "$.text: is required", (("$.text", "is required"),)),
    429: ProblemExample("rate_limited", "you may do this 20 times in a minute, try again in 12 s"),
    502: ProblemExample("answerer_failed", "the question couldn't be answered"),
    503: ProblemExample("unavailable", "a part of the service doesn't answer just now, try again"),
}
# Where a status has another cause with one call than with most.
_NO_JSON = ProblemExample("not_json", "$: isn't JSON: unexpected end", (("$", "isn't JSON: unexpected end"),))
_KICKS = ProblemExample("too_many_kicks", "100000 people were kicked within a day")
_ENDED = ProblemExample("already_ended", "the question has an answer already, or has ended otherwise")
_NOT_ENDED = ProblemExample("not_ended", "the question has no end yet")
_NO_PEOPLE = ProblemExample("no_people", "nobody takes conversations over here")
_IN_FILE = ProblemExample("type_in_file", "order.paid is set in the settings file")
_OF_CALLS: Mapping[tuple[str, int], ProblemExample] = {
    ("kick", 409): _KICKS,
    ("forget", 409): _KICKS,
    ("answerQuestion", 409): _ENDED,
    ("regenerateAnswer", 409): _NOT_ENDED,
    ("rateAnswer", 409): _NOT_ENDED,
    ("handOver", 409): _NO_PEOPLE,
    ("setType", 409): _IN_FILE,
    ("removeType", 409): _IN_FILE,
    ("readEvents", 503): ProblemExample("overloaded", "too many look far back just now, try again"),
}


def of_type(kind: type) -> Any:
    """The example of a type."""
    return _OF_TYPES[kind]


def of_text(call: str, media: str) -> Any:
    """The example of what a call takes or gives as text, or as an object without a type."""
    return _OF_TEXTS[call, media]


def problem_of(call: str, status: int, *, with_body: bool) -> ProblemExample:
    """What may be wrong with a call; where it has a body, that most often."""
    if status == 400 and with_body:
        return _NO_JSON
    return _OF_CALLS.get((call, status), _PROBLEMS[status])
