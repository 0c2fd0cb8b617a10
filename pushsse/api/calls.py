"""The interface: a table of its calls, and the routes made from it.

`app` asks for `routes` and `direct_calls` with the endpoints of a node. `document` makes `/openapi.json` of
the same table. A new call is an entry here, an endpoint's method, and examples of its types in `document`.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from pushsse.api import (
    Retold,
    agui,
    chat,
    completions,
    events,
    questions,
    retell,
)
from pushsse.api.access import AccessEndpoint, Me, TicketRequest, TicketView
from pushsse.api.acks import AckRequest, AcksEndpoint, Unread
from pushsse.api.admin import (
    ExportView,
    HealthEndpoint,
    ImportRequest,
    KickView,
    OverviewEndpoint,
    PersonView,
    PresenceRequest,
    PresenceView,
    TransferEndpoint,
    TypeList,
    TypesEndpoint,
    UsersEndpoint,
)
from pushsse.api.direct import answered, audited, inside, refuse_outside
from pushsse.api.files import (
    CLIENT,
    DEVELOPMENT_PAGE,
    DOCS,
    PAGE,
    ClientEndpoint,
    DocsEndpoint,
    PageEndpoint,
)
from pushsse.api.identity import ADMIN, ANSWER, ASK, PREFERENCES, PUBLISH, STREAM
from pushsse.api.polls import MAX_WAIT_S, Events, PollEndpoint
from pushsse.api.preferences import ChangeRequest, PreferenceList, PreferencesEndpoint
from pushsse.api.questions import ConversationsEndpoint, QuestionsEndpoint
from pushsse.api.stream import StreamEndpoint
from pushsse.event import Event, TypeName
from pushsse.explain import Explanation
from pushsse.intake.cloudevents import BATCH, STRUCTURED
from pushsse.overview import OverviewView
from pushsse.preferences import Imported
from pushsse.preferences.catalogue import TypeRules, TypeView
from pushsse.retention import Forgotten
from pushsse.stream.immediate import ImmediateCall, ImmediateCalls

JSON = "application/json"
SSE = "text/event-stream"
TEXT = "text/plain"
NDJSON = "application/x-ndjson"
# A stream, or a poll that waits, may take the connection over: its endpoint is an ASGI application. All
# others return a response.
CallHandler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Endpoints:
    """What answers the calls of one node."""

    stream: StreamEndpoint
    events: events.EventsEndpoint
    polls: PollEndpoint
    acks: AcksEndpoint
    preferences: PreferencesEndpoint
    transfer: TransferEndpoint
    types: TypesEndpoint
    questions: QuestionsEndpoint
    chat: chat.ChatEndpoint
    agui: agui.AguiEndpoint
    completions: completions.CompletionsEndpoint
    conversations: ConversationsEndpoint
    access: AccessEndpoint
    users: UsersEndpoint
    overview: OverviewEndpoint
    health: HealthEndpoint
    page: PageEndpoint
    client: ClientEndpoint
    docs: DocsEndpoint


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter; all but those of the path may be left out."""

    name: str
    place: Literal["path", "query", "header"]
    text: str
    schema: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Foreign:
    """How a protocol of others tells what is wrong: the body, and what makes it of a problem."""

    body: type
    retold: Retold


_AGUI = Foreign(agui.RunError, agui.told)
_OPENAI = Foreign(completions.CompletionProblem, completions.told)


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call: what it needs, takes and gives. None as a type means text.

    `direct` calls come by the thousand, and the application answers them past Starlette's layers. `immediate`
    answers those that need not wait in the HTTP protocol, without ASGI. `counted` calls say in each response
    how many more a person may make. `for_others`: an administrator may make it in somebody's place.
    A `polled` call comes again and again, and leaves an audit line only where it is refused. A call without a
    name isn't in the document. `streams` of events about questions are described by their events.
    """

    method: str
    path: str
    handler: Callable[[Endpoints], CallHandler | StreamEndpoint | PollEndpoint]
    direct: bool = False
    immediate: Callable[[Endpoints], ImmediateCall] | None = None
    name: str = ""
    summary: str = ""
    text: str = ""
    scope: str = ""
    parameters: tuple[Parameter, ...] = ()
    bodies: Mapping[str, type | None] = field(default_factory=dict)
    needs_body: bool = True
    answers: Mapping[tuple[int, str], type | None] = field(default_factory=dict)
    problems: tuple[int, ...] = ()
    counted: bool = False
    for_others: bool = False
    polled: bool = False
    foreign: Foreign | None = None
    streams: bool = True

    @property
    def is_internal(self) -> bool:
        """Whether it is on the internal address alone, if there is one."""
        return self.scope == ADMIN or self.path in _INTERNAL

    @property
    def audited(self) -> bool:
        """Whether an administrator's use of it leaves a line in the log."""
        return self.scope == ADMIN or self.for_others


# What is on the internal address beside the calls of administrators.
_INTERNAL = ("/metrics", "/readyz", *DOCS)
# Whatever else it is counts as a place that is gone: a 400 would end a browser's EventSource for good.
_POSITION = {"type": "string", "description": "an id of this stream's; any other text: a gap"}
_AGE = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?(ms|s|m|h|d)?$", "examples": ["30m"]}
_TYPES = Parameter(
    "types",
    "query",
    "these event types only, comma-separated; blank: all",
    {"type": "string", "examples": ["news,alarm"]},
)
_SINCE = Parameter("since", "query", "begin in the past", _AGE)
_RESET = Parameter(
    "reset",
    "query",
    "1: the client knows the chunk `reset-step` (version 7)",
    {"type": "string", "pattern": "^([01]|true|false|yes|no|on|off)$", "examples": ["1"]},
)
_REFUSED = (401, 403)
_ONE_QUESTION = {(200, JSON): questions.QuestionView}
_ONE_CONVERSATION = {(200, JSON): questions.ConversationView}
_LIMIT = Parameter(
    "limit", "query", "at most so many", {"type": "integer", "minimum": 1, "maximum": 100, "default": 50}
)
_KEY = Parameter(
    "Idempotency-Key",
    "header",
    "a repeat within a day returns the first; in quotes it is the same key",
    {"type": "string", "examples": ["7f3c-41"]},
)
_LANGUAGE = Parameter(
    "Accept-Language", "header", "languages of the texts", {"type": "string", "examples": ["zh-CN, en;q=0.5"]}
)
_BEFORE = Parameter("before", "query", "older than the question with this id", {"type": "string"})
_CONVERSATION = Parameter("conversation", "query", "of this conversation", {"type": "string"})

CALLS = (
    Call(
        method="GET",
        path="/v1/stream",
        handler=lambda at: at.stream,
        direct=True,
        immediate=lambda at: at.stream.opening,
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
                {"type": "string", "pattern": "^([01]|true|false|yes|no|on|off)$", "examples": ["0"]},
            ),
            Parameter(
                "ticket",
                "query",
                "instead of a token; later only with a `Last-Event-ID` header",
                {"type": "string", "pattern": "^[A-Za-z0-9_-]{32}$"},
            ),
        ),
        answers={(200, SSE): None},
        problems=(400, *_REFUSED),
    ),
    Call(
        method="GET",
        path="/v1/events",
        handler=lambda at: at.polls,
        direct=True,
        immediate=lambda at: at.polls.waiting,
        name="readEvents",
        summary="The person's events as JSON",
        text="Without `after` and `since` there are no events, only the present position. "
        "One call goes through 20,000 events of everybody's: with `more`, ask again after `position`, also "
        "where there are no events. Calls that go far back are served in turn, one of each person: beyond 16 "
        "that wait, or after 5 s, with what was found and `more`, else 503 `overloaded`. A poll that waits "
        "counts as a stream, and what ends a stream ends its wait: with 200, no events, and the position.",
        scope=STREAM,
        parameters=(
            Parameter("after", "query", "go on after this position", _POSITION),
            Parameter(
                "wait_s",
                "query",
                "where there is none, wait so many seconds for the first event",
                {"type": "integer", "minimum": 0, "maximum": MAX_WAIT_S, "default": 0},
            ),
            _SINCE,
            _TYPES,
            Parameter(
                "limit",
                "query",
                "at most so many",
                {"type": "integer", "minimum": 1, "maximum": 1000, "default": 100},
            ),
        ),
        answers={(200, JSON): Events},
        problems=(400, *_REFUSED, 503),
    ),
    Call(
        method="POST",
        path="/v1/events",
        handler=lambda at: at.events.post,
        direct=True,
        immediate=lambda at: at.events.posting,
        name="publishEvents",
        summary="Publish one event, or one a line",
        text="With `type` and `to`, any other body is a text message. 202 if at least one was accepted. "
        "CloudEvents 1.0 are taken by their HTTP binding: structured, in batches, and binary (`ce-` fields). "
        "Bodies, here and elsewhere, may be gzip'd (`Content-Encoding: gzip`).",
        scope=PUBLISH,
        parameters=(
            Parameter(
                "type",
                "query",
                "the type of a text message",
                {"type": "string", "pattern": msgspec.json.schema(TypeName)["pattern"]},
            ),
            Parameter(
                "to",
                "query",
                "all, or a user, for a text message, or for CloudEvents without `pushsseto`",
                {"type": "string"},
            ),
        ),
        bodies={JSON: Event, NDJSON: None, TEXT: None, STRUCTURED: None, BATCH: None},
        answers={(202, JSON): events.AcceptedEvents},
        problems=(400, *_REFUSED, 413, 415, 422, 503),
    ),
    Call(
        method="POST",
        path="/v1/acks",
        handler=lambda at: at.acks.post,
        name="ack",
        summary="Say what was read",
        text="Up to 100 events by `ids`, or, with the state `read`, all `up_to` an id of a stream's. All "
        "devices of the person get the body as the event `ack`, in replays, too.",
        scope=STREAM,
        bodies={JSON: AckRequest},
        answers={(204, ""): None},
        problems=(400, *_REFUSED, 413, 415, 422, 429, 503),
        counted=True,
    ),
    Call(
        method="GET",
        path="/v1/unread",
        handler=lambda at: at.acks.unread,
        name="unread",
        summary="How many events are unread",
        text="Counted out of the log, by the newest 20,000 entries of each of the person's two logs at the "
        "most, since the time in the answer. In turn, as `GET /v1/events`.",
        scope=STREAM,
        parameters=(
            Parameter("since", "query", "how far back; without it, as far as the log reaches", _AGE),
            _TYPES,
        ),
        answers={(200, JSON): Unread},
        problems=(400, *_REFUSED, 503),
    ),
    Call(
        method="GET",
        path="/v1/preferences",
        handler=lambda at: at.preferences.get,
        name="preferences",
        summary="The person's switches and quiet hours",
        text="Titles and descriptions are in the first language of `Accept-Language` that they are there in. "
        "A type without a switch of the person's own follows the switch of its category, then its default.",
        scope=PREFERENCES,
        parameters=(_LANGUAGE,),
        answers={(200, JSON): PreferenceList},
        problems=(*_REFUSED, 503),
    ),
    Call(
        method="POST",
        path="/v1/preferences",
        handler=lambda at: at.preferences.post,
        name="changePreferences",
        summary="Switch event types and categories on and off, set quiet hours",
        text="What isn't there stays as it is. `null` takes the choice for a type or category back. Nothing "
        "is dropped in quiet hours: clients learn of them in `ready` and `preferences`.",
        scope=PREFERENCES,
        parameters=(_LANGUAGE,),
        bodies={JSON: ChangeRequest},
        answers={(200, JSON): PreferenceList},
        problems=(400, *_REFUSED, 413, 415, 422, 429, 503),
        counted=True,
    ),
    Call(
        method="GET",
        path="/v1/questions",
        handler=lambda at: at.questions.get_all,
        name="questions",
        summary="The person's questions, newest first",
        text="Who has `pushsse:answer` sees those of a conversation that is handed over, too.",
        scope=ASK,
        parameters=(_LIMIT, _BEFORE, _CONVERSATION),
        answers={(200, JSON): questions.QuestionList},
        problems=(400, *_REFUSED, 404, 503),
    ),
    Call(
        method="POST",
        path="/v1/questions",
        handler=lambda at: at.questions.post,
        name="ask",
        summary="Ask a question",
        text="With `Accept: text/event-stream` the answer streams in the reply, and on the person's streams.",
        scope=ASK,
        parameters=(_KEY,),
        bodies={JSON: questions.QuestionRequest},
        answers={(202, JSON): questions.AcceptedQuestion, (200, SSE): None},
        problems=(400, *_REFUSED, 404, 409, 413, 415, 422, 429, 503),
        counted=True,
        direct=True,
    ),
    Call(
        method="GET",
        path="/v1/questions/{id}",
        handler=lambda at: at.questions.get,
        name="question",
        summary="One question with its answer so far",
        scope=ASK,
        answers=_ONE_QUESTION,
        problems=(*_REFUSED, 404, 503),
    ),
    Call(
        method="POST",
        path="/v1/questions/{id}/cancel",
        handler=lambda at: at.questions.cancel,
        name="cancelQuestion",
        summary="Stop an answer",
        scope=ASK,
        answers=_ONE_QUESTION,
        problems=(*_REFUSED, 404, 503),
    ),
    Call(
        method="POST",
        path="/v1/chat",
        handler=lambda at: at.chat.post,
        name="chat",
        summary="Ask as the AI SDK does",
        text="For `useChat` with DefaultChatTransport; the chat is the conversation. The answer is a UI "
        "message stream.",
        scope=ASK,
        parameters=(_RESET,),
        bodies={JSON: chat.ChatRequest},
        answers={(200, SSE): None},
        problems=(400, *_REFUSED, 404, 409, 413, 415, 422, 429, 503),
        counted=True,
        streams=False,
    ),
    Call(
        method="GET",
        path="/v1/chat/{id}/stream",
        handler=lambda at: at.chat.resume,
        name="resumeChat",
        summary="The answer that is running in a chat, from its beginning",
        text="204 where none is running.",
        scope=ASK,
        parameters=(_RESET,),
        answers={(200, SSE): None, (204, ""): None},
        problems=(400, *_REFUSED, 404, 429, 503),
        streams=False,
    ),
    Call(
        method="POST",
        path="/v1/chat/{id}/stop",
        handler=lambda at: at.chat.stop,
        name="stopChat",
        summary="Stop the answer that is running in a chat",
        scope=ASK,
        answers={(204, ""): None},
        problems=(*_REFUSED, 404, 503),
    ),
    Call(
        method="GET",
        path="/v1/chat/{id}/messages",
        handler=lambda at: at.chat.messages,
        name="chatMessages",
        summary="The messages of a chat, without the answer that is running",
        scope=ASK,
        parameters=(
            Parameter(
                "limit",
                "query",
                "those of at most so many questions",
                {"type": "integer", "minimum": 1, "maximum": 100, "default": 50},
            ),
            Parameter("before", "query", "older than the question with this id", {"type": "string"}),
        ),
        answers={(200, JSON): chat.ChatMessages},
        problems=(400, *_REFUSED, 404, 503),
    ),
    Call(
        method="POST",
        path="/v1/agui",
        handler=lambda at: at.agui.post,
        name="runAgent",
        summary="Ask as AG-UI does",
        text="The thread is the conversation; the same run is asked once. The answer is a stream of AG-UI's "
        "events.",
        scope=ASK,
        bodies={JSON: agui.RunRequest},
        answers={(200, SSE): None},
        problems=(400, *_REFUSED, 404, 409, 413, 415, 422, 429, 503),
        counted=True,
        foreign=_AGUI,
        streams=False,
    ),
    Call(
        method="POST",
        path="/v1/agui/{id}/stop",
        handler=lambda at: at.agui.stop,
        name="stopAgent",
        summary="Stop what runs in a thread",
        scope=ASK,
        answers={(204, ""): None},
        problems=(*_REFUSED, 404, 503),
        foreign=_AGUI,
    ),
    Call(
        method="POST",
        path="/v1/chat/completions",
        handler=lambda at: at.completions.post,
        name="completeChat",
        summary="Ask as clients of OpenAI's interface do",
        text="The last message is the question. A completion's id is `chatcmpl-` and the question's id.",
        scope=ASK,
        parameters=(
            Parameter(
                "X-Conversation-Id",
                "header",
                "the conversation, where the body names none",
                {"type": "string", "pattern": questions.CONVERSATION_PATTERN},
            ),
            Parameter("Idempotency-Key", "header", "a repeat returns the first", {"type": "string"}),
        ),
        bodies={JSON: completions.CompletionRequest},
        answers={(200, JSON): completions.ChatCompletion, (200, SSE): None},
        problems=(400, *_REFUSED, 404, 409, 413, 415, 422, 429, 502, 503),
        counted=True,
        foreign=_OPENAI,
        streams=False,
    ),
    Call(
        method="GET",
        path="/v1/models",
        handler=lambda at: at.completions.models,
        name="models",
        summary="Who answers, as clients of OpenAI's interface ask",
        scope=ASK,
        answers={(200, JSON): completions.ModelList},
        problems=(*_REFUSED, 503),
        foreign=_OPENAI,
    ),
    Call(
        method="POST",
        path="/v1/questions/{id}/regenerate",
        handler=lambda at: at.questions.regenerate,
        name="regenerateAnswer",
        summary="Ask an ended question anew",
        text="The old answer is kept: `earlier` of the question has it. Streams as asking does.",
        scope=ASK,
        answers={(202, JSON): questions.AcceptedQuestion, (200, SSE): None},
        problems=(*_REFUSED, 404, 409, 429, 503),
        counted=True,
    ),
    Call(
        method="POST",
        path="/v1/questions/{id}/feedback",
        handler=lambda at: at.questions.feedback,
        name="rateAnswer",
        summary="Say whether an answer was good",
        text="A second call replaces the first.",
        scope=ASK,
        bodies={JSON: questions.FeedbackRequest},
        answers=_ONE_QUESTION,
        problems=(400, *_REFUSED, 404, 409, 413, 415, 422, 429, 503),
        counted=True,
    ),
    Call(
        method="POST",
        path="/v1/questions/{id}/answer",
        handler=lambda at: at.questions.answer,
        name="answerQuestion",
        summary="Answer a question that was handed over",
        text="Of two who answer at once the first one wins; the other gets 409.",
        scope=ANSWER,
        bodies={JSON: questions.SaidRequest},
        answers=_ONE_QUESTION,
        problems=(400, *_REFUSED, 404, 409, 413, 415, 422, 429, 503),
    ),
    Call(
        method="GET",
        path="/v1/conversations",
        handler=lambda at: at.conversations.get_all,
        name="conversations",
        summary="The person's conversations, newest activity first",
        text="With `status=handed_over`, which needs `pushsse:answer` instead: those of all people that wait "
        "for staff. For an hour after that call, but no longer than its token is good, `pushsse.desk` "
        "events on the caller's streams tell of them, by ids alone.",
        scope=ASK,
        parameters=(
            Parameter(
                "status",
                "query",
                "handed_over: what waits for staff",
                {"type": "string", "enum": ["handed_over"]},
            ),
            _LIMIT,
            Parameter("before", "query", "older than this `newest`", {"type": "string"}),
        ),
        answers={(200, JSON): questions.ConversationList},
        problems=(400, *_REFUSED, 503),
    ),
    Call(
        method="POST",
        path="/v1/conversations/{id}/handover",
        handler=lambda at: at.conversations.hand_over,
        name="handOver",
        summary="Let people answer from now on",
        scope=ASK,
        bodies={JSON: questions.HandoverRequest},
        needs_body=False,
        answers=_ONE_CONVERSATION,
        problems=(400, *_REFUSED, 404, 409, 413, 415, 422, 429, 503),
        counted=True,
    ),
    Call(
        method="POST",
        path="/v1/conversations/{id}/messages",
        handler=lambda at: at.conversations.write,
        name="sendMessage",
        summary="Send a message in a conversation that was handed over",
        text="The person gets it as the `answer` to a question without text.",
        scope=ANSWER,
        parameters=(_KEY,),
        bodies={JSON: questions.SaidRequest},
        answers={(201, JSON): questions.QuestionView},
        problems=(400, *_REFUSED, 404, 409, 413, 415, 422, 429, 503),
    ),
    Call(
        method="POST",
        path="/v1/conversations/{id}/release",
        handler=lambda at: at.conversations.release,
        name="release",
        summary="Let answerers answer again",
        text="The person may do it in their own conversation, with `pushsse:ask`. Questions that still wait "
        "end with `answer.error` `released`.",
        scope=ANSWER,
        answers=_ONE_CONVERSATION,
        problems=(*_REFUSED, 404, 503),
    ),
    Call(
        method="GET",
        path="/v1/me",
        handler=lambda at: at.access.me,
        name="me",
        summary="Who is asking",
        text="Needs no scope. `expires_in_s` is null where the identity has no end.",
        answers={(200, JSON): Me},
        problems=(*_REFUSED, 503),
    ),
    Call(
        method="POST",
        path="/v1/tickets",
        handler=lambda at: at.access.ticket,
        name="makeTicket",
        summary="A ticket for one stream",
        text="For `EventSource`, where a header or cookie can't go: `/v1/stream?ticket=…`. It opens a stream "
        "by itself for 30 s, and for up to an hour with the `Last-Event-ID` that `EventSource` sends when it "
        "comes back. Each opening ends the stream before. With `user` it is for somebody else, which needs "
        "`pushsse:admin`.",
        scope=STREAM,
        bodies={JSON: TicketRequest},
        needs_body=False,
        counted=True,
        for_others=True,
        answers={(200, JSON): TicketView},
        problems=(400, *_REFUSED, 413, 415, 422, 429, 503),
    ),
    Call(
        method="POST",
        # A name may have a slash in it.
        path="/v1/users/{user:path}/kick",
        handler=lambda at: at.users.kick,
        name="kick",
        summary="End a person's streams, and revoke their tokens",
        text="Tokens whose `iat` lies before the end of this second no longer count, nor do those without "
        "`iat`, for as long as a token can live. `within_s`: within how many seconds all nodes act on it.",
        scope=ADMIN,
        answers={(200, JSON): KickView},
        problems=(400, *_REFUSED, 404, 409, 503),
    ),
    Call(
        method="GET",
        # Both may have a slash in it.
        path="/v1/users/{user:path}/explain/{event:path}",
        handler=lambda at: at.users.explain,
        name="explain",
        summary="Why somebody got an event, or didn't",
        text="One timeline, from the log, the topic of outcomes and the history of switches: published, "
        "switched, written, read, or where it ended; `switch` is what held for its type then. `how` and `by` "
        "say who had set it, `since` when. `verdict` is the last that happened; `incomplete` says what "
        "couldn't be looked at.",
        scope=ADMIN,
        answers={(200, JSON): Explanation},
        problems=(400, *_REFUSED, 404, 503),
    ),
    Call(
        method="GET",
        path="/v1/users/{user:path}/preferences",
        handler=lambda at: at.preferences.get_of,
        name="preferencesOf",
        summary="Somebody's switches and quiet hours",
        scope=ADMIN,
        parameters=(_LANGUAGE,),
        answers={(200, JSON): PreferenceList},
        problems=(400, *_REFUSED, 404, 503),
    ),
    Call(
        method="POST",
        path="/v1/users/{user:path}/preferences",
        handler=lambda at: at.preferences.post_of,
        name="changePreferencesOf",
        summary="Change somebody's switches and quiet hours",
        text="As they do it themselves, and without a limit of calls.",
        scope=ADMIN,
        parameters=(_LANGUAGE,),
        bodies={JSON: ChangeRequest},
        answers={(200, JSON): PreferenceList},
        problems=(400, *_REFUSED, 404, 413, 415, 422, 503),
    ),
    Call(
        method="GET",
        path="/v1/preferences/export",
        handler=lambda at: at.transfer.get,
        name="exportPreferences",
        summary="Everybody's switches, a page",
        text="What people have chosen for types, then for categories, in the order of their names.",
        scope=ADMIN,
        parameters=(
            Parameter("after", "query", "`next` of the page before", {"type": "string"}),
            Parameter(
                "limit",
                "query",
                "at most so many",
                {"type": "integer", "minimum": 1, "maximum": 1000, "default": 1000},
            ),
        ),
        answers={(200, JSON): ExportView},
        problems=(400, *_REFUSED, 503),
    ),
    Call(
        method="POST",
        path="/v1/preferences/import",
        handler=lambda at: at.transfer.post,
        name="importPreferences",
        summary="Set many people's switches",
        text="Where a row can't be used, none is imported. Each person's change is one that they could have "
        "made, and acts as that does. Of several rows about the same the last one counts.",
        scope=ADMIN,
        bodies={JSON: ImportRequest},
        answers={(200, JSON): Imported},
        problems=(400, *_REFUSED, 413, 415, 422, 503),
    ),
    Call(
        method="GET",
        path="/v1/types",
        handler=lambda at: at.types.get,
        name="types",
        summary="The catalogue of types",
        text="In the order in which people see them: by `order`, then by when they joined.",
        scope=ADMIN,
        answers={(200, JSON): TypeList},
        problems=(*_REFUSED, 404, 503),
    ),
    Call(
        method="PUT",
        path="/v1/types/{type}",
        handler=lambda at: at.types.put,
        name="setType",
        summary="Set a type",
        text="Members that aren't there get their defaults. A text is one for all, or one for each language, "
        "of which the first is for everybody else. All nodes act on it within seconds, also on open streams. "
        "409 for a type of a node's settings file.",
        scope=ADMIN,
        bodies={JSON: TypeRules},
        answers={(200, JSON): TypeView, (201, JSON): TypeView},
        problems=(400, *_REFUSED, 404, 409, 413, 415, 422, 503),
    ),
    Call(
        method="DELETE",
        path="/v1/types/{type}",
        handler=lambda at: at.types.delete,
        name="removeType",
        summary="Remove a type",
        text="Its next event brings it back, with what people chose for it, unless new types are refused.",
        scope=ADMIN,
        answers={(204, ""): None},
        problems=(400, *_REFUSED, 404, 409, 503),
    ),
    Call(
        method="GET",
        path="/v1/users/{user:path}",
        handler=lambda at: at.users.get,
        name="person",
        summary="Where a person is",
        text="The person's streams on all nodes, and since when there is one on each; for one without a "
        "stream, when the last one ended, as far as that is known. A change shows within 2 s, the death of a "
        "node within 15 s.",
        scope=ADMIN,
        answers={(200, JSON): PersonView},
        problems=(400, *_REFUSED, 404, 503),
    ),
    Call(
        method="POST",
        path="/v1/presence",
        handler=lambda at: at.users.presences,
        name="presence",
        summary="Where up to 1,000 people are",
        scope=ADMIN,
        bodies={JSON: PresenceRequest},
        answers={(200, JSON): PresenceView},
        problems=(400, *_REFUSED, 413, 415, 422, 503),
    ),
    Call(
        method="DELETE",
        path="/v1/users/{user:path}",
        handler=lambda at: at.users.forget,
        name="forget",
        summary="Forget a person",
        text="Ends their streams as a kick does, and deletes everything of theirs in the database: "
        "`deleted` counts it, `remaining` says what runs out elsewhere, and when. It may be repeated.",
        scope=ADMIN,
        answers={(200, JSON): Forgotten},
        problems=(400, *_REFUSED, 404, 409, 503),
    ),
    Call(
        method="GET",
        path="/v1/overview",
        handler=lambda at: at.overview.get,
        name="overview",
        summary="What all nodes do at present",
        text="Each node says it of itself every two seconds, and any node answers for all. A node that died "
        "is gone from it 8 s later. Rates are those of the last ten seconds.",
        scope=ADMIN,
        polled=True,
        answers={(200, JSON): OverviewView},
        problems=(*_REFUSED, 404, 503),
    ),
    Call(
        method="GET",
        path="/livez",
        handler=lambda at: at.health.live,
        name="livez",
        summary="Alive",
        answers={(200, JSON): dict},
    ),
    Call(
        method="GET",
        path="/readyz",
        handler=lambda at: at.health.ready,
        direct=True,
        name="readyz",
        summary="Whether to send streams here",
        answers={(200, JSON): dict, (503, JSON): dict},
    ),
    Call(
        method="GET",
        path="/metrics",
        handler=lambda at: at.health.metrics,
        name="metrics",
        summary="Prometheus",
        answers={(200, TEXT): None},
        problems=(503,),
    ),
    Call(
        method="GET",
        path="/",
        handler=lambda at: at.page.get,
        name="page",
        summary="The page",
        answers={(200, "text/html"): None},
    ),
    Call(
        method="GET",
        path="/openapi.json",
        handler=lambda at: at.docs.document,
        name="openapi",
        summary="This document",
        answers={(200, JSON): dict},
    ),
    Call(
        method="GET",
        path="/docs",
        handler=lambda at: at.docs.get,
        name="docs",
        summary="This document as a page",
        text="Where there is an internal address, it is there alone.",
        answers={(200, "text/html"): None},
    ),
    *(Call(method="GET", path=path, handler=lambda at: at.docs.get) for path in DOCS if path != "/docs"),
    *(
        Call(method="GET", path=path, handler=lambda at: at.page.get)
        for path in PAGE | DEVELOPMENT_PAGE
        if path != "/"
    ),
    *(Call(method="GET", path=path, handler=lambda at: at.client.get) for path in CLIENT),
)


class CallRoute(Route):
    """The route of one call, which knows the other methods of its path."""

    def __init__(self, call: Call, endpoint: Callable[..., Any]) -> None:
        super().__init__(call.path, endpoint, methods=[call.method])
        self._call = call

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Starlette's. Raises HTTPException 405 with all methods in Allow (RFC 9110, 10.2.1)."""
        if self._call.foreign is not None:
            retell(scope, self._call.foreign.retold)
        if self._call.is_internal:
            refuse_outside(scope)
        if scope["method"] not in (self.methods or ()):
            raise HTTPException(405, headers={"Allow": _METHODS[self.path]})
        if self._call.audited:
            polled, always = self._call.polled, self._call.scope == ADMIN
            await audited(super().handle, scope, receive, send, always=always, polled=polled)
        else:
            await super().handle(scope, receive, send)


def _methods(path: str) -> str:
    found = {call.method for call in CALLS if call.path == path}
    return ", ".join(sorted(found | {"HEAD"} if "GET" in found else found))


_METHODS = {call.path: _methods(call.path) for call in CALLS}


def routes(endpoints: Endpoints) -> Sequence[Route]:
    """A route for each call."""
    return [CallRoute(call, call.handler(endpoints)) for call in CALLS]


def direct_calls(endpoints: Endpoints) -> Mapping[tuple[str, str], ASGIApp]:
    """The calls that come by the thousand, by method and path."""
    found: dict[tuple[str, str], ASGIApp] = {}
    for call in CALLS:
        if call.direct:
            handler = call.handler(endpoints)
            endpoint = handler if isinstance(handler, StreamEndpoint | PollEndpoint) else answered(handler)
            found[call.method, call.path] = inside(endpoint) if call.is_internal else endpoint
    return found


def immediate_calls(endpoints: Endpoints) -> ImmediateCalls:
    """The calls that the HTTP protocol answers itself, where they need not wait for anything."""
    return {
        (call.method.encode(), call.path.encode()): call.immediate(endpoints)
        for call in CALLS
        if call.immediate is not None
    }
