"""Query parameters, read once for all endpoints. A bad one is a 400 that names it and its value."""

import re

from starlette.requests import Request

from pushsse.api.problem import HttpProblem
from pushsse.settings import seconds

# Not any Mapping: a request is one, too, of its scope.
Parameters = dict[str, str]
_TYPE = re.compile(r"[A-Za-z0-9_.-]{1,64}")


def refused(name: str, value: str, what: str) -> HttpProblem:
    """The problem of a parameter that can't be used."""
    return HttpProblem(400, "parameter_invalid", f"{name}={value[:80]!r} {what}")


def parameters(request: Request) -> Parameters:
    """All that a request has; of one that is given twice, the last."""
    return dict(request.query_params) if request.scope["query_string"] else {}


def flag(given: Parameters, name: str, *, default: bool) -> bool:
    """0 or 1."""
    value = given.get(name)
    if value is None:
        return default
    if value not in ("0", "1"):
        raise refused(name, value, "is neither 0 nor 1")
    return value == "1"


def number(given: Parameters, name: str, *, default: int, most: int) -> int:
    """A whole number from 1 to `most`."""
    value = given.get(name)
    if value is None:
        return default
    if not (value.isascii() and value.isdigit()) or len(value) > 9 or not 1 <= int(value) <= most:
        raise refused(name, value, f"isn't a whole number from 1 to {most}")
    return int(value)


def age(given: Parameters, name: str) -> float | None:
    """An age such as 30m, in seconds."""
    value = given.get(name)
    if value is None:
        return None
    try:
        return min(seconds(value), 366 * 86_400.0)
    except ValueError:
        raise refused(name, value, "isn't an age such as 30m") from None


def types(given: Parameters) -> frozenset[str] | None:
    """Names of event types, comma-separated; None for all."""
    value = given.get("types")
    if value is None:
        return None
    names = [name for name in value.split(",") if name]
    if not names or len(names) > 100 or not all(_TYPE.fullmatch(name) for name in names):
        raise refused("types", value, "isn't a list of 1–100 event types")
    return frozenset(names)
