"""The calls of the interface as a table, with the types that they take and give. `openapi` reads it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pushsse.api import events, questions
from pushsse.api.identity import ASK, PREFERENCES, PUBLISH, STREAM
from pushsse.api.preferences import ChangeRequest, PreferenceList
from pushsse.event import Event
from pushsse.questions.life import AnswerErrorEvent, AnswerEvent, DeltaEvent, QuestionEvent

JSON = "application/json"
SSE = "text/event-stream"
TEXT = "text/plain"
NDJSON = "application/x-ndjson"


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter; all but those of the path may be left out."""

    name: str
    place: Literal["path", "query", "header"]
    text: str
    schema: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call: what it needs, takes and gives. None as a type means text."""

    method: str
    path: str
    name: str
    summary: str
    text: str = ""
    scope: str = ""
    parameters: tuple[Parameter, ...] = ()
    bodies: Mapping[str, type | None] = field(default_factory=dict)
    answers: Mapping[tuple[int, str], type | None]
    problems: tuple[int, ...] = ()


# What the events about questions hold, on a stream and in the reply to a question.
QUESTION_EVENTS: Mapping[str, type] = {
    "question": QuestionEvent,
    "answer.delta": DeltaEvent,
    "answer": AnswerEvent,
    "answer.error": AnswerErrorEvent,
}
_POSITION = {"type": "string", "maxLength": 64}
_AGE = {"type": "string", "pattern": r"^\d+(\.\d+)?(ms|s|m|h|d)?$", "examples": ["30m"]}
_TYPES = Parameter(
    "types",
    "query",
    "these event types only, comma-separated; blank: all",
    {"type": "string", "examples": ["news,alarm"]},
)
_SINCE = Parameter("since", "query", "begin in the past", _AGE)
_ME = (401, 403)
_FOUND = {(200, JSON): questions.QuestionView}

CALLS = (
    Call(
        method="GET",
        path="/v1/stream",
        name="stream",
        summary="The person's stream",
        text="Begins with `ready`; each event's `id` is where the stream has got. A service that is busy "
        "answers 200 with a later `retry` and `exception`.",
        scope=STREAM,
        parameters=(
            Parameter("Last-Event-ID", "header", "resume after this id", _POSITION),
            Parameter(
                "last_event_id",
                "query",
                "the same, where a header can't go; `lastEventId` and `evs_last_event_id` are taken, too",
                _POSITION,
            ),
            _SINCE,
            _TYPES,
            Parameter(
                "named",
                "query",
                "0: people's events come as `message`",
                {"type": "string", "enum": ["0", "1"]},
            ),
        ),
        answers={(200, SSE): None},
        problems=(400, *_ME),
    ),
    Call(
        method="GET",
        path="/v1/events",
        name="readEvents",
        summary="The person's events as JSON",
        text="Without `after` and `since` there are no events, only the present position.",
        scope=STREAM,
        parameters=(
            Parameter("after", "query", "go on after this position", _POSITION),
            _SINCE,
            _TYPES,
            Parameter(
                "limit",
                "query",
                "at most so many",
                {"type": "integer", "minimum": 1, "maximum": 1000, "default": 100},
            ),
        ),
        answers={(200, JSON): events.Events},
        problems=(400, *_ME, 503),
    ),
    Call(
        method="POST",
        path="/v1/events",
        name="publishEvents",
        summary="Publish one event, or one a line",
        text="With `type` and `to`, any other body is a text message. 202 if at least one was accepted. "
        "Bodies, here and elsewhere, may be gzip'd (`Content-Encoding: gzip`).",
        scope=PUBLISH,
        parameters=(
            Parameter(
                "type",
                "query",
                "the type of a text message",
                {"type": "string", "pattern": "^[A-Za-z0-9_.-]{1,64}$"},
            ),
            Parameter("to", "query", "all, or a user, for a text message", {"type": "string"}),
        ),
        bodies={JSON: Event, NDJSON: None, TEXT: None},
        answers={(202, JSON): events.Accepted},
        problems=(400, *_ME, 413, 415, 422, 503),
    ),
    Call(
        method="GET",
        path="/v1/preferences",
        name="preferences",
        summary="The person's switches",
        scope=PREFERENCES,
        answers={(200, JSON): PreferenceList},
        problems=(*_ME, 503),
    ),
    Call(
        method="POST",
        path="/v1/preferences",
        name="changePreferences",
        summary="Switch event types on and off",
        scope=PREFERENCES,
        bodies={JSON: ChangeRequest},
        answers={(200, JSON): PreferenceList},
        problems=(400, *_ME, 413, 415, 422, 503),
    ),
    Call(
        method="GET",
        path="/v1/questions",
        name="questions",
        summary="The person's questions, newest first",
        scope=ASK,
        parameters=(
            Parameter(
                "limit",
                "query",
                "at most so many",
                {"type": "integer", "minimum": 1, "maximum": 100, "default": 50},
            ),
            Parameter("before", "query", "older than the question with this id", {"type": "string"}),
        ),
        answers={(200, JSON): questions.QuestionList},
        problems=(400, *_ME, 503),
    ),
    Call(
        method="POST",
        path="/v1/questions",
        name="ask",
        summary="Ask a question",
        text="With `Accept: text/event-stream` the answer streams in the reply, and on the person's streams.",
        scope=ASK,
        parameters=(
            Parameter(
                "Idempotency-Key",
                "header",
                "a repeat returns the first",
                {"type": "string", "pattern": "^[!-~]{1,128}$"},
            ),
        ),
        bodies={JSON: questions.QuestionRequest},
        answers={(202, JSON): questions.Accepted, (200, SSE): None},
        problems=(400, *_ME, 413, 415, 422, 429, 503),
    ),
    Call(
        method="GET",
        path="/v1/questions/{id}",
        name="question",
        summary="One question with its answer so far",
        scope=ASK,
        answers=_FOUND,
        problems=(*_ME, 404, 503),
    ),
    Call(
        method="POST",
        path="/v1/questions/{id}/cancel",
        name="cancelQuestion",
        summary="Stop an answer",
        scope=ASK,
        answers=_FOUND,
        problems=(*_ME, 404, 503),
    ),
    Call(method="GET", path="/livez", name="livez", summary="Alive", answers={(200, JSON): dict}),
    Call(
        method="GET",
        path="/readyz",
        name="readyz",
        summary="Whether to send streams here",
        answers={(200, JSON): dict, (503, JSON): dict},
    ),
    Call(method="GET", path="/metrics", name="metrics", summary="Prometheus", answers={(200, TEXT): None}),
    Call(method="GET", path="/", name="page", summary="The H5 page", answers={(200, "text/html"): None}),
    Call(method="GET", path="/openapi.json", name="openapi", summary="This", answers={(200, JSON): dict}),
)
