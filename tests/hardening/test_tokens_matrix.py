"""Every forged, spoiled or misplaced token, by every way in: refused before anything starts, in one shape."""

import base64
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path

import jwt
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from tests.answering import answering
from tests.keys import AUDIENCE, ISSUER, OTHERS, PRIVATE, RSA, SECRET, by_hand, claims, jwk, key_set, signed
from tests.serving import Running, serving
from tests.waiting import eventually

pytestmark = pytest.mark.anyio
SIGNERS = ("RS256", "PS256", "ES256", "EdDSA")
PUBLIC = {name: jwk(name, PRIVATE[name]) for name in SIGNERS}
PEM = RSA.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
DER = RSA.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
# Of the import, some minutes before the tests of a whole run.
NOW = int(time.time())
ODD_KIDS: list[object] = [7, None, [], {}, True]
ODD_SUBS: list[object] = ["", " ", "a b", "a\nb", "a\x00b", "\ufeffann", "an\u200bn", "x" * 129, 7, None]
ODD_SUBS += [["ann"], {}, True]


def hs(algorithm: str = "HS256", key: str = SECRET, /, **more: object) -> str:
    return jwt.encode({**claims(), **more}, key, algorithm)


def with_header(header: object, secret: bytes = SECRET.encode()) -> str:
    return by_hand(header, secret)


def without(name: str) -> str:
    return jwt.encode({key: value for key, value in claims().items() if key != name}, SECRET)


def unsigned(algorithm: object, signature: str = "") -> str:
    header, body, _ = with_header({"alg": algorithm, "typ": "JWT"}).split(".")
    return f"{header}.{body}.{signature}"


def swapped(token: str, **more: object) -> str:
    """A good token's signature under other claims."""
    header, _, signature = token.split(".")
    body = base64.urlsafe_b64encode(json.dumps({**claims(), **more}).encode()).rstrip(b"=").decode()
    return f"{header}.{body}.{signature}"


def private_pem() -> bytes:
    return bytes(OTHERS["RS256"].private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


FORGED: dict[str, str] = {
    **{f"none as {name!r}": unsigned(name) for name in ("none", "None", "NONE", "nOnE", "", None, "HS256")},
    **{f"none with a signature {name}": unsigned(name, "AAAA") for name in ("none", "HS256", "RS256")},
    **{
        f"{algorithm} with the public key as {what}": by_hand({"alg": algorithm, "kid": "RS256"}, secret)
        for algorithm in ("HS256", "HS384", "HS512")
        for what, secret in {
            "PEM": PEM,
            "PEM without its last line end": PEM.rstrip(),
            "DER": DER,
            "JWK": json.dumps(PUBLIC["RS256"]).encode(),
            "n": PUBLIC["RS256"]["n"].encode(),
            "nothing": b"",
        }.items()
    },
    **{f"a secret that says {name}": with_header({"alg": name, "kid": name}) for name in SIGNERS},
    **{f"{name} with another key": signed(name, OTHERS[name], kid=name) for name in OTHERS},
    **{f"{name} with another key, no kid": signed(name, OTHERS[name]) for name in OTHERS},
    "RS512 with a key for RS256": signed("RS512", kid="RS256"),
    "PS512 with a key for PS256": signed("PS512", kid="PS256"),
    "RS256 with a key for PS256": signed("RS256", kid="PS256"),
    "ES384": signed("ES384", kid="ES256"),
    "another secret": hs("HS256", SECRET + "!"),
    "the secret, cut": hs("HS256", SECRET[:-1]),
    "another person under the same signature": swapped(hs(), sub="root"),
    "more scopes under the same signature": swapped(signed("ES256", kid="ES256"), scope="pushsse:admin"),
    **{
        f"kid {kid[:20]!r}": by_hand({"alg": "HS256", "kid": kid}, b"")
        for kid in (
            "../../../../dev/null",
            "/dev/null",
            "' OR '1'='1",
            "x' UNION SELECT 'secret' --",
            "http://127.0.0.1:1/keys",
            "|sleep 5",
            "\x00",
            "k" * 10_000,
        )
    },
    **{
        f"unknown kid {kid[:20]!r}": signed("ES256", OTHERS["ES256"], kid=kid)
        for kid in ("mine", "../RS256", "", "k" * 10_000)
    },
    **{f"kid as {kid!r}": with_header({"alg": "HS256", "kid": kid}) for kid in ODD_KIDS},
    "its own key in the header": jwt.encode(
        claims(), OTHERS["RS256"], "RS256", {"jwk": jwk("RS256", OTHERS["RS256"]), "kid": "RS256"}
    ),
    "its own key elsewhere": jwt.encode(
        claims(), OTHERS["RS256"], "RS256", {"jku": "http://127.0.0.1:1/", "x5u": "http://127.0.0.1:1/"}
    ),
    "its own certificate": jwt.encode(claims(), OTHERS["RS256"], "RS256", {"x5c": ["AAAA"], "kid": "RS256"}),
    "crit": with_header({"alg": "HS256", "crit": ["exp"], "exp": NOW + 60}),
    "crit b64": with_header({"alg": "HS256", "crit": ["b64"], "b64": False}),
    "expired": hs(exp=NOW - 1),
    "expired, another key": signed("ES256", kid="ES256", exp=NOW - 1),
    "not yet": hs(nbf=NOW + 3_000),
    "made tomorrow": hs(iat=NOW + 3_000),
    "for too long": hs(exp=NOW + 90_000),
    "for too long, made long ago": hs(iat=NOW - 90_000),
    "no exp": without("exp"),
    "no aud": without("aud"),
    "no iss": without("iss"),
    "no sub": without("sub"),
    **{f"aud {aud!r}": hs(aud=aud) for aud in ("other", "push2", "PUSH", ["other"], [], {"push": 1}, None)},
    **{f"iss {iss!r}": hs(iss=iss) for iss in ("https://evil.example", f"{ISSUER}/", ISSUER.upper(), "")},
    **{
        f"sub {sub!r}"[:40]: by_hand({"alg": "HS256"}, SECRET.encode(), {**claims(), "sub": sub})
        for sub in ODD_SUBS
    },
    "signed as a private PEM": by_hand({"alg": "HS256"}, private_pem()),
    "nothing": ".",
    "dots": "..",
    "five parts": f"{hs()}.x.y",
    "with a blank": f"{hs()} x",
    "twice": f"{hs()},{hs()}",
}
CODES = {"token_invalid", "token_expired", "token_not_yet_valid"}
SHAPE = ["type", "title", "status", "code", "detail"]


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Running]:
    body = key_set(*PUBLIC.values())

    async def keys(_: str) -> tuple[int, bytes, str]:
        return 200, body, ""

    async with (
        answering(keys) as remote,
        serving(
            tmp_path,
            jwt_secret=SECRET,
            jwks_url=remote.url,
            jwt_audience=(AUDIENCE,),
            jwt_issuer=(ISSUER,),
        ) as running,
    ):
        running.http.headers["Origin"] = running.url

        async def good() -> bool:
            return (await stream_status(running, signed("ES256", kid="ES256"))) == 200

        await eventually(good)
        yield running


async def stream_status(node: Running, token: str) -> int:
    async with node.stream("ann", Authorization=f"Bearer {token}") as stream:
        return int(stream.response.status_code)


async def test_good_tokens_of_each_kind_open_a_stream(node: Running) -> None:
    good = [hs(name) for name in ("HS256", "HS384", "HS512")]
    good += [signed(name, kid=name) for name in SIGNERS] + [signed(name) for name in SIGNERS]
    good += [hs(aud=["other", AUDIENCE]), hs(iat=NOW, nbf=NOW)]
    for token in good:
        assert await stream_status(node, token) == 200


@pytest.mark.slow
async def test_every_forged_token_is_refused_everywhere_in_one_shape(node: Running) -> None:
    opened = node.node.metrics.streams_opened
    for what, token in FORGED.items():
        if not token.isprintable():
            continue
        places = [{"Authorization": f"Bearer {token}"}]
        # As a cookie's value can be (RFC 6265, 4.1.1).
        if not set(token) & set(' ",;\\'):
            places.append({"Cookie": f"__Host-pushsse={token}"})
        for headers in places:
            for method, path in (
                ("GET", "/v1/stream"),
                ("HEAD", "/v1/stream"),
                ("GET", "/v1/events"),
                ("GET", "/v1/me"),
                ("POST", "/v1/events"),
                ("POST", "/v1/questions"),
                ("POST", "/v1/users/ann/kick"),
            ):
                content = b"{}" if method == "POST" else None
                kind = {"Content-Type": "application/json"}
                reply = await node.http.request(method, path, headers={**headers, **kind}, content=content)
                assert reply.status_code == 401, (what, method, path, reply.text)
                assert reply.headers["content-type"] == "application/problem+json"
                challenge = reply.headers["www-authenticate"]
                assert challenge.startswith('Bearer error="invalid_token", error_description="'), what
                if method != "HEAD":
                    problem = reply.json()
                    assert list(problem) == SHAPE
                    assert problem["code"] in CODES, what
                    assert token not in reply.text
    assert node.node.metrics.streams_opened == opened
    assert node.node.metrics.appended == 0


async def test_a_scope_that_is_not_one_of_ours_is_none(node: Running) -> None:
    opened = node.node.metrics.streams_opened
    for scope in (
        "pushsse:",
        "pushsse:king",
        "pushsse:STREAM",
        "pushsse:ask",
        "pushsse:stream,pushsse:admin",
    ):
        for name in ("scope", "scp"):
            reply = await node.http.get(
                "/v1/stream", headers={"Authorization": f"Bearer {hs(**{name: scope})}"}
            )
            assert (reply.status_code, reply.json()["code"]) == (403, "scope_missing"), scope
            assert list(reply.json()) == SHAPE
            challenge = 'Bearer error="insufficient_scope", scope="pushsse:stream"'
            assert reply.headers["www-authenticate"] == challenge
    # Words of other services say nothing about ours: such a token is a person's, and no more.
    foreign: list[object] = [
        "openid profile",
        "admin publish",
        "other:admin",
        "xpushsse:admin",
        ["pushsse", "admin"],
        "openid\u00a0pushsse:admin",
    ]
    for words in foreign:
        headers = {"Authorization": f"Bearer {hs(scope=words)}"}
        me = (await node.http.get("/v1/me", headers=headers)).json()
        assert me["scope"] == "pushsse:stream pushsse:ask pushsse:preferences"
    assert node.node.metrics.streams_opened == opened
