"""docs/asyncapi.yaml as tests use it: the messages of a channel, and whether a value is what they say."""

from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from tests.schemas import Schemas

DOCUMENT: dict[str, Any] = yaml.safe_load(
    (Path(__file__).parents[2] / "docs" / "asyncapi.yaml").read_text(encoding="utf-8")
)


def _strict(node: Any) -> Any:
    """Where members are listed there may be no others: what is sent has to be in the document, all of it."""
    if isinstance(node, list):
        return [_strict(each) for each in node]
    if not isinstance(node, dict):
        return node
    made = {name: _strict(inner) for name, inner in node.items()}
    is_object = node.get("type") == "object" and isinstance(node.get("properties"), dict)
    return {"additionalProperties": False, **made} if is_object else made


_SCHEMAS = Schemas(_strict(DOCUMENT))


class Described:
    """One channel of the document."""

    def __init__(self, channel: str) -> None:
        references = DOCUMENT["channels"][channel]["messages"]
        self.messages: dict[str, Any] = {
            name: DOCUMENT["components"]["messages"][each["$ref"].rpartition("/")[2]]
            for name, each in references.items()
        }

    @cached_property
    def by_name(self) -> dict[str, Any]:
        """The schema of each message's payload, by the message's name."""
        return {
            message["name"]: DOCUMENT["components"]["schemas"][message["payload"]["$ref"].rpartition("/")[2]]
            for message in self.messages.values()
        }

    def check(self, schema: Any, value: object) -> None:
        """Raises jsonschema_rs.ValidationError."""
        _SCHEMAS.validate(schema, value)

    def validate(self, name: str, value: object) -> None:
        """Whether a value is the payload of the message with this name. Raises as `check`."""
        [message] = [each for each in self.messages.values() if each["name"] == name]
        self.check(message["payload"], value)

    def validate_any(self, value: object) -> None:
        """Whether it is the payload of exactly one message. Raises as `check`."""
        self.check({"oneOf": [message["payload"] for message in self.messages.values()]}, value)
