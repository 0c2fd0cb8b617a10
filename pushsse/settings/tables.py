"""Tables of the settings file of which there may be several: what they hold, and on which lines it stands.

Called where settings are read; the values are in `Settings`. Errors name the table, the key and the line.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from pushsse.errors import SettingsError

# The key under which a table read from a file has the lines of its other keys.
LINES = "\x00lines"
_TABLE = re.compile(r"\s*\[(\[?[^\[\]]+\]?)\]\s*(?:#.*)?$")
_KEY = re.compile(r"\s*[\"']?([A-Za-z0-9_-]+)[\"']?\s*[=.]")


class KafkaMap(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """JMESPath expressions over a record: what each says is that member of the event. "" leaves it out."""

    when: str = ""
    type: str = ""
    message: str = ""
    desc: str = ""
    to: str = ""
    id: str = ""
    ts: str = ""
    ttl_s: str = ""
    campaign: str = ""
    collapse: str = ""
    withdraw: str = ""


class Table(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the file of which there may be several, and where it stands."""

    # What an error names: the table, and the line of each of its keys.
    where: str = ""
    lines: dict[str, int] = {}

    def at(self, key: str) -> str:
        """How an error names one of its keys: the table, the key and, where it came from a file, the line."""
        return f"{self.where}: {key}{_line(self.lines, key)}"


class KafkaSource(Table, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One table `[[kafka]]`: topics that are read, and how their records become events."""

    topics: Annotated[tuple[str, ...], Meta(min_length=1)]
    format: str = "pushsse"
    start: str = ""
    name: str = ""
    map: KafkaMap | None = None

    @property
    def label(self) -> str:
        """How metrics name it."""
        return self.name or ",".join(self.topics)

    @property
    def kind(self) -> str:
        """The format without what follows its colon."""
        return self.format.partition(":")[0]


class OutboxSource(Table, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One table `[[outbox]]`: a table of PostgreSQL whose rows become events."""

    table: str = "pushsse_outbox"
    database_url: str = ""
    keep: Literal["delete", "mark"] = "delete"
    batch: Annotated[int, Meta(ge=1, le=2_000)] = 500
    poll_s: Annotated[float, Meta(ge=0.05, le=60)] = 1.0


class TypeTable(Table, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One table `[[types]]`: a type of the catalogue, which checks what is in it (`preferences`)."""

    name: str
    title: str | dict[str, str] = ""
    description: str | dict[str, str] = ""
    category: str = ""
    default: bool = True
    mandatory: bool = False
    order: int = 0
    urgent: bool = False
    hidden: bool = False


# Settings that are tables of the file, and what a table holds.
TABLES: Mapping[str, type[Struct]] = {"kafka": KafkaSource, "outbox": OutboxSource, "types": TypeTable}


def as_tables(value: object) -> list[dict[str, object]]:
    """The tables of a setting, as TOML has them; none where it isn't that."""
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def lines_of(text: str, name: str) -> list[dict[str, int]]:
    """For each table `[[name]]` of a TOML file the lines of its keys, and of the table itself as ""."""
    found: list[dict[str, int]] = []
    within = ""
    for number, line in enumerate(text.split("\n"), 1):
        if (table := _TABLE.match(line)) is not None:
            within = re.sub(r"[\s\"']", "", table[1])
            if within == f"[{name}]":
                found.append({"": number})
            elif found and within.startswith(f"{name}."):
                found[-1].setdefault(within.removeprefix(f"{name}."), number)
        elif found and (key := _KEY.match(line)) is not None and within.strip("[]").split(".")[0] == name:
            prefix = ".".join([*within.strip("[]").split(".")[1:], ""])
            found[-1].setdefault(f"{prefix}{key[1]}", number)
    return found


def listed(name: str, text: str) -> object:
    """Tables as a variable or an option has them. Raises ValueError."""
    if name == "outbox" and not text.lstrip().startswith("["):
        return [{"table": each.strip()} for each in text.split(",") if each.strip()]
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise ValueError(f"it isn't a JSON list of tables: {error}") from None


def tables(name: str, source: str, value: object) -> tuple[Struct, ...]:
    """The tables of a setting, each knowing where it stands. Raises SettingsError that names the key."""
    if not isinstance(value, list | tuple) or not all(isinstance(each, dict) for each in value):
        raise ValueError(f"it isn't a list of tables [[{name}]]")
    made: list[Struct] = []
    for number, table in enumerate(value, 1):
        where = source.replace(name, f"{name} {number}", 1)
        if not source.startswith(f"{name} in "):
            where = f"{name} {number} of {source}"
        lines = table.get(LINES, {})
        said = {key: value for key, value in table.items() if key != LINES}
        try:
            for key in ("where", "lines"):
                if key in said:
                    raise msgspec.ValidationError(f"Object contains unknown field `{key}`")
            made.append(msgspec.convert({**said, "where": where, "lines": lines}, TABLES[name]))
        except msgspec.ValidationError as error:
            raise SettingsError(_table_error(where, lines, error)) from None
    return tuple(made)


def _table_error(where: str, lines: object, error: msgspec.ValidationError) -> str:
    text, _, at = str(error).partition(" - at `$")
    key = at.rstrip("`").lstrip(".")
    if found := re.search(r"field `(\w+)`", text):
        key = f"{key}.{found[1]}".lstrip(".")
    text = f"{text[:1].lower()}{text[1:]}".replace("object ", "table ", 1).replace("`object`", "a table", 1)
    return f"{where}: {key}{_line(lines, key.partition('[')[0])}: {text}"


def _line(lines: object, key: str) -> str:
    """Where a key of a table stands; where what holds it stands, if nobody knows better."""
    known = lines if isinstance(lines, dict) else {}
    line = known.get(key) or known.get(key.partition(".")[0]) or known.get("")
    return f" (line {line})" if line else ""
