"""Query parameters, read once for all endpoints. A bad one is a 400 that names it and its value.

Deliberate: what is blank counts as not given, blanks around a value are passed over, and spellings that can
only mean one thing are taken. A 400 ends a browser's EventSource for good: it is for what can never work.
"""

import re

from starlette.requests import Request

from pushsse.api.problem import HttpProblem
from pushsse.settings import seconds

# Not any Mapping: a request is one, too, of its scope.
Parameters = dict[str, str]
_TYPE = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_MOST_TYPES = 1000  # as many as the catalogue holds
_FLAGS = {
    "0": False,
    "false": False,
    "no": False,
    "off": False,
    "1": True,
    "true": True,
    "yes": True,
    "on": True,
}
# As clients and polyfills spell it, without case, "-" and "_".
_NO_JOINTS = str.maketrans("", "", "-_")
_LAST_EVENT_ID = frozenset({"lasteventid", "evslasteventid"})


def refused(name: str, value: str, what: str) -> HttpProblem:
    """The problem of a parameter that can't be used."""
    return HttpProblem(400, "parameter_invalid", f"{name}={value[:80]!r} {what}")


def parameters(request: Request) -> Parameters:
    """What a request has, without blanks. Of one that is given twice the last holds; of `types` all do."""
    if not request.scope["query_string"]:
        return {}
    given = [(name, value.strip()) for name, value in request.query_params.multi_items()]
    found = {name: value for name, value in given if value}
    if "types" in found:
        found["types"] = ",".join(value for name, value in given if name == "types")
    return found


def places(request: Request, given: Parameters) -> list[str]:
    """Where a client says that it has got, in rising order of weight: by query, then by header.

    EventSource sends the header by itself, and an old address in its URL for ever, so the header wins.
    Polyfills that can't send one append theirs to the page's URL, so the later of several wins. A header that
    was given twice may have been joined on the way (RFC 9110, 5.3).
    """
    named = [value for name, value in given.items() if name.translate(_NO_JOINTS).lower() in _LAST_EVENT_ID]
    headers = ",".join(request.headers.getlist("last-event-id"))
    return named + [value for value in map(str.strip, headers.split(",")) if value]


def flag(given: Parameters, name: str, *, default: bool) -> bool:
    """0 or 1, also as words."""
    value = given.get(name)
    if value is None:
        return default
    found = _FLAGS.get(value.lower())
    if found is None:
        raise refused(name, value, "is neither 0 nor 1")
    return found


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
        return min(seconds(value.lower()), 366 * 86_400.0)
    except ValueError:
        raise refused(name, value, "isn't an age such as 30s, 30m, 1.5h or 7d") from None


def types(given: Parameters) -> frozenset[str] | None:
    """Names of event types, comma-separated; None for all."""
    names = [name for each in given.get("types", "").split(",") if (name := each.strip())]
    if not names:
        return None
    if len(names) > _MOST_TYPES or not all(map(_TYPE.fullmatch, names)):
        what = f"isn't a list of at most {_MOST_TYPES} event types such as alarm,order.paid"
        raise refused("types", given["types"], what)
    return frozenset(names)
