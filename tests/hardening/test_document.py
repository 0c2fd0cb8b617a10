"""Calls made from the interface's document, right and wrong ones: the answers are those that it promises."""

import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import jwt
import pytest
import requests
import schemathesis.openapi
from hypothesis import given
from schemathesis import Case, GenerationMode, Response
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from pushsse.api.document import document
from tests.cli.running import served
from tests.hardening.fuzz import fuzz

pytestmark = [pytest.mark.real, pytest.mark.slow]
SECRET = "a secret of thirty-two bytes and more"
CHECKS = [
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    negative_data_rejection,
]


def without_security() -> dict[str, Any]:
    """The document as for calls that need no token: what tokens are taken is tested elsewhere."""
    found = document()
    for calls in found["paths"].values():
        for operation in calls.values():
            operation.pop("security", None)
            parameters = [each for each in operation.get("parameters", ()) if each["name"] != "ticket"]
            operation["parameters"] = parameters
    return found


SCHEMA: Any = schemathesis.openapi.from_dict(without_security())
CALLS: list[Any] = [found.ok() for found in SCHEMA.get_all_operations()]
LONG_WAITS = frozenset(map(str, range(2, 31)))
# A node's address, and who may do everything on it.
Api = tuple[str, requests.Session]


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    limits = {f"PUSHSSE_{name}_PER_MINUTE": "0" for name in ("QUESTIONS", "SWITCHES", "LOG_BYTES")}
    with served(tmp_path_factory.mktemp("node"), PUSHSSE_JWT_SECRET=SECRET, **limits) as node:
        now = time.time()
        claims = {"sub": "somebody", "iat": now, "exp": now + 3600, "scope": "pushsse:admin"}
        with requests.Session() as session:
            session.trust_env = False
            session.headers["Authorization"] = f"Bearer {jwt.encode(claims, SECRET)}"
            yield node.url, session
        assert "Traceback" not in node.logged


@pytest.mark.parametrize("mode", GenerationMode)
def test_a_call_is_answered_as_the_document_says(api: Api, mode: GenerationMode) -> None:
    outcomes: Counter[tuple[str, int]] = Counter()
    for call in CALLS:
        if mode.is_positive or may_be_wrong(document()["paths"][call.path][call.method]):
            try_out(api, call, mode, outcomes)
    statuses = {status for _, status in outcomes}
    assert statuses & {200, 202}
    assert mode.is_positive or statuses >= {400, 422}, outcomes


def may_be_wrong(operation: dict[str, Any]) -> bool:
    """Whether a call takes anything but texts of any kind."""
    bounds = {"type", "pattern", "minimum", "enum"}
    schemas = [each["schema"] for each in operation.get("parameters", ())]
    texts = all(schema.get("type") == "string" and len(bounds & set(schema)) == 1 for schema in schemas)
    return "requestBody" in operation or not texts


def try_out(api: Api, call: Any, mode: GenerationMode, outcomes: Counter[tuple[str, int]]) -> None:
    """Makes one call in many ways. It is a 5xx only where the document has that for a node that is well."""
    required = CHECKS if call.path == "/readyz" else [*CHECKS, not_a_server_error]

    @fuzz(4)
    @given(call.as_strategy(generation_mode=mode))
    def check(case: Case[Any]) -> None:
        if case.query and str(case.query.get("wait_s", "")).strip() in LONG_WAITS:
            # One that is as right, and doesn't take half a minute.
            case.query["wait_s"] = "1"
        response, is_stream = answered(api, case)
        # The document has a stream as one text, not as objects. White space around a parameter is ignored,
        # which JSON Schema can't say.
        excluded = [response_schema_conformance] if is_stream else []
        blank = any(str(value) != str(value).strip() for value in (case.query or {}).values())
        if blank or becomes_text(case):
            excluded.append(negative_data_rejection)
        case.validate_response(response, checks=required, excluded_checks=excluded)
        outcomes[call.path, response.status_code] += 1

    check()


def becomes_text(case: Case[Any]) -> bool:
    """Whether something is wrong as a value only: it is sent as a text, and any text is right there."""
    recipients = (case.query or {}).get("to", "")
    return not isinstance(recipients, str) or (
        case.media_type == "text/plain" and not isinstance(case.body, (str, bytes))
    )


def answered(api: Api, case: Case[Any]) -> tuple[Response, bool]:
    """The answer, of a stream what came first; and whether it is one."""
    url, session = api
    arguments = case.as_transport_kwargs(base_url=url)
    with session.request(**arguments, timeout=30, stream=True) as response:
        is_stream = response.headers.get("content-type", "").startswith("text/event-stream")
        found = Response(
            response.status_code,
            {name.lower(): [value] for name, value in response.headers.items()},
            next(response.iter_content(65536)) if is_stream else response.content,
            response.request,
            response.elapsed.total_seconds(),
            verify=False,
        )
        return found, is_stream
