"""`openai:BASE_URL?model=NAME`: a server with chat completions, such as OpenAI, Ollama, vLLM or llama.cpp.

Asked by `answering`, which supervises `run`. Until the first text a failed request is made again; after that
an answer that breaks off has failed, since another one would go on otherwise. Deliberate: no redirect is
followed, since the key goes with the request; compressed streams are refused, since they come in lumps and
their size can't be bounded. What the server says of a failure is logged, and nobody gets to read it.

Servers differ in their chunks, so `Completion` passes over whatever is odd: `choices` empty, null or absent,
`content` as a list of parts, a `message` in place of a `delta`, unknown members. Thoughts
(`reasoning_content`, `reasoning`, parts of the type `thinking`) are never part of the text.
"""

import asyncio
import logging
import random
import ssl
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Annotated, Any, Literal, NamedTuple
from urllib.parse import urlsplit

import httpx
import msgspec
from httpx_sse import EventSource, ServerSentEvent, SSEError
from msgspec import Meta, Struct

from pushsse.errors import Overloaded, PushsseError, Unavailable
from pushsse.logs import safe_url
from pushsse.metrics import Metrics
from pushsse.questions import (
    CUT_SHORT,
    DECLINED,
    MAX_PARTS,
    Answered,
    By,
    Question,
    SourcePart,
    StatusPart,
    Unanswered,
)
from pushsse.questions.answerers import Answers, Delta, GivesWay, Piece
from pushsse.retry import Backoff
from pushsse.settings import is_loopback

logger = logging.getLogger(__name__)
KEY_ENV = "PUSHSSE_OPENAI_KEY"
_CONNECT_S = 5.0
# Requests for one answer, and how long one may have to wait as the server wants it.
MOST_TRIES = 4
MOST_RETRY_AFTER_S = 30.0
# After the end of the text: for what it has cost.
_USAGE_S = 2.0
# One event, and one answer; an event for each word of the longest answer has room.
MOST_EVENT_BYTES = 1024 * 1024
MOST_ANSWER_BYTES = 256 * 1024 * 1024
_MOST_UNREADABLE = 100
# What is parsed at once.
_PIECE_BYTES = 8 * 1024
# While a model thinks, its status is said again so often.
_THINKING_S = 10.0
# Of a failure, for the log.
_MOST_TOLD = 200
_MOST_TOLD_BYTES = 4_096
_ONCE_MORE = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS})
# Whatever is asked, the server answers this: it is set up wrongly, here or there.
_NEVER = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND})
# What a server without a list of its models says.
_UNLISTED = frozenset({HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED, HTTPStatus.NOT_IMPLEMENTED})
BROKEN_OFF = Unanswered("failed", "answer_cut", "the answer broke off")
WITHHELD = Unanswered("failed", "content_filter", "the answer was withheld by a filter of its provider")
REFUSED = Unanswered("failed", "answerer_refused", "the answerer can't take this question")
EMPTY = Unanswered("failed", "answer_empty", "the answerer had nothing to say")


class OpenaiOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What may stand after the `?` of the URL, or in its table of `pushsse.toml`."""

    model: Annotated[str, Meta(min_length=1, max_length=200)]
    # A file with the system prompt.
    system: str = ""
    key_env: Annotated[str, Meta(min_length=1)] = KEY_ENV
    # Who has answered, as people see it.
    name: Annotated[str, Meta(max_length=128)] = ""
    at_once: Annotated[int, Meta(ge=1, le=10_000)] = 16
    first_token_s: Annotated[float, Meta(gt=0, le=3_600)] = 60.0
    between_tokens_s: Annotated[float, Meta(gt=0, le=3_600)] = 30.0
    # Shown while the model thinks.
    thinking: Annotated[str, Meta(max_length=200)] = "…"
    # Whether to ask for the count of tokens; some servers know no `stream_options`.
    usage: bool = True
    temperature: Annotated[float, Meta(ge=0, le=10)] | None = None
    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Meta(ge=1)] | None = None


class _Message(Struct, frozen=True):
    role: str
    content: str


class _StreamOptions(Struct, frozen=True):
    include_usage: bool = True


class _Request(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The body of `POST /chat/completions`."""

    model: str
    messages: list[_Message]
    stream: bool
    stream_options: _StreamOptions | None = None
    temperature: float | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None


def tls_for(url: str) -> ssl.SSLContext:
    """What a server's certificate is checked with: the authorities that httpx brings, or SSL_CERT_FILE's.

    Reading them takes 30 ms, so it is done once, before the event loop runs. Plain HTTP needs none.
    """
    if url.lower().startswith("https:"):
        return httpx.create_ssl_context(trust_env=True)
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


class _Again(Exception):
    """The request came to nothing, and another one may work, `after_s` from now at the earliest."""

    def __init__(self, text: str, after_s: float = 0.0) -> None:
        super().__init__(text)
        self.after_s = after_s


@dataclass(slots=True)
class OpenaiAnswerer:
    """Asks the model server at `url`; `system` is the system prompt, `key` goes as a bearer token."""

    url: str
    options: OpenaiOptions
    key: str
    system: str
    tls: ssl.SSLContext
    metrics: Metrics
    backoff_s: float = 0.5
    _client: httpx.AsyncClient | None = None
    _room: asyncio.Semaphore = field(init=False)

    def __post_init__(self) -> None:
        self._room = asyncio.Semaphore(self.options.at_once)

    async def answer(self, question: Question) -> AsyncGenerator[Piece, None]:
        """The answer word by word. To stop it closes the connection, and the server stops, too."""
        async with self._turn():
            deadline = _now() + self.options.first_token_s
            backoff = Backoff(first_s=self.backoff_s, most_s=8.0)
            for tries in range(1, MOST_TRIES + 1):
                try:
                    async with aclosing(self._attempt(question, deadline)) as pieces:
                        async for piece in pieces:
                            yield piece
                    return
                except _Again as failed:
                    # Jitter on what the server wants, too: all who were refused come back then.
                    wait_s = max(backoff.next_s(), failed.after_s * random.uniform(1.0, 1.2))
                    if (
                        tries == MOST_TRIES
                        or failed.after_s > MOST_RETRY_AFTER_S
                        or _now() + wait_s > deadline
                    ):
                        raise Unavailable(str(failed)) from None
                    logger.info(
                        "question %s: %s; asking again in %.1f s",
                        question.id,
                        failed,
                        wait_s,
                        extra=question.ids,
                    )
                    await asyncio.sleep(wait_s)

    async def run(self, answers: Answers) -> None:
        """Keeps the connections to the server, for ever."""
        try:
            await asyncio.Event().wait()
        finally:
            client, self._client = self._client, None
            if client is not None:
                await client.aclose()

    async def fault(self) -> str:
        """What is wrong with the server, the key or the model, as a short line; "" if nothing is.

        Raises Unavailable where it isn't there. A server without a list of models is asked for a word.
        """
        async with self._made() as client:
            try:
                async with asyncio.timeout(2 * _CONNECT_S):
                    response = await client.get(f"{self.url}/models", headers=self._headers)
                    if response.status_code in _UNLISTED:
                        hello = [_Message("user", "Hi")]
                        request = _Request(
                            model=self.options.model, messages=hello, stream=False, max_tokens=1
                        )
                        response = await client.post(
                            self._completions, content=msgspec.json.encode(request), headers=self._headers
                        )
            except (httpx.HTTPError, TimeoutError) as error:
                raise Unavailable(_why(error)) from None
        status, asked = response.status_code, f"{response.request.method} {response.request.url.path}"
        if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            whose = "the key of" if self.key else "requests without"
            return f"refuses {whose} {self.options.key_env} (status {status})"
        if status != HTTPStatus.OK:
            return f"answers {asked} with status {status}"
        names = _names(response.content)
        # Ollama has names without a tag, too.
        if names and not {self.options.model, f"{self.options.model}:latest"}.intersection(names):
            more = ", …" if len(names) > 5 else ""
            return f"has no model {self.options.model!r}; it has {', '.join(names[:5])}{more}"
        return ""

    @property
    def _headers(self) -> dict[str, str]:
        given = {"Accept-Encoding": "identity", "Content-Type": "application/json"}
        return given | ({"Authorization": f"Bearer {self.key}"} if self.key else {})

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """One of the `at_once`. Raises Overloaded where that takes too long."""
        try:
            async with asyncio.timeout(self.options.first_token_s):
                await self._room.acquire()
        except TimeoutError:
            raise Overloaded("the model server has too many questions of this node") from None
        try:
            yield
        finally:
            self._room.release()

    def _made(self) -> httpx.AsyncClient:
        # Proxies and certificates as the environment has them, which companies need to reach the world.
        host = urlsplit(self.url).hostname or ""
        return httpx.AsyncClient(
            timeout=httpx.Timeout(None, connect=_CONNECT_S, write=_CONNECT_S, pool=_CONNECT_S),
            limits=httpx.Limits(max_connections=2 * self.options.at_once, max_keepalive_connections=16),
            verify=self.tls,
            trust_env=not is_loopback(host),
            follow_redirects=False,
        )

    def _body(self, question: Question) -> bytes:
        messages = [_Message("system", self.system)] if self.system else []
        for turn in question.turns:
            if turn.question:
                messages.append(_Message("user", turn.question))
            elif messages and messages[-1].role == "assistant":
                # Two in a row of one role are refused by the templates of some models.
                said = messages.pop().content
                messages.append(_Message("assistant", f"{said}\n\n{turn.answer}"))
                continue
            messages.append(_Message("assistant", turn.answer))
        messages.append(_Message("user", question.text))
        request = _Request(
            model=self.options.model,
            messages=messages,
            stream=True,
            stream_options=_StreamOptions() if self.options.usage else None,
            temperature=self.options.temperature,
            max_tokens=self.options.max_tokens,
            max_completion_tokens=self.options.max_completion_tokens,
        )
        return msgspec.json.encode(request)

    async def _attempt(self, question: Question, deadline: float) -> AsyncGenerator[Piece, None]:
        """One request. Raises _Again, Unavailable, both only before the first text."""
        if self._client is None:
            self._client = self._made()
        began = _now()
        request = self._client.build_request(
            "POST", self._completions, content=self._body(question), headers=self._headers
        )
        try:
            async with asyncio.timeout_at(deadline):
                response = await self._client.send(request, stream=True)
        except TimeoutError:
            raise Unavailable(self._too_slow) from None
        except httpx.HTTPError as error:
            raise _Again(f"the model server can't be reached: {_why(error)}") from None
        try:
            if response.status_code != HTTPStatus.OK:
                yield await self._failure(question, response)
                return
            async with aclosing(self._read(question, response, began, deadline)) as pieces:
                async for piece in pieces:
                    yield piece
        finally:
            await response.aclose()

    @property
    def _completions(self) -> str:
        return f"{self.url}/chat/completions"

    @property
    def _too_slow(self) -> str:
        return f"the model server said nothing within {self.options.first_token_s:g} s"

    async def _read(
        self, question: Question, response: httpx.Response, began: float, deadline: float
    ) -> AsyncGenerator[Piece, None]:
        if response.headers.get("content-encoding", "identity") != "identity":
            raise Unavailable("the model server compresses its streams")
        # As the standard of event streams has it, whatever the server calls it.
        response.encoding = "utf-8"
        completion, fairness = Completion(), GivesWay()
        bounded = response.stream = _Bounded(response.stream)
        first_s, said_thinking, has_finished = 0.0, 0.0, False
        async with aclosing(EventSource(response).aiter_sse()) as events:
            while not completion.is_done:
                try:
                    async with asyncio.timeout_at(deadline):
                        event = await anext(events, None)
                    text = "" if event is None else completion.take(_data(event))
                except (TimeoutError, httpx.HTTPError, SSEError, ErrorInStream, _TooLarge) as error:
                    if completion.is_whole:
                        break
                    yield self._broken(question, completion, error)
                    return
                if event is None:
                    break
                bounded.unread = 0
                await fairness.give_way()
                if completion.unreadable > _MOST_UNREADABLE:
                    yield self._broken(question, completion, "most of it isn't JSON")
                    return
                now = _now()
                if text:
                    first_s = first_s or now - began
                    yield Delta(text)
                    now = _now()
                elif completion.thinking and self.options.thinking and now >= said_thinking + _THINKING_S:
                    said_thinking = now
                    yield StatusPart(self.options.thinking)
                while completion.sources:
                    yield completion.sources.pop(0)
                if completion.finish:
                    deadline = deadline if has_finished else now + _USAGE_S
                    has_finished = True
                elif text or completion.thinking:
                    deadline = now + self.options.between_tokens_s
        for piece in self._ending(question, completion, first_s):
            yield piece

    def _broken(self, question: Question, completion: "Completion", error: object) -> Unanswered:
        """How a stream that broke ends the question. Raises _Again, Unavailable, if it hadn't begun."""
        why = self._told(str(error)) if isinstance(error, ErrorInStream) else _why(error)
        logger.warning(
            "question %s: %s broke off after %d characters: %s",
            question.id,
            safe_url(self.url),
            completion.characters,
            why,
            extra=question.ids,
        )
        if completion.characters:
            return BROKEN_OFF
        if isinstance(error, ErrorInStream) and 400 <= error.status < 500 and error.status not in _ONCE_MORE:
            return REFUSED
        if isinstance(error, TimeoutError):
            raise Unavailable(self._too_slow)
        if isinstance(error, SSEError):
            raise Unavailable("the model server doesn't stream")
        raise _Again("the model server's answer broke off before it began")

    def _ending(self, question: Question, completion: "Completion", first_s: float) -> list[Piece]:
        """How the answer ends, and its cost in the log."""
        if not completion.is_whole:
            return [self._broken(question, completion, "the server closed the connection")]
        usage, counts = completion.usage, None
        if usage is not None:
            counts = {"prompt_tokens": usage.prompt, "completion_tokens": usage.completion}
            self.metrics.answer_tokens["prompt"] += usage.prompt
            self.metrics.answer_tokens["completion"] += usage.completion
        logger.info(
            "question %s: model %s, %d characters, first after %.2f s, ended with %s, tokens: %s",
            question.id,
            self.options.model,
            completion.characters,
            first_s,
            completion.finish or "stop",
            f"{usage.prompt} and {usage.completion}" if usage is not None else "not told",
            extra=question.ids,
        )
        if completion.finish == "content_filter":
            return [WITHHELD]
        if completion.finish == "broken":
            return [BROKEN_OFF]
        if not completion.characters:
            return [EMPTY]
        answered = Answered(By("bot", self.options.name or self.options.model), usage=counts)
        if completion.refused or completion.finish == "length":
            return [DECLINED if completion.refused else CUT_SHORT, answered]
        return [answered]

    async def _failure(self, question: Question, response: httpx.Response) -> Unanswered:
        """What an answer other than 200 means. Raises _Again, Unavailable."""
        status = response.status_code
        logger.warning(
            "question %s: %s answers with status %d: %s",
            question.id,
            safe_url(self.url),
            status,
            self._told(await _beginning(response)),
            extra=question.ids,
        )
        text = f"the model server answers with status {status}"
        if status >= 500 or status in _ONCE_MORE:
            raise _Again(text, _retry_after_s(response.headers.get("retry-after", "")))
        if status in _NEVER or status < 400:
            raise Unavailable(text)
        return REFUSED

    def _told(self, text: str) -> str:
        """What a server says, for the log: some repeat the key."""
        text = text.replace(self.key, "(the key)") if self.key else text
        return text[:_MOST_TOLD]


class _TooLarge(Exception):
    """More bytes than any answer has."""


class _Bounded(httpx.AsyncByteStream):
    """A body that isn't read without end: `unread` is what came since the last event."""

    def __init__(self, stream: object) -> None:
        assert isinstance(stream, httpx.AsyncByteStream)
        self.unread = 0
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        whole = 0
        async for piece in self._stream:
            whole += len(piece)
            self.unread += len(piece)
            if self.unread > MOST_EVENT_BYTES:
                raise _TooLarge(f"an event of more than {MOST_EVENT_BYTES} bytes")
            if whole > MOST_ANSWER_BYTES:
                raise _TooLarge(f"more than {MOST_ANSWER_BYTES} bytes")
            for start in range(0, len(piece), _PIECE_BYTES):
                if start:
                    # Who reads the lines of a piece, of which it may be made alone, lets nobody else run.
                    await asyncio.sleep(0)
                yield piece[start : start + _PIECE_BYTES]

    async def aclose(self) -> None:
        await self._stream.aclose()


def _now() -> float:
    """The loop's clock, by which `asyncio.timeout_at` goes."""
    return asyncio.get_running_loop().time()


def _data(event: ServerSentEvent) -> str:
    # Some servers have events of a name of their own beside, without data.
    return event.data if event.data.strip() else "{}"


def _why(error: object) -> str:
    """A failure in a few words."""
    if isinstance(error, TimeoutError):
        return "nothing came in time"
    return str(error) or type(error).__name__


async def _beginning(response: httpx.Response) -> str:
    """The first bytes of a body, as text."""
    body = bytearray()
    try:
        async with asyncio.timeout(_CONNECT_S):
            async for piece in response.aiter_raw():
                body += piece
                if len(body) >= _MOST_TOLD_BYTES:
                    break
    except (httpx.HTTPError, TimeoutError):
        pass
    return bytes(body[:_MOST_TOLD_BYTES]).decode(errors="replace")


def _retry_after_s(value: str) -> float:
    """Seconds, or a date (RFC 9110, 10.2.3); 0 for anything else."""
    value = value.strip()
    if value.isascii() and value.isdecimal():
        return float(value[:9])
    try:
        moment = parsedate_to_datetime(value)
    except (ValueError, TypeError, IndexError):
        return 0.0
    return max(0.0, (moment.replace(tzinfo=moment.tzinfo or UTC) - datetime.now(UTC)).total_seconds())


class _Model(Struct, frozen=True):
    id: str


class _Models(Struct, frozen=True):
    data: list[_Model]


def _names(body: bytes) -> list[str] | None:
    try:
        return [model.id for model in msgspec.json.decode(body, type=_Models).data]
    except (msgspec.MsgspecError, RecursionError):
        return None


DONE = "[DONE]"
_MOST_TOKENS = 1_000_000_000
Finish = Literal["", "stop", "length", "content_filter", "broken"]
# The words of OpenAI, Mistral, vLLM and OpenRouter; any other word is an end like `stop`.
_FINISHES: dict[str, Finish] = {
    "length": "length",
    "model_length": "length",
    "max_tokens": "length",
    "content_filter": "content_filter",
    "safety": "content_filter",
    "error": "broken",
    "abort": "broken",
}


class Usage(NamedTuple):
    """Tokens, as the server counts them."""

    prompt: int
    completion: int


class ErrorInStream(PushsseError):
    """The server says in an event that it can't go on. `status` as HTTP has it; 0 where it gives none."""

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status


class _Chunk(Struct, frozen=True):
    choices: Any = None
    usage: Any = None
    error: Any = None


_decoder = msgspec.json.Decoder(_Chunk)


@dataclass(slots=True)
class Completion:
    """One streamed completion, as far as it has come."""

    characters: int = 0
    finish: Finish = ""
    usage: Usage | None = None
    # What came last was a thought.
    thinking: bool = False
    refused: bool = False
    # Where the answer comes from, as far as nobody has been told.
    sources: list[SourcePart] = field(default_factory=list)
    cited: int = 0
    is_done: bool = False
    unreadable: int = 0

    @property
    def is_whole(self) -> bool:
        """Whether the server has said that this was all; the end of a connection doesn't say that."""
        return self.is_done or self.finish != ""

    def take(self, data: str) -> str:
        """The text by which an event makes the answer grow, mostly a word. Raises ErrorInStream."""
        self.thinking = False
        if data.strip() == DONE:
            self.is_done = True
            return ""
        try:
            chunk = _decoder.decode(data)
        except (msgspec.MsgspecError, RecursionError):
            self.unreadable += 1
            return ""
        if chunk.error:
            raise _error(chunk.error)
        if isinstance(chunk.usage, dict):
            usage = Usage(_count(chunk.usage, "prompt_tokens"), _count(chunk.usage, "completion_tokens"))
            self.usage = usage if any(usage) else self.usage
        choice = chunk.choices[0] if isinstance(chunk.choices, list) and chunk.choices else None
        return self._choice(choice) if isinstance(choice, dict) else ""

    def _choice(self, choice: dict[str, Any]) -> str:
        if finish := choice.get("finish_reason"):
            self.finish = _FINISHES.get(str(finish), "stop")
        grown = choice.get("delta") or choice.get("message")
        if not isinstance(grown, dict):
            return ""
        text = _text(grown.get("content"))
        if isinstance(refusal := grown.get("refusal"), str) and refusal:
            # What the model says in place of an answer: people get to read it.
            self.refused = True
            text += refusal
        found = _sources(grown.get("annotations"), most=MAX_PARTS - self.cited)
        self.cited += len(found)
        self.sources += found
        self.characters += len(text)
        self.thinking = not text and _thinks(grown)
        return text


def _text(content: object) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    texts = (part.get("text") for part in parts if isinstance(part, dict) and part.get("type") == "text")
    return "".join(text for text in texts if isinstance(text, str))


def _sources(annotations: object, *, most: int) -> list[SourcePart]:
    """What a model that searches cites, as OpenAI and OpenRouter tell it: so many of them."""
    found: list[SourcePart] = []
    for each in annotations if isinstance(annotations, list) else ():
        if len(found) >= most:
            break
        cited = each.get("url_citation") if isinstance(each, dict) else None
        if isinstance(cited, dict) and isinstance(url := cited.get("url"), str):
            title = cited.get("title")
            found.append(SourcePart(title if isinstance(title, str) and title else url, url))
    return found


def _thinks(grown: dict[str, Any]) -> bool:
    if grown.get("reasoning_content") or grown.get("reasoning"):
        return True
    content = grown.get("content")
    return isinstance(content, list) and any(
        isinstance(part, dict) and part.get("type") in ("thinking", "reasoning") for part in content
    )


def _count(usage: dict[str, Any], name: str) -> int:
    count = usage.get(name)
    return count if isinstance(count, int) and 0 <= count <= _MOST_TOKENS else 0


def _error(error: object) -> ErrorInStream:
    """`{"message", "code"}`, or a word; the code is a number at some servers, a word at others."""
    members = error if isinstance(error, dict) else {"message": error}
    code = members.get("code")
    status = int(code) if isinstance(code, int) or (isinstance(code, str) and code.isdecimal()) else 0
    return ErrorInStream(str(members.get("message", ""))[:1000], status if 100 <= status <= 599 else 0)
