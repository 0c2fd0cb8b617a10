"""JSON as pushsse takes it from outside: strict about what JSON is, clear about what is wrong with it.

Called by the event's decoding and by every POST. Deliberate: two parsers. msgspec reads what is right;
only what it refuses is read again by the standard library, to say why it was refused.
"""

import json
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NoReturn, TypeVar

import msgspec
import msgspec.inspect

from pushsse.errors import InvalidInput, NotJson, Problem

MAX_DEPTH = 64
BOM = b"\xef\xbb\xbf"
_SHOWN = 80
T = TypeVar("T")


def loads(body: bytes) -> object:
    """Decodes JSON (RFC 8259). A byte order mark before it is passed over.

    Raises NotJson for what isn't JSON, invalid UTF-8 and NaN; InvalidInput for depth over 64, NUL, lone
    surrogates and numbers out of range.
    """
    body = body.removeprefix(BOM)
    try:
        value: object = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        _explain(body, error)
    if body.count(b"[") + body.count(b"{") > MAX_DEPTH or b"\\u0000" in body:
        _check(value)
    return value


def convert(value: object, to: type[T]) -> T:
    """Checks decoded JSON against a type. Raises InvalidInput that names the field and the bad value."""
    try:
        return msgspec.convert(value, to)
    except msgspec.ValidationError as error:
        text, _, at = str(error).partition(" - at `")
        at = at.rstrip("`") or "$"
        raise InvalidInput(Problem(*_named(value, at, _in_words(text, to)))) from None


def shown(value: object) -> str:
    """A value as an error names it: JSON, cut to 80 characters."""
    text = json.dumps(value, ensure_ascii=True, default=str)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"


def _named(value: object, at: str, text: str) -> tuple[str, str]:
    if "required field" in text or "unknown field" in text:
        name = text.split("`")[1]
        member = f"{at}.{name}"
        if "required" in text:
            return member, "is required"
        found = _at(value, at)
        return member, f"isn't known here, got {shown(found.get(name) if isinstance(found, dict) else found)}"
    return at, f"{text[:1].lower()}{text[1:]}, got {shown(_at(value, at))}"


def _in_words(text: str, to: Any) -> str:
    """What msgspec says, without regular expressions: the description and the example of whatever has it."""
    # By how it begins: a member's name, which the sender chose, may stand in it.
    if text.startswith("Expected `str` matching regex"):
        return next((words for pattern, words in _patterns(to) if repr(pattern) in text), text)
    if text.startswith(("Expected `datetime`", "Invalid RFC3339")):
        return "isn't a time with a zone, such as 2026-11-23T08:00:00Z (RFC 3339)"
    return text


@lru_cache(maxsize=64)
def _patterns(to: Any) -> tuple[tuple[str, str], ...]:
    """The patterns within a type, the longest first, and what they allow."""
    found: dict[str, str] = {}
    waiting: list[Any] = [msgspec.inspect.type_info(to)]
    seen: set[int] = set()
    while waiting:
        each = waiting.pop()
        if isinstance(each, msgspec.inspect.Metadata):
            schema = each.extra_json_schema or {}
            pattern = getattr(each.type, "pattern", None)
            if pattern is not None and "description" in schema:
                examples = schema.get("examples", ())
                such = f", such as {shown(examples[0])}" if examples else ""
                found[pattern] = f"isn't {schema['description']}{such}"
        if isinstance(each, list | tuple):
            waiting += each
        elif isinstance(each, msgspec.inspect.Type | msgspec.inspect.Field) and id(each) not in seen:
            seen.add(id(each))
            waiting += [getattr(each, name) for name in each.__struct_fields__]
    return tuple(sorted(found.items(), key=lambda item: -len(item[0])))


def _at(value: object, path: str) -> object:
    """Follows a path as msgspec writes it ($.to.users[3]; [...] stands for some element)."""
    for step in path.removeprefix("$").replace("[", ".[").split(".")[1:]:
        if step.startswith("[") and isinstance(value, list | tuple):
            index = step.strip("[]")
            value = value[int(index)] if index.isdigit() and int(index) < len(value) else value
        elif isinstance(value, dict) and step in value:
            value = value[step]
    return value


def _explain(body: bytes, error: Exception) -> NoReturn:
    if isinstance(error, RecursionError):
        raise InvalidInput(Problem("$", f"is nested deeper than {MAX_DEPTH}")) from None
    try:
        value = json.loads(body.decode("utf-8"), parse_constant=_refuse, parse_int=float)
    except RecursionError:
        raise InvalidInput(Problem("$", f"is nested deeper than {MAX_DEPTH}")) from None
    except UnicodeDecodeError as bad:
        raise NotJson(Problem("$", f"isn't UTF-8: byte {bad.start} is 0x{body[bad.start]:02x}")) from None
    except ValueError as bad:
        raise NotJson(Problem("$", f"isn't JSON: {bad}")) from None
    _check(value)
    raise InvalidInput(Problem("$", str(error).lower())) from None


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a JSON value")


def _check(value: object) -> None:
    """Raises InvalidInput for depth over 64, NUL and lone surrogates."""
    for at, text in _strings(value, "$", 1):
        if "\x00" in text:
            raise InvalidInput(Problem(at, f"has a NUL character, got {shown(text)}"))
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise InvalidInput(Problem(at, f"has a lone surrogate, got {shown(text)}"))


def _strings(value: Any, at: str, depth: int) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield at, value
    elif isinstance(value, list | dict):
        if depth > MAX_DEPTH:
            raise InvalidInput(Problem(at[:200], f"is nested deeper than {MAX_DEPTH}"))
        for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
            if isinstance(name, str):
                yield at, name
            yield from _strings(
                inner, f"{at}[{name}]" if isinstance(name, int) else f"{at}.{name}", depth + 1
            )
