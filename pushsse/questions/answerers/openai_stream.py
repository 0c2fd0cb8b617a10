"""What a server with OpenAI's chat completions says while it streams: chunks become text, and how it ended.

`openai` hands it the data of each event. Servers differ, so whatever is odd is passed over: `choices` empty,
null or absent, `content` as a list of parts, a `message` in place of a `delta`, unknown members. Thoughts
(`reasoning_content`, `reasoning`, parts of the type `thinking`) are never part of the text.
"""

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import msgspec
from msgspec import Struct

from pushsse.errors import PushsseError
from pushsse.questions import SourcePart

DONE = "[DONE]"
_MOST_TOKENS = 1_000_000_000
# Of one answer, which keeps no more: each is passed on by itself.
_MOST_SOURCES = 50
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
        found = _sources(grown.get("annotations"), most=_MOST_SOURCES - self.cited)
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
