"""The format `mapped`: JMESPath expressions over a record say what each member of the event is.

Made by `format_of` where a table has a map; `cloudevents` has one, too. Expressions are compiled once, and
are checked then: a function that isn't there, or a name that no record has, refuses the start. Deliberate:
- A record can't hold the event loop, whatever is in it: its value has a limit of bytes and of values, and the
  expressions together one of steps.
- `all` is everybody only where the expression itself has the word. What comes out of a record is a person's
  name: somebody called "all" mustn't make everybody read their orders.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import jmespath
import msgspec
from jmespath.exceptions import JMESPathError
from jmespath.functions import Functions
from jmespath.visitor import TreeInterpreter

from pushsse import event, strictjson
from pushsse.backplane import Draft
from pushsse.errors import InvalidInput, SettingsError, Violation
from pushsse.event import Event
from pushsse.intake import Drafter, seen_of, value_as_json
from pushsse.kafka import Record
from pushsse.settings import KafkaSource

MAX_STEPS = 5_000
# What expressions see.
ROOT = ("key", "value", "headers", "topic", "timestamp", "partition", "offset")
_REQUIRED = ("type", "to")
_SEEN_CHARACTERS = 300
# Later than this many seconds after 1970 is meant in milliseconds: the year 5138.
_SECONDS_UNTIL = 10**11
_DIGITS = re.compile(r"[0-9]{1,14}")
_raws = msgspec.json.Decoder(dict[str, msgspec.Raw])
JmesNode = dict[str, Any]


class TooManySteps(Exception):
    """The expressions of a map took more than MAX_STEPS steps for one record."""


class _Interpreter(TreeInterpreter):  # type: ignore[misc]
    """jmespath's own, which counts its steps: an array of a record may be as long as its sender likes."""

    def __init__(self) -> None:
        super().__init__()
        self.left = MAX_STEPS

    def visit(self, node: JmesNode, *args: Any, **kwargs: Any) -> Any:
        """One step. Raises TooManySteps."""
        self.left -= 1
        if self.left < 0:
            raise TooManySteps
        return super().visit(node, *args, **kwargs)


Evaluate = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Expression:
    """One expression of a map. `path` are the names where it is only a path of names."""

    name: str
    text: str
    evaluate: Evaluate
    path: tuple[str, ...]
    says_all: bool


@dataclass(frozen=True, slots=True)
class Map:
    """The expressions of a table, by the member of the event; `when` says whether there is one."""

    expressions: Mapping[str, Expression]
    interpreter: _Interpreter
    needs_headers: bool

    def members(self, seen: Mapping[str, object]) -> dict[str, object] | None:
        """The members that the map says, as decoded JSON, without `message`; None skips the record.

        Raises InvalidInput with the expression and what it saw.
        """
        self.interpreter.left = MAX_STEPS
        found: dict[str, object] = {}
        for name, expression in self.expressions.items():
            if name == "message":
                continue
            result = self._result(expression, seen)
            if name == "when":
                if _is_false(result):
                    return None
                continue
            member = _READERS[name](expression, result, seen)
            if member is not None:
                found[name] = member
            elif name in _REQUIRED:
                raise _wrong(expression, seen, f"gives {strictjson.shown(result)}")
        return found

    def message(self, seen: Mapping[str, object], value: bytes) -> tuple[bytes, bool] | None:
        """The message as JSON, and whether `value` has it like that; None where the map doesn't say.

        To be called after `members`. A part that a path of names leads to is the bytes that were sent, so
        its numbers keep their digits.
        """
        expression = self.expressions.get("message")
        if expression is None:
            return None
        if expression.path[:1] == ("value",):
            part = _part(value, expression.path[1:])
            if part is None or part == b"null":
                raise _wrong(expression, seen, "gives null")
            return part, True
        result = self._result(expression, seen)
        if result is None:
            raise _wrong(expression, seen, "gives null")
        return msgspec.json.encode(result), False

    def _result(self, expression: Expression, seen: Mapping[str, object]) -> object:
        try:
            return expression.evaluate(seen)
        except TooManySteps:
            text = f"takes more than {MAX_STEPS} steps together with the others of its map"
            raise _wrong(expression, seen, text) from None
        except (JMESPathError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
            # Of jmespath's own functions: a sum of texts, a sort of what can't be compared.
            text = " ".join(str(error).split())[:_SEEN_CHARACTERS]
            raise _wrong(expression, seen, f"fails: {text}") from None


@dataclass(frozen=True, slots=True)
class MappedFormat:
    """A record's value is JSON, and expressions say what of it is the event."""

    map: Map
    drafter: Drafter

    def __call__(self, record: Record, owner: str) -> Draft | None:
        value = record.value
        if value is None:
            return None
        seen = seen_of(record, value_as_json(value), with_headers=self.map.needs_headers)
        members = self.map.members(seen)
        if members is None:
            return None
        message, looked_at = self.map.message(seen, value) or (value, True)
        return self.drafter.of_record(made(members, message, looked_at=looked_at), record, owner)


def made(members: dict[str, object], message: bytes, *, looked_at: bool) -> Event:
    """An event of what a map says. Raises InvalidInput."""
    return event.of_members(members, message.removeprefix(strictjson.BOM), looked_at=looked_at)


# Compiling


def compiled(table: KafkaSource, *, required: Sequence[str] = _REQUIRED) -> Map:
    """The map of a table. Raises SettingsError that names the key and its line."""
    given = {name: getattr(table.map, name) for name in table.map.__struct_fields__} if table.map else {}
    for name in required:
        if not given.get(name):
            raise SettingsError(f"{table.at(f'map.{name}')}: is missing, and without it there is no event")
    interpreter = _Interpreter()
    expressions = {
        name: _compiled(table.at(f"map.{name}"), name, text, interpreter)
        for name, text in given.items()
        if text
    }
    texts = " ".join(each.text for each in expressions.values())
    return Map(expressions, interpreter, needs_headers="headers" in texts or "@" in texts)


def _compiled(where: str, name: str, text: str, interpreter: _Interpreter) -> Expression:
    try:
        tree: JmesNode = jmespath.compile(text).parsed
    except JMESPathError as error:
        raise SettingsError(f"{where}: {text!r} isn't JMESPath: {_first_line(error)}") from None
    except RecursionError:
        raise SettingsError(f"{where}: the expression is nested too deep") from None
    for node in _nodes(tree):
        if node["type"] == "function_expression":
            _check_function(where, text, node)
    for root in _roots(tree):
        if root["type"] == "field" and root["value"] not in ROOT:
            word = root["value"]
            raise SettingsError(
                f"{where}: {text!r}: a record has no {word!r}, it has {', '.join(ROOT)}; write value.{word}"
                f" for a member of its value, '{word}' in quotes for a text"
            )
    if name not in Event.__struct_fields__ and name != "when":
        raise SettingsError(f"{where}: events have no {name!r}")
    says_all = any(node["type"] == "literal" and node["value"] == "all" for node in _nodes(tree))
    return Expression(name, text, evaluation(tree, interpreter), _path(tree), says_all)


def evaluation(tree: JmesNode, interpreter: TreeInterpreter) -> Evaluate:
    """What an expression gives for a value, as jmespath has it.

    The nodes of most maps are functions here, which takes a sixth of the time; none of them loops over a
    record's arrays. All others are left to jmespath's interpreter.
    """
    kind = tree["type"]
    if path := _path(tree):
        return _following(path)
    inner = [evaluation(child, interpreter) for child in tree["children"] if isinstance(child, dict)]
    if kind == "literal":
        literal = tree["value"]
        return lambda value: literal
    if kind == "multi_select_list":
        return _selecting(inner)
    if kind == "or_expression":
        return lambda value: inner[1](value) if _is_false(found := inner[0](value)) else found
    if kind == "and_expression":
        return lambda value: found if _is_false(found := inner[0](value)) else inner[1](value)
    if kind == "comparator" and tree["value"] in ("eq", "ne"):
        compare = TreeInterpreter.COMPARATOR_FUNC[tree["value"]]
        return lambda value: compare(inner[0](value), inner[1](value))
    if kind == "function_expression":
        return _calling(tree["value"], inner)
    return lambda value: interpreter.visit(tree, value)


def _following(path: Sequence[str]) -> Evaluate:
    def follow(value: Any) -> Any:
        for name in path:
            if value.__class__ is not dict:
                return None
            value = value.get(name)
        return value

    return follow


def _selecting(inner: Sequence[Evaluate]) -> Evaluate:
    def select(value: Any) -> Any:
        if value is None:
            return None
        found = []
        # Before Python 3.12 a comprehension is a call of its own.
        for each in inner:
            found.append(each(value))
        return found

    return select


def _calling(name: str, arguments: Sequence[Evaluate]) -> Evaluate:
    functions = Functions()

    def call(value: Any) -> Any:
        return functions.call_function(name, [each(value) for each in arguments])

    def join(value: Any) -> Any:
        glue, parts = arguments[0](value), arguments[1](value)
        if glue.__class__ is str and parts.__class__ is list:
            try:
                return glue.join(parts)
            except TypeError:
                pass
        return functions.call_function(name, [glue, parts])

    return join if name == "join" else call


def _is_false(value: object) -> bool:
    return value is not True and (value is False or value in _FALSE)


def _first_line(error: Exception) -> str:
    text = str(error).partition("\n")[0].removeprefix("Invalid jmespath expression: ")
    return text.removesuffix(", for expression:").removesuffix(":")


def _check_function(where: str, text: str, node: JmesNode) -> None:
    """jmespath looks at a function when it is called, which would be at the first record."""
    known = Functions.FUNCTION_TABLE.get(node["value"])
    if known is None:
        names = ", ".join(sorted(Functions.FUNCTION_TABLE))
        raise SettingsError(f"{where}: {text!r}: there is no function {node['value']}(), only {names}")
    wanted, count = len(known["signature"]), len(node["children"])
    if count < wanted or (count > wanted and not known["signature"][-1].get("variadic")):
        raise SettingsError(f"{where}: {text!r}: {node['value']}() takes {wanted} arguments, not {count}")


def _nodes(tree: JmesNode) -> Iterator[JmesNode]:
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        waiting += [child for child in node["children"] if isinstance(child, dict)]


# Of these only the first part looks at the record itself, the others at what it gives.
_STEPWISE = (
    "subexpression",
    "pipe",
    "index_expression",
    "projection",
    "value_projection",
    "filter_projection",
    "flatten",
)


def _roots(tree: JmesNode) -> Iterator[JmesNode]:
    """The nodes that look at the record itself."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if node["type"] in _STEPWISE:
            waiting.append(node["children"][0])
        elif node["type"] not in ("expref", "slice", "literal"):
            yield node
            waiting += [child for child in node["children"] if isinstance(child, dict)]


def _path(tree: JmesNode) -> tuple[str, ...]:
    """The names of a path of names; none where it is more than that."""
    if tree["type"] == "field":
        return (tree["value"],)
    if tree["type"] != "subexpression":
        return ()
    paths = [_path(child) for child in tree["children"]]
    return tuple(name for path in paths for name in path) if all(paths) else ()


# Reading results


def _part(value: bytes, path: Sequence[str]) -> bytes | None:
    """The bytes of a member of JSON that is known to be good; None where there is none."""
    part = value.removeprefix(strictjson.BOM)
    for name in path:
        try:
            found = _raws.decode(part).get(name)
        except msgspec.ValidationError:
            return None
        if found is None:
            return None
        part = bytes(found)
    return part


def _wrong(expression: Expression, seen: Mapping[str, object], why: str) -> InvalidInput:
    """The expression, and what it saw."""
    text = strictjson.beginning(
        {name: seen[name] for name in ("value", "key", "headers") if seen[name]}, _SEEN_CHARACTERS
    )
    return InvalidInput(Violation(f"map.{expression.name}", f"`{expression.text}` {why}; it saw {text}"))


def _text(expression: Expression, result: object, seen: Mapping[str, object]) -> str | None:
    """A text, or a number as one; null, and "", are none."""
    if isinstance(result, str):
        return result or None
    if result is None:
        return None
    if isinstance(result, int | float) and not isinstance(result, bool):
        return msgspec.json.encode(result).decode()
    raise _wrong(expression, seen, f"gives {strictjson.shown(result)}, which is no text")


def _to(expression: Expression, result: object, seen: Mapping[str, object]) -> object:
    """A name, several in an array, or what an event has; everybody by the word `all` in the expression."""
    if isinstance(result, str) and result:
        return event.ALL if result == event.ALL and expression.says_all else {"users": [result]}
    if isinstance(result, list):
        return {"users": [_text(expression, each, seen) for each in result]}
    if isinstance(result, dict):
        return result
    name = _text(expression, result, seen)
    return None if name is None else {"users": [name]}


def _ts(expression: Expression, result: object, seen: Mapping[str, object]) -> object:
    """A time as RFC 3339 has it, or seconds or milliseconds since 1970, also as digits."""
    if isinstance(result, str) and _DIGITS.fullmatch(result):
        result = int(result)
    if result is None or isinstance(result, str):
        return result or None
    if not isinstance(result, int | float) or isinstance(result, bool):
        raise _wrong(expression, seen, f"gives {strictjson.shown(result)}, which is no time")
    milliseconds = result if abs(result) >= _SECONDS_UNTIL else result * 1000
    try:
        return datetime.fromtimestamp(milliseconds / 1000, UTC)
    except (OverflowError, ValueError, OSError):
        raise _wrong(expression, seen, f"gives {strictjson.shown(result)}, which is no time") from None


def _ttl_s(expression: Expression, result: object, seen: Mapping[str, object]) -> int | None:
    """Whole seconds; parts of one don't count."""
    if result is None or result == "":
        return None
    if isinstance(result, str) and _DIGITS.fullmatch(result):
        return int(result)
    if isinstance(result, int | float) and not isinstance(result, bool) and abs(result) < _SECONDS_UNTIL:
        return int(result)
    raise _wrong(expression, seen, f"gives {strictjson.shown(result)}, which is no number of seconds")


_FALSE: tuple[object, ...] = ("", [], {}, None)
_READERS = {"to": _to, "ts": _ts, "ttl_s": _ttl_s} | dict.fromkeys(
    ("type", "desc", "id", "campaign", "collapse", "withdraw"), _text
)
