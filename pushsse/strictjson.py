"""JSON as pushsse takes it from outside: strict about what JSON is, clear about what is wrong with it.

Called by the event's decoding and by every POST. Deliberate: two parsers. msgspec reads what is right;
only what it refuses is read again by the standard library, to say why it was refused. What is longer than
EXPLAINED_BYTES is refused in msgspec's words: to find better ones would hold the event loop for too long.
"""

import json
import re
from functools import lru_cache
from typing import Any, NoReturn, TypeVar

import msgspec
import msgspec.inspect

from pushsse.errors import InvalidInput, NotJson, Violation

MAX_DEPTH = 64
BOM = b"\xef\xbb\xbf"
EXPLAINED_BYTES = 128 * 1024
REFUSALS = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_SHOWN = 80
_SHOWN_AT = 200
# Of JSON that is known to be well-formed: elsewhere it would look for the end of each string anew.
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"')
_ROUND_TO_SQUARE = bytes.maketrans(b"{}", b"[]")
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_SURROGATE = re.compile("[\ud800-\udfff]")
T = TypeVar("T")
_encoder = json.JSONEncoder(ensure_ascii=True, default=str)


def loads(body: bytes) -> object:
    """Decodes JSON (RFC 8259). A byte order mark before it is passed over.

    Raises NotJson for what isn't JSON, invalid UTF-8 and NaN; InvalidInput for depth over 64, NUL, lone
    surrogates and numbers out of range.
    """
    body = body.removeprefix(BOM)
    try:
        value: object = msgspec.json.decode(body)
    except REFUSALS as error:
        refuse(body, error)
    # In the bytes, since what a member's later twin hides isn't in the value, and may be passed on.
    if _has_nul(body) or (not isinstance(value, str) and _is_deep(body)):
        _check(value)
        hidden = f"a member that is given twice has a NUL character, or is nested deeper than {MAX_DEPTH}"
        raise InvalidInput(Violation("$", hidden))
    return value


def convert(value: object, to: type[T]) -> T:
    """Checks decoded JSON against a type. Raises InvalidInput that names the field and the bad value."""
    try:
        return msgspec.convert(value, to)
    except msgspec.ValidationError as error:
        text, at = _said(error)
        at, detail = _named(value, at, _in_words(text, to))
        # Both may hold a member's name, which the sender chose.
        raise InvalidInput(Violation(at[:_SHOWN_AT], detail)) from None


def read(body: bytes, to: type[T]) -> T:
    """Decodes JSON and checks it against a type, however long it is. Raises NotJson, InvalidInput.

    In what is longer than EXPLAINED_BYTES, members that the type doesn't have are only passed over.
    """
    if len(body) <= EXPLAINED_BYTES:
        return convert(loads(body), to)
    if _has_nul(body):
        raise InvalidInput(Violation("$", "has a NUL character"))
    try:
        return msgspec.json.decode(body.removeprefix(BOM), type=to)
    except REFUSALS as error:
        refuse(body, error)


def peek(body: bytes, to: type[T]) -> T:
    """Decodes JSON as a type that leaves members as they are (msgspec.Raw). Raises NotJson, InvalidInput.

    What it passes over isn't looked at: whoever reads a Raw member reads it with `loads`.
    """
    body = body.removeprefix(BOM)
    try:
        return msgspec.json.decode(body, type=to)
    except msgspec.ValidationError as error:
        if len(body) > EXPLAINED_BYTES:
            refuse(body, error)
        value = loads(body)
        text, at = _said(error)
        at, detail = _named(value, at, _in_words(text, to))
        raise InvalidInput(Violation(at[:_SHOWN_AT], detail)) from None
    except REFUSALS as error:
        refuse(body, error)


def shown(value: object) -> str:
    """A value as an error names it: JSON, cut to 80 characters."""
    return beginning(value, _SHOWN)


def beginning(value: object, most: int) -> str:
    """The first `most` characters of a value as JSON."""
    text = ""
    # Piece by piece: the whole of a long value would be written for the sake of its beginning.
    for piece in _encoder.iterencode(value[: most + 1] if isinstance(value, str) else value):
        text += piece
        if len(text) > most:
            return text[:most] + "…"
    return text


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


def _said(error: Exception) -> tuple[str, str]:
    """What msgspec says, and where."""
    text, _, at = str(error).partition(" - at `")
    # Of a member's name: the object that it is in.
    return text, at.removeprefix("key` in `").rstrip("`") or "$"


def refuse(body: bytes, error: Exception) -> NoReturn:
    """Says why msgspec couldn't read a body, and raises that as NotJson or InvalidInput."""
    if isinstance(error, RecursionError):
        raise InvalidInput(Violation("$", f"is nested deeper than {MAX_DEPTH}")) from None
    if len(body) > EXPLAINED_BYTES:
        text, at = _said(error)
        # A ValidationError is a DecodeError, too: JSON, but not what was expected, or a number out of range.
        if isinstance(error, msgspec.ValidationError) or "surrogate" in text:
            raise InvalidInput(Violation(at[:_SHOWN_AT], f"{text[:1].lower()}{text[1:]}")) from None
        raise NotJson(Violation("$", f"isn't JSON: {text}")) from None
    try:
        value = json.loads(body.decode("utf-8"), parse_constant=_refuse, parse_int=float)
    except RecursionError:
        raise InvalidInput(Violation("$", f"is nested deeper than {MAX_DEPTH}")) from None
    except UnicodeDecodeError as bad:
        raise NotJson(Violation("$", f"isn't UTF-8: byte {bad.start} is 0x{body[bad.start]:02x}")) from None
    except ValueError as bad:
        raise NotJson(Violation("$", f"isn't JSON: {bad}")) from None
    _check(value)
    raise InvalidInput(Violation("$", str(error).lower())) from None


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a JSON value")


# Where a value is: its container's place, and its name or index there. Most places are never asked for.
_Place = tuple["_Place", object] | None


def has_more_values(body: bytes, most: int) -> bool:
    """Whether JSON has more values than `most`, more or less: members, elements, arrays and objects.

    Raises NotJson.
    """
    # A body has no more values than bytes.
    if len(body) <= most or _count(body) <= most:
        return False
    if (body.count(b'"') - body.count(b'\\"')) // 2 > 2 * most:
        # So many texts are values or names of values; to look into each would take long.
        return True
    try:
        msgspec.json.decode(body.removeprefix(BOM), type=msgspec.Raw)
    except REFUSALS as error:
        raise NotJson(Violation("$", f"isn't JSON: {error}")) from None
    # Texts have commas, too.
    return _count(_STRING.sub(b"", body)) > most


def _count(body: bytes) -> int:
    return body.count(b",") + body.count(b"[") + body.count(b"{")


def _has_nul(body: bytes) -> bool:
    """Whether JSON has the escape of a NUL character, which isn't itself escaped."""
    # One byte is found thirty times as fast as six, and few texts have it.
    if b"\\" not in body:
        return False
    return b"\\u0000" in body and b"\\u0000" in body.replace(b"\\\\", b"  ")


def _is_deep(body: bytes) -> bool:
    """Whether JSON is nested deeper than MAX_DEPTH."""
    if body.count(b"[") + body.count(b"{") <= MAX_DEPTH:
        return False
    brackets = _STRING.sub(b"", body).translate(_ROUND_TO_SQUARE, _NO_BRACKETS)
    for _ in range(MAX_DEPTH):
        # Whatever has nothing in it goes; what is left after n times is deeper than n.
        brackets = brackets.replace(b"[]", b"")
    return bool(brackets)


def _check(value: object) -> None:
    """Raises InvalidInput for depth over 64, NUL and lone surrogates. Linear: words only at the end."""
    waiting: list[tuple[Any, int, _Place]] = []
    _look(value, None, 0, waiting)
    while waiting:
        container, depth, place = waiting.pop()
        if depth > MAX_DEPTH:
            raise InvalidInput(Violation(_path(place), f"is nested deeper than {MAX_DEPTH}"))
        if isinstance(container, dict):
            for name, inner in container.items():
                _look(name, place, depth, waiting)
                _look(inner, (place, name), depth, waiting)
        else:
            for index, inner in enumerate(container):
                _look(inner, (place, index), depth, waiting)


def _look(value: object, place: _Place, depth: int, waiting: list[tuple[Any, int, _Place]]) -> None:
    if isinstance(value, list | dict):
        waiting.append((value, depth + 1, place))
    elif isinstance(value, str):
        if "\x00" in value:
            raise InvalidInput(Violation(_path(place), f"has a NUL character, got {shown(value)}"))
        if not value.isascii() and _SURROGATE.search(value):
            raise InvalidInput(Violation(_path(place), f"has a lone surrogate, got {shown(value)}"))


def _path(place: _Place) -> str:
    steps: list[str] = []
    while place is not None:
        place, step = place
        steps.append(f"[{step}]" if isinstance(step, int) else f".{step}")
    return ("$" + "".join(reversed(steps)))[:_SHOWN_AT]
