"""Writes docs/configuration.md, the list of all settings, from the settings themselves.

    python -m deploy.reference

A test fails until that has been done after a change.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from msgspec import Meta

from pushsse.settings import FIELDS, Settings, variable

PAGE = Path(__file__).parents[1] / "docs" / "configuration.md"
# Each heading, and the first setting below it, in the order of the fields.
GROUPS = {
    "host": "The process",
    "auth": "Identity",
    "database_url": "Database and Redis",
    "kafka_bootstrap": "Kafka",
    "shards": "Events and their log",
    "heartbeat_s": "Streams and connections",
    "max_streams": "Limits",
    "questions_keep_days": "Keeping and stopping",
    "answerer": "Questions",
}
HEAD = """# Configuration

All settings. `python -m deploy.reference` writes this page from the settings themselves, and
`pushsse serve --help` lists the same.

A setting is an entry of `pushsse.toml` ([example](../pushsse.toml.example), `--config FILE`), a variable, and
an option: `redis_url`, `PUSHSSE_REDIS_URL`, `--redis-url`. A variable overrides the file, and an option
overrides both. An empty variable counts as not set. A variable that begins with `PUSHSSE_` and isn't a
setting is named in the log, with the one that it resembles.

- Times are seconds (`_s`) and sizes are bytes (`_bytes`), unless the description says otherwise.
- Lists are separated by commas in a variable, and arrays in the file.
- Tables (`[[kafka]]`, `[[outbox]]`, `[[types]]`, `[[answerer]]`) stand at the end of the file: see
  [sources](sources.md), [outbox](outbox.md), [the catalogue](preferences.md#the-catalogue) and
  [answerers](questions.md#several-answerers).
- After a change restart the nodes, one after another. `pushsse doctor` tests the new settings first.

Without any of them, `make run` is a whole service in one process. Several nodes need at least
`PUSHSSE_DATABASE_URL`, `PUSHSSE_REDIS_URL`, `PUSHSSE_KAFKA_BOOTSTRAP` and a key ([identity](identity.md)).
"""


def page() -> str:
    """The page as it has to be."""
    return HEAD + "\n".join(lines())


def lines() -> Iterator[str]:
    hints = get_type_hints(Settings, include_extras=True)
    for name, field in FIELDS.items():
        if name in GROUPS:
            yield from ("", f"## {GROUPS[name]}", "", "| variable | meaning | default |", "|---|---|---|")
        meta = next(each for each in get_args(hints[name]) if isinstance(each, Meta))
        yield f"| `{variable(name)}` | {meaning(hints[name], meta)} | {default(field.default)} |"
    yield ""


def meaning(hint: Any, meta: Meta) -> str:
    """The help text, with what the value may be."""
    kind = get_args(hint)[0]
    text = (meta.description or "").replace("|", "\\|")
    if get_origin(kind) is Literal:
        return f"{text}. One of {', '.join(f'`{each}`' for each in get_args(kind))}"
    bounds = [
        f"{word} {bound:,g}" for word, bound in (("from", meta.ge), ("to", meta.le)) if bound is not None
    ]
    return f"{text} ({' '.join(bounds)})" if bounds else text


def default(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(f"`{each}`" for each in value)
    if isinstance(value, float):
        value = f"{value:g}" if value < 1_000_000 else f"{value:.0f}"
    return "" if value in ("", None) else f"`{value}`"


if __name__ == "__main__":
    PAGE.write_text(page())
