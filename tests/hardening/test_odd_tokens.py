"""Tokens that are signed as they should be, and hold what no token should: a 401, never a 500."""

import base64
import hmac
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.serving import Running, serving

pytestmark = pytest.mark.anyio
SECRET = "a secret of thirty-two bytes and more"
SOON = int(time.time()) + 3600
# JSON as it is written into the token, since no library makes these.
ODD = [
    '{"sub": "\\ud800", "exp": SOON}',
    '{"sub": "a\\udfffb", "exp": SOON}',
    '{"sub": "a\\u0000b", "exp": SOON}',
    '{"sub": "\\ufeffann", "exp": SOON}',
    '{"sub": "an\\u200bn", "exp": SOON}',
    '{"sub": "\\u202eann", "exp": SOON}',
    '{"sub": "", "exp": SOON}',
    '{"sub": 7, "exp": SOON}',
    '{"sub": ["ann"], "exp": SOON}',
    '{"sub": null, "exp": SOON}',
    '{"exp": SOON}',
    '{"sub": "ann"}',
    '{"sub": "ann", "exp": "SOON"}',
    '{"sub": "ann", "exp": true}',
    '{"sub": "ann", "exp": null}',
    '{"sub": "ann", "exp": [SOON]}',
    '{"sub": "ann", "exp": 1e308}',
    '{"sub": "ann", "exp": 1e999}',
    '{"sub": "ann", "exp": Infinity}',
    '{"sub": "ann", "exp": NaN}',
    '{"sub": "ann", "exp": -1e308}',
    '{"sub": "ann", "exp": 1' + "0" * 400 + "}",
    '{"sub": "ann", "exp": 1' + "0" * 5000 + "}",
    '{"sub": "ann", "exp": SOON, "nbf": 1e308}',
    '{"sub": "ann", "exp": SOON, "nbf": "1"}',
    '{"sub": "ann", "exp": SOON, "nbf": NaN}',
    '{"sub": "ann", "exp": SOON, "iat": "1"}',
    '{"sub": "ann", "exp": SOON, "iat": {}}',
    '{"sub": "ann", "exp": SOON, "iat": Infinity}',
    '{"sub": "ann", "exp": SOON, "scope": 5}',
    '{"sub": "ann", "exp": SOON, "scope": 0}',
    '{"sub": "ann", "exp": SOON, "scope": false}',
    '{"sub": "ann", "exp": SOON, "scope": {"pushsse:stream": true}}',
    '{"sub": "ann", "exp": SOON, "scope": ["pushsse:admin", 5]}',
    '{"sub": "ann", "exp": SOON, "scope": [["pushsse:admin"]]}',
    '{"sub": "ann", "exp": SOON, "scope": "pushsse:admin", "scp": 5}',
    '{"sub": "ann", "exp": SOON, "scp": [null]}',
    "[]",
    '"ann"',
    "[" * 5000,
    "",
]


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Running]:
    async with serving(tmp_path, jwt_secret=SECRET) as running:
        yield running


def signed(claims: str, header: str = '{"alg":"HS256"}') -> str:
    parts = [base64.urlsafe_b64encode(text.encode()).rstrip(b"=") for text in (header, claims)]
    signature = hmac.digest(SECRET.encode(), b".".join(parts), "sha256")
    return b".".join([*parts, base64.urlsafe_b64encode(signature).rstrip(b"=")]).decode()


async def test_odd_claims_are_refused_before_anything_starts(node: Running) -> None:
    for claims in ODD:
        for path in ("/v1/stream", "/v1/preferences", "/v1/events"):
            headers = {"Authorization": f"Bearer {signed(claims.replace('SOON', str(SOON)))}"}
            reply = await node.http.get(path, headers=headers)
            assert reply.status_code == 401, (claims[:80], reply.text)
            assert reply.headers["www-authenticate"].startswith("Bearer")
            assert reply.json()["code"] in ("token_invalid", "token_expired", "token_not_yet_valid")
    assert node.node.metrics.streams_opened == 0


async def test_odd_headers_of_tokens_are_refused(node: Running) -> None:
    claims = json.dumps({"sub": "ann", "exp": SOON})
    odd = ("{}", "[]", '{"alg":["HS256"]}', '{"alg":{}}', '{"alg":"HS256","crit":["x"]}', '{"alg":"\\ud800"}')
    for header in (*odd, '{"alg":"HS256","kid":1}', "[" * 5000, "\x00"):
        reply = await node.http.get(
            "/v1/preferences", headers={"Authorization": f"Bearer {signed(claims, header)}"}
        )
        assert (reply.status_code, reply.json()["code"]) == (401, "token_invalid"), header[:80]


async def test_a_number_with_a_fraction_is_a_time(node: Running) -> None:
    token = signed(json.dumps({"sub": "ann", "exp": SOON + 0.5, "iat": SOON - 4000.5}))
    reply = await node.http.get("/v1/preferences", headers={"Authorization": f"Bearer {token}"})
    assert reply.status_code == 200
