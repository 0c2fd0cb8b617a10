"""URLs as people may see them: in the banner, in `doctor`, in the log and in errors. Secrets never get there.

Deliberate: what can't be told apart from a secret isn't shown. Libraries don't agree on how to read a URL
with raw special characters in its password, so no part of it is safe.
"""

import re

HIDDEN = "…"
_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.:-]*)://(?P<rest>.*)", re.DOTALL)
_PLACE = r"(?:[A-Za-z0-9._%-]*|\[[0-9A-Fa-f:.]+\])(?::\d{1,5})?"
_REST = re.compile(
    rf"(?:[^/?#]*@)?(?P<places>{_PLACE}(?:,{_PLACE})*)(?P<path>/[^?#@=]*)?(?:\?(?P<query>[^#@]*))?"
)
# Where PostgreSQL is told by a directory: `postgres:///name?host=/var/run/postgresql`.
_PLACES = re.compile(r"(?:host|port)=[A-Za-z0-9._/:%,-]+")


def shown(url: str) -> str:
    """A URL without user, password and parameters; `scheme://…` where they can't be told from the rest.

    Never raises, whatever it is given. What is no URL (`host:port,host:port`) is shown if it holds no secret.
    """
    found = _URL.fullmatch(url.strip())
    if found is None:
        return HIDDEN if re.search(r"[@=?#]|//", url) else url
    scheme, rest = found["scheme"], found["rest"]
    if scheme.lower() == "sqlite":
        # A file's name, which may hold an @.
        return f"{scheme}://{rest.partition('?')[0]}"
    parts = _REST.fullmatch(rest)
    if parts is None:
        return f"{scheme}://{HIDDEN}"
    places = [part for part in (parts["query"] or "").split("&") if _PLACES.fullmatch(part)]
    query = f"?{'&'.join(places)}" if places else ""
    return f"{scheme}://{parts['places']}{parts['path'] or ''}{query}"
