"""Public keys: what they have signed is good, also while their server is away, and nothing else is."""

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from deploy.parts import PartMissing
from deploy.parts.certificate import make_certificate
from pushsse.api import HttpProblem
from pushsse.api.identity import Identity
from pushsse.api.identity.remote import MOST_BYTES, PACE_S, TIMEOUT_S, KeyServer, Remote, RemoteUnavailable
from pushsse.api.identity.tokens import Keys, TokenRules, Tokens
from pushsse.errors import Unavailable
from pushsse.hub.people import NothingRevoked
from pushsse.stream.immediate import ImmediateHttp
from tests.answering import Answering, answering
from tests.keys import (
    AUDIENCE,
    CURVES,
    ISSUER,
    OTHERS,
    PRIVATE,
    RSA,
    SECRET,
    by_hand,
    claims,
    jwk,
    key_set,
    signed,
)
from tests.parts import missing
from tests.serving import serving
from tests.waiting import eventually

pytestmark = pytest.mark.anyio


class Held:
    """Keys that don't change."""

    may_fetch = False

    def __init__(self, body: bytes) -> None:
        self.keys: Keys | None = Keys.parse(body)

    async def fetched(self) -> None:
        """Never."""


def tokens(keys: Any, *secrets: str) -> Tokens:
    rules = TokenRules(audiences=(AUDIENCE,), issuers=(ISSUER,))
    return Tokens({f"SECRET_{n}": s for n, s in enumerate(secrets)}, rules, NothingRevoked(), key_server=keys)


async def who(checked: Tokens, token: str) -> Identity:
    found = checked.identity(token)
    return found if isinstance(found, Identity) else await found()


async def refusal(checked: Tokens, token: str) -> str:
    with pytest.raises(HttpProblem) as found:
        await who(checked, token)
    assert found.value.status == 401
    return found.value.code


@pytest.mark.parametrize("algorithm", PRIVATE)
async def test_what_a_key_has_signed_is_good_at_once_and_costs_little(algorithm: str) -> None:
    checked = tokens(Held(key_set(*(jwk(name, private) for name, private in PRIVATE.items()))))
    for kid in (algorithm, None):
        token = signed(algorithm, kid=kid)
        assert isinstance(checked.identity(token), Identity)
        assert await refusal(checked, signed(algorithm, kid=kid, aud="other")) == "token_invalid"
    fresh = [signed(algorithm, kid=algorithm, n=n) for n in range(20)]
    took = []
    for token in fresh:
        # This thread's own: others may have the processor.
        began = time.thread_time()
        checked.identity(token)
        took.append(time.thread_time() - began)
    assert min(took) < 0.002


@pytest.mark.parametrize("algorithm", PRIVATE)
async def test_a_key_is_good_for_its_own_algorithm_alone(algorithm: str) -> None:
    checked = tokens(Held(key_set(jwk(algorithm, PRIVATE[algorithm]))))
    for other, private in PRIVATE.items():
        if other != algorithm:
            for kid in (algorithm, None):
                assert await refusal(checked, signed(other, private, kid=kid)) == "token_invalid"


async def test_a_key_without_an_algorithm_has_the_usual_one() -> None:
    for algorithm in ("RS256", *CURVES, "EdDSA"):
        bare = jwk(algorithm, PRIVATE[algorithm])
        del bare["alg"], bare["use"]
        checked = tokens(Held(key_set(bare)))
        assert (await who(checked, signed(algorithm, kid=algorithm))).user == "ann"
        for other in ("RS512", "PS256"):
            assert await refusal(checked, signed(other, kid=algorithm)) == "token_invalid"


async def test_a_public_key_is_never_a_secret_and_a_secret_no_key() -> None:
    public = jwk("RS256", RSA)
    checked = tokens(Held(key_set(public)), SECRET)
    assert (await who(checked, jwt.encode(claims(), SECRET))).user == "ann"
    assert (await who(checked, signed("RS256", kid="RS256"))).user == "ann"
    pem = RSA.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    der = RSA.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    for secret in (pem, der, json.dumps(public).encode(), public["n"].encode()):
        for algorithm in ("HS256", "HS384", "HS512"):
            forged = by_hand({"alg": algorithm, "kid": "RS256"}, secret)
            assert await refusal(checked, forged) == "token_invalid"
            assert await refusal(tokens(Held(key_set(public))), forged) == "token_invalid"


async def test_keys_that_are_no_public_keys_for_signatures_are_left_out() -> None:
    good = jwk("ES256", PRIVATE["ES256"])
    short = rsa.generate_private_key(public_exponent=65537, key_size=1024)
    odd: list[object] = [
        {"kty": "oct", "k": "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3JldA", "alg": "HS256", "kid": "oct"},
        {**jwk("RS256", RSA), "d": "AQAB"},
        jwk("RS256", RSA, use="enc"),
        jwk("RS256", RSA, key_ops=["encrypt"]),
        jwk("RS256", RSA, alg="RSA-OAEP"),
        jwk("RS256", RSA, alg="none"),
        jwk("RS256", RSA, alg="HS256"),
        jwk("RS256", RSA, alg="ES256"),
        jwk("RS256", RSA, alg=["RS256"]),
        jwk("RS256", RSA, kid=7),
        jwk("RS256", short),
        jwk("ES256", PRIVATE["ES384"]),
        {"kty": "RSA", "n": "!!", "e": "AQAB"},
        {"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"},
        {"kty": "OKP", "crv": "X25519", "x": "AA"},
        {},
        [],
        None,
        "key",
    ]
    assert len(Keys.parse(key_set(*odd, good))) == 1
    for body in (
        key_set(),
        key_set(*odd),
        b"{}",
        b"[]",
        b"null",
        b"<html>",
        b"\xff",
        b'{"keys": {}}',
        b"[" * 9000,
    ):
        with pytest.raises(ValueError):
            Keys.parse(body)


@asynccontextmanager
async def fetching(remote: Answering, **options: float) -> AsyncIterator[KeyServer]:
    """A key server's service, running."""
    server = KeyServer(Remote(remote.url, at_once=1), **options)
    service = asyncio.create_task(server.run())
    try:
        yield server
    finally:
        service.cancel()
        with suppress(asyncio.CancelledError):
            await service


class Published:
    """What a key server answers with."""

    def __init__(self, *keys: object) -> None:
        self.status, self.body, self.more = 200, key_set(*keys), ""
        self.hold: asyncio.Event | None = None

    async def __call__(self, _: str) -> tuple[int, bytes, str]:
        if self.hold is not None:
            await self.hold.wait()
        return self.status, self.body, self.more


async def test_a_token_of_a_new_key_waits_for_the_keys_and_fetches_are_bounded() -> None:
    published = Published(jwk("ES256", PRIVATE["ES256"]))
    async with answering(published) as remote, fetching(remote, pace_s=30.0) as server:
        checked = tokens(server)
        # The first one comes before the first keys do.
        assert (await who(checked, signed("ES256", kid="ES256"))).user == "ann"
        assert len(remote.heads) == 1
        published.body = key_set(jwk("EdDSA", PRIVATE["EdDSA"]))
        for n in range(50):
            assert await refusal(checked, signed("EdDSA", kid=f"made up {n}")) == "token_invalid"
        assert len(remote.heads) == 1
    async with answering(published) as remote, fetching(remote, pace_s=0.0) as server:
        checked = tokens(server)
        await eventually(lambda: server.keys is not None)
        published.body = key_set(jwk("RS256", RSA))
        waiting = [who(checked, signed("RS256", kid="RS256", n=n)) for n in range(20)]
        assert [each.user for each in await asyncio.gather(*waiting)] == ["ann"] * 20
        assert len(remote.heads) <= 3
        # What the key that is gone has signed is good no longer.
        assert await refusal(checked, signed("EdDSA", kid="EdDSA")) == "token_invalid"


async def test_a_token_that_was_remembered_is_refused_once_its_key_is_gone() -> None:
    published = Published(jwk("ES256", PRIVATE["ES256"]), jwk("EdDSA", PRIVATE["EdDSA"]))
    async with answering(published) as remote, fetching(remote, refresh_s=0.05, pace_s=60) as server:
        checked, token = tokens(server), signed("ES256", kid="ES256")
        found = await who(checked, token)
        assert found.user == "ann"
        assert found.is_current is not None
        assert found.is_current()
        published.body = key_set(jwk("EdDSA", PRIVATE["EdDSA"]))
        await eventually(lambda: server.keys is not None and len(server.keys) == 1)
        assert await refusal(checked, token) == "token_invalid"
        # Whoever has kept the identity is told.
        assert found.is_current is not None
        assert not found.is_current()


@pytest.mark.long
async def test_a_connection_that_publishes_is_refused_once_its_key_is_gone(tmp_path: Path) -> None:
    published = Published(jwk("ES256", PRIVATE["ES256"]))
    producer = signed("ES256", kid="ES256", scope="pushsse:publish").encode()
    body = b'{"type":"news","message":1,"to":"all"}'
    head = (
        b"POST /v1/events HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\nAuthorization: Bearer "
    )
    request = head + producer + b"\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    options: dict[str, Any] = {"jwt_audience": (AUDIENCE,), "jwt_issuer": (ISSUER,)}
    async with (
        answering(published) as remote,
        serving(tmp_path, http=ImmediateHttp, jwks_url=remote.url, **options) as node,
    ):
        reader, writer = await asyncio.open_connection("127.0.0.1", node.port)

        async def status() -> bytes:
            writer.write(request)
            answer = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", answer)
            assert length is not None
            await reader.readexactly(int(length[1]))
            return answer.split()[1]

        # The head is remembered from the first one on.
        assert [await status() for _ in range(3)] == [b"202"] * 3
        published.body = key_set(jwk("EdDSA", PRIVATE["EdDSA"]))
        other = {"Authorization": f"Bearer {signed('EdDSA', kid='EdDSA')}"}
        async with asyncio.timeout(2 * PACE_S):
            # A key that isn't known has them fetched, now and then.
            while (await node.http.get("/v1/me", headers=other)).status_code != 200:
                await asyncio.sleep(0.2)
        assert [await status() for _ in range(2)] == [b"401"] * 2
        writer.close()


async def test_without_a_key_id_a_new_key_is_found_too() -> None:
    published = Published(jwk("ES256", OTHERS["ES256"]))
    async with answering(published) as remote, fetching(remote, pace_s=0.0) as server:
        await eventually(lambda: server.keys is not None)
        checked, token = tokens(server), signed("ES256")
        assert await refusal(checked, token) == "token_invalid"
        published.body = key_set(jwk("ES256", OTHERS["ES256"]), jwk("ES256", PRIVATE["ES256"], kid="new"))
        assert (await who(checked, token)).user == "ann"


Spoil = Callable[[Published], None]


def _status(published: Published) -> None:
    published.status = 500


def _redirect(published: Published) -> None:
    published.status, published.more = 302, "Location: /elsewhere\r\n"


def _large(published: Published) -> None:
    published.body = published.body + b" " * MOST_BYTES


def _empty(published: Published) -> None:
    published.body = key_set()


def _page(published: Published) -> None:
    published.body = b"<html>we are moving</html>"


def _slow(published: Published) -> None:
    published.hold = asyncio.Event()


@pytest.mark.slow
@pytest.mark.parametrize("spoil", [_status, _redirect, _large, _empty, _page, _slow])
async def test_the_keys_stay_while_their_server_answers_with_none(spoil: Spoil) -> None:
    published = Published(jwk("ES256", PRIVATE["ES256"]))
    async with answering(published) as remote, fetching(remote, refresh_s=0.05) as server:
        checked = tokens(server)
        await eventually(lambda: server.available)
        spoil(published)
        await eventually(lambda: not server.available)
        assert (await who(checked, signed("ES256", kid="ES256"))).user == "ann"
        assert not [head for head in remote.heads if "elsewhere" in head]


async def test_the_keys_stay_while_their_server_is_away_and_new_ones_come_when_it_is_back() -> None:
    published = Published(jwk("ES256", PRIVATE["ES256"]))
    async with answering(published) as remote, fetching(remote, refresh_s=0.05, pace_s=0.0) as server:
        checked = tokens(server)
        await eventually(lambda: server.available)
        await remote.down()
        await eventually(lambda: not server.available)
        assert (await who(checked, signed("ES256", kid="ES256"))).user == "ann"
        published.body = key_set(jwk("EdDSA", PRIVATE["EdDSA"]))
        await remote.up()
        await eventually(lambda: server.available)
        assert (await who(checked, signed("EdDSA", kid="EdDSA"))).user == "ann"


async def test_until_there_are_keys_nobody_is_told_that_the_token_is_bad() -> None:
    published = Published()
    async with answering(published) as remote, fetching(remote) as server:
        checked = tokens(server, SECRET)
        for _ in range(2):
            with pytest.raises(Unavailable):
                await who(checked, signed("ES256", kid="ES256"))
        assert (await who(checked, jwt.encode(claims(), SECRET))).user == "ann"


@pytest.mark.slow
async def test_a_slow_server_holds_a_token_up_for_a_bounded_time() -> None:
    published = Published()
    published.hold = asyncio.Event()
    async with answering(published) as remote:
        async with Remote(remote.url, at_once=1) as slow:
            began = time.monotonic()
            with pytest.raises(RemoteUnavailable, match="didn't answer"):
                await KeyServer(slow).fetch()
            assert time.monotonic() - began < TIMEOUT_S + 1
        head = remote.heads[0].lower()
        assert head.startswith("get /asked?from=push http/1.1\r\n")
        assert "cookie" not in head


async def test_only_a_server_whose_certificate_is_good_is_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    try:
        certificate = make_certificate(tmp_path)
    except PartMissing as error:
        missing(str(error))
    published = Published(jwk("ES256", PRIVATE["ES256"]))
    async with answering(published, certificate=certificate) as server:
        async with Remote(server.url, at_once=1) as strange:
            with pytest.raises(RemoteUnavailable, match="certificate"):
                await KeyServer(strange).fetch()
        assert server.heads == []
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate.authority))
        async with Remote(server.url, at_once=1) as known:
            assert len(await KeyServer(known).fetch()) == 1
