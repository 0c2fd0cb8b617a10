"""Validators of JSON Schema for parts of a document, OpenAPI's or AsyncAPI's."""

import json
from functools import lru_cache
from typing import Any

import jsonschema_rs

# No string of a test has a lone surrogate, and this library's patterns know none.
_SURROGATES = r"\ud800-\udfff"


class Schemas:
    """The schemas of one document; `#/…` leads into it."""

    def __init__(self, document: dict[str, Any]) -> None:
        self._document = json.loads(json.dumps(document), object_hook=_understood)
        self._validator = lru_cache(maxsize=None)(self._made)

    def validate(self, schema: Any, value: object) -> None:
        """Raises jsonschema_rs.ValidationError."""
        self._validator(json.dumps(schema)).validate(value)

    def _made(self, schema: str) -> Any:
        whole = {"$ref": "#/wanted", "wanted": json.loads(schema, object_hook=_understood)}
        given = {**whole, "components": self._document["components"]}
        return jsonschema_rs.Draft202012Validator(given, validate_formats=True)


def _understood(node: dict[str, Any]) -> dict[str, Any]:
    pattern = node.get("pattern")
    return node | {"pattern": pattern.replace(_SURROGATES, "")} if isinstance(pattern, str) else node
