"""JWTs (RFC 7519) in the Authorization header or in a cookie: their signature, their claims, whom they name.

The key decides the algorithm, never the token (RFC 8725, 3.1): secrets are for HS256, HS384 and HS512 alone,
and a public key is for one algorithm. Public keys come from `remote`, which fetches them.
Deliberate: PyJWT looks at a secret for each token, in case it is a public key, which is a tenth of what
accepting a stream costs. Here it is looked at once, and the last good tokens are remembered.
`signed` is for the command line, which makes some.
"""

import hmac
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from hashlib import sha256, sha384, sha512
from typing import Any, NamedTuple, Protocol, Self

import jwt
import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from jwt.algorithms import HMACAlgorithm
from msgspec.structs import replace
from starlette.requests import HTTPConnection

from pushsse.api import HttpProblem
from pushsse.api.identity import (
    DEFAULT_SCOPES,
    SCOPE_PREFIX,
    Identifying,
    Identity,
    bearer_token,
    refuse_other_sites,
    unauthorized,
)
from pushsse.errors import SettingsError, Unavailable
from pushsse.event import is_user
from pushsse.hub.people import Revocations
from pushsse.settings import Settings

# RFC 7518, 3.2: no shorter than the hash of HS256.
SECRET_BYTES = 32
REMEMBERED = 1_024
# The end of the year 9999: what lies beyond it is no time for most libraries.
_LAST_TIME = 253_402_300_799
_HASHES = {"HS256": sha256, "HS384": sha384, "HS512": sha512}
_INVALID = "token_invalid"


@dataclass(frozen=True, slots=True)
class HeaderToken:
    """The credential of `Authorization: Bearer TOKEN` (RFC 6750)."""

    tokens: "Tokens"

    def look(self, request: HTTPConnection) -> Identity | Identifying | None:
        """Whom the token names."""
        token = bearer_token(request)
        return None if token is None else self.tokens.identity(token)


@dataclass(frozen=True, slots=True)
class CookieToken:
    """The credential of a cookie with a token. Pages of other sites can't use it, unless they are named."""

    tokens: "Tokens"
    cookie: str
    allowed_origins: Collection[str] = ()

    def look(self, request: HTTPConnection) -> Identity | Identifying | None:
        """Whom the token names."""
        token = _cookie(request, self.cookie)
        if not token:
            return None
        refuse_other_sites(request, self.allowed_origins)
        return self.tokens.identity(token)


def _cookie(request: HTTPConnection, name: str) -> str:
    """A cookie's value (RFC 6265, 4.2.1), the last of several; empty if there is none.

    Deliberate: not `http.cookies`, which takes seconds to unquote a long value, whoever sends it, in Python
    before 3.11.10 and 3.12.6 (CVE-2024-7592). A token has nothing that is quoted.
    """
    found = ""
    for header in request.headers.getlist("cookie"):
        for pair in header.split(";"):
            given, separator, value = pair.partition("=")
            if separator and given.strip() == name:
                found = value.strip()
    return found[1:-1] if len(found) > 1 and found[0] == found[-1] == '"' else found


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRules:
    """What a token has to say beside its signature.

    `audiences`, `issuers`: one of them, if there are any. `leeway_s`: how many seconds iat and nbf may lie in
    the future, since clocks differ; exp has none, since a stream that opened after it would end at once, and
    for good. `most_s`: for how many seconds a token may be valid.
    """

    user_claim: str = "sub"
    audiences: Collection[str] = ()
    issuers: Collection[str] = ()
    leeway_s: float = 0.0
    most_s: float = 86_400.0

    def identity(self, claims: Mapping[str, Any]) -> Identity:
        """The identity behind claims whose signature is good. Raises HttpProblem 401."""
        expires_at, not_before, issued_at = (_time(claims, name) for name in ("exp", "nbf", "iat"))
        if expires_at is None:
            raise unauthorized(_INVALID, "the token has no exp")
        now = time.time()
        if expires_at <= now:
            raise _expired()
        if max(not_before or 0, issued_at or 0) > now + self.leeway_s:
            raise unauthorized("token_not_yet_valid", "the token isn't valid yet")
        if expires_at - (now + self.leeway_s if issued_at is None else issued_at) > self.most_s:
            raise unauthorized(_INVALID, f"the token is valid for more than {self.most_s:.0f} s")
        _require_one("iss", claims.get("iss"), self.issuers)
        _require_one("aud", claims.get("aud"), self.audiences)
        user = claims.get(self.user_claim)
        if not isinstance(user, str) or not is_user(user):
            raise unauthorized(_INVALID, f"the claim {self.user_claim!r} doesn't name a user")
        return Identity(user, scopes_of(claims), expires_at, issued_at)


class HasKeys(Protocol):
    """Who has public keys, and can fetch newer ones; `remote.KeyServer` does it."""

    @property
    def keys(self) -> "Keys | None":
        """The keys as they were fetched last; None until that has worked once."""
        ...

    @property
    def may_fetch(self) -> bool:
        """Whether it is worth waiting for `fetched`."""
        ...

    async def fetched(self) -> None:
        """Waits until keys have been fetched, well or not."""
        ...


class UnknownKey(Exception):
    """A token's key isn't among those that there are now."""


class Tokens:
    """Says whom a token names, if one of the secrets or keys has signed it and it keeps to the rules."""

    def __init__(
        self,
        secrets: Mapping[str, str],
        rules: TokenRules,
        revocations: Revocations,
        *,
        key_server: HasKeys | None = None,
    ) -> None:
        """`secrets` by the names of their settings. Raises SettingsError as `Secrets` does."""
        self._secrets = Secrets(secrets) if secrets else None
        self._rules = rules
        self._revocations = revocations
        self._key_server = key_server
        self._keys: Keys | None = None
        self._remembered = lru_cache(REMEMBERED)(self._check)

    def identity(self, token: str) -> Identity | Identifying:
        """The identity of a good token; if its key isn't known, and may be by now, what fetches the keys.

        Raises HttpProblem 401, with a code for the check that failed; Unavailable until there are keys.
        """
        try:
            return self._known(token)
        except UnknownKey:
            if self._key_server is not None and self._key_server.may_fetch:
                return partial(self._fetch_and_look, token)
        raise self._missing()

    async def _fetch_and_look(self, token: str) -> Identity:
        assert self._key_server is not None
        await self._key_server.fetched()
        try:
            return self._known(token)
        except UnknownKey:
            raise self._missing() from None

    def _missing(self) -> Exception:
        if self._key_server is not None and self._key_server.keys is None:
            return Unavailable("the keys of tokens haven't been fetched yet")
        return _no_key()

    def _known(self, token: str) -> Identity:
        """Raises UnknownKey, Unavailable, HttpProblem 401."""
        if not self._revocations.loaded:
            raise Unavailable("the kicks can't be read from the database yet")
        if self._key_server is not None and self._key_server.keys is not self._keys:
            # What an old key has signed is no longer good.
            self._keys = self._key_server.keys
            self._remembered.cache_clear()
        who = self._remembered(token)
        # Remembered or not, its end is looked at now: a token is good until `exp`, and not a second longer.
        if who.has_expired:
            raise _expired()
        if self._revocations.refuses(who.user, who.issued_at):
            raise unauthorized("token_revoked", "the token is older than a kick of this person")
        return who

    def _check(self, token: str) -> Identity:
        try:
            claims = msgspec.json.decode(self._payload(token))
        except jwt.InvalidSignatureError:
            raise unauthorized(_INVALID, "the token's signature is wrong") from None
        except jwt.InvalidAlgorithmError:
            raise _no_key() from None
        except (jwt.InvalidTokenError, msgspec.MsgspecError, ValueError, RecursionError):
            # The last two are what PyJWT lets out of an odd header.
            raise unauthorized(_INVALID, "the token can't be read") from None
        if not isinstance(claims, dict):
            raise unauthorized(_INVALID, "the token can't be read")
        who = self._rules.identity(claims)
        return who if self._key_server is None else replace(who, is_current=partial(self._has, self._keys))

    def _has(self, keys: "Keys | None") -> bool:
        assert self._key_server is not None
        return self._key_server.keys is keys

    def _payload(self, token: str) -> bytes:
        """What a token holds. Raises UnknownKey, and as `Secrets.payload`."""
        if self._key_server is None:
            if self._secrets is None:
                raise UnknownKey
            return self._secrets.payload(token)
        header = _header(token)
        if self._secrets is not None and header.algorithm in _HASHES:
            return self._secrets.payload(token)
        if self._keys is None:
            raise UnknownKey
        return self._keys.payload(token, header)


class _Header(NamedTuple):
    """What a token's header says of its key."""

    algorithm: str
    name: str | None


def _header(token: str) -> _Header:
    """A token's header alone, however long the token is. Raises as `Secrets.payload`."""
    found = jwt.get_unverified_header(f"{token.partition('.')[0]}..")
    algorithm = found.get("alg")
    if not isinstance(algorithm, str):
        raise jwt.InvalidAlgorithmError
    return _Header(algorithm, found.get("kid"))


class _Prepared(HMACAlgorithm):
    """One of the algorithms, with the keys that may have signed: a token is read once for all of them."""

    def __init__(self, hash_alg: Any, secrets: Collection[str]) -> None:
        super().__init__(hash_alg)
        self._keys = [super(_Prepared, self).prepare_key(secret) for secret in secrets]
        self._digest = hash_alg().name

    def prepare_key(self, key: str | bytes) -> bytes:
        return b""

    def check_key_length(self, key: bytes) -> str | None:
        return None

    def verify(self, msg: bytes, key: bytes, sig: bytes) -> bool:
        return any(hmac.compare_digest(sig, hmac.digest(each, msg, self._digest)) for each in self._keys)


class Secrets:
    """Secrets that sign with HS256, HS384 or HS512, and what one of them has signed."""

    def __init__(self, secrets: Mapping[str, str]) -> None:
        """By their settings' names. Raises SettingsError if one is short, or looks like a public key."""
        for name, secret in secrets.items():
            if (size := len(secret.encode("utf-8", "surrogateescape"))) < SECRET_BYTES:
                raise SettingsError(
                    f"{name}: has {size} bytes, and whoever has one token can guess it: it needs"
                    f" {SECRET_BYTES} or more, such as those of `openssl rand -hex 32`"
                )
            try:
                HMACAlgorithm(HMACAlgorithm.SHA256).prepare_key(secret)
            except jwt.InvalidKeyError as error:
                raise SettingsError(f"{name}: {error}") from None
        self._jws = jwt.PyJWS(algorithms=())
        for algorithm, hash_alg in _HASHES.items():
            self._jws.register_algorithm(algorithm, _Prepared(hash_alg, secrets.values()))

    def payload(self, token: str) -> bytes:
        """What a token holds. Raises jwt.InvalidTokenError; ValueError, RecursionError for odd headers."""
        found: bytes = self._jws.decode(token, algorithms=list(_HASHES))
        return found


_PUBLIC = frozenset(f"{family}{bits}" for family in ("RS", "PS", "ES") for bits in (256, 384, 512)) | {
    "EdDSA"
}
_MOST_KEYS = 50
# Keys that a token without a `kid` may be of: at an issuer that names none, the old one and the new one.
_MOST_TRIED = 4
# More bits, and one signature takes longer than a millisecond.
_MOST_RSA_BITS = 8192


class Keys:
    """Public keys of a JWK set (RFC 7517), and what they have signed.

    A key is for the algorithm that it names; without one, for RS256, for the ES of its curve, or for EdDSA.
    """

    def __init__(self, body: bytes, keys: Sequence[jwt.PyJWK]) -> None:
        self.body = body
        self._keys = keys
        self._jws = jwt.PyJWS(algorithms=())

    def __len__(self) -> int:
        return len(self._keys)

    def __str__(self) -> str:
        return ", ".join(f"{key.algorithm_name} {(key.key_id or '')[:40]}".strip() for key in self._keys)

    @classmethod
    def parse(cls, body: bytes) -> Self:
        """The usable keys of a set as JSON. Raises ValueError if there is none."""
        try:
            given = msgspec.json.decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise ValueError("the answer isn't JSON") from None
        listed = given.get("keys") if isinstance(given, dict) else None
        if not isinstance(listed, list):
            raise ValueError("the answer isn't a JWK set, an object with `keys`")
        keys = [key for each in listed[:_MOST_KEYS] if (key := _key(each)) is not None]
        if not keys:
            raise ValueError(f"none of {len(listed)} keys can check a signature (RS, PS, ES or EdDSA)")
        return cls(body, keys)

    def payload(self, token: str, header: _Header) -> bytes:
        """What a token holds. Raises as `Secrets.payload`; UnknownKey if none of the keys is the token's."""
        algorithm, name = header
        found = [
            key
            for key in self._keys
            if key.algorithm_name == algorithm and (name is None or key.key_id == name)
        ]
        for key in found[:_MOST_TRIED]:
            try:
                payload: bytes = self._jws.decode(token, key, algorithms=[key.algorithm_name])
            except jwt.InvalidSignatureError:
                continue
            return payload
        if algorithm in _PUBLIC and (name is None or not self._has(name)):
            raise UnknownKey
        # A newer set of keys wouldn't change that.
        raise jwt.InvalidSignatureError

    def _has(self, name: str) -> bool:
        return any(key.key_id == name for key in self._keys)


def _key(given: object) -> jwt.PyJWK | None:
    """A public key for signatures; None for anything else."""
    if not isinstance(given, dict) or "d" in given or "k" in given or given.get("use", "sig") != "sig":
        return None
    operations, name, algorithm = given.get("key_ops", ["verify"]), given.get("kid"), given.get("alg")
    if not isinstance(operations, list) or "verify" not in operations:
        return None
    if not isinstance(name, str | None) or not isinstance(algorithm, str | None):
        return None
    if algorithm is not None and algorithm not in _PUBLIC:
        return None
    try:
        key = jwt.PyJWK(given)
        # It also looks whether key and algorithm fit each other.
        prepared = key.Algorithm.prepare_key(key.key)
        short = key.Algorithm.check_key_length(prepared)
    except (jwt.PyJWTError, ValueError, TypeError, AttributeError, UnsupportedAlgorithm):
        return None
    fits = key.algorithm_name in _PUBLIC and not short
    return key if fits and getattr(prepared, "key_size", 0) <= _MOST_RSA_BITS else None


def _time(claims: Mapping[str, Any], name: str) -> float | None:
    """A time in seconds since 1970 (RFC 7519, 2: NumericDate); None if there is none."""
    if name not in claims:
        return None
    value = claims[name]
    # bool is an int. NaN is in no range.
    if type(value) not in (int, float) or not -_LAST_TIME <= value <= _LAST_TIME:
        raise unauthorized(_INVALID, f"the token's {name} isn't a time before the year 10000")
    return float(value)


def _require_one(name: str, value: object, wanted: Collection[str]) -> None:
    """Raises HttpProblem 401 unless a claim is one of these; `aud` may also be a list that has one."""
    if not wanted:
        return
    given = value if isinstance(value, list) and name == "aud" else [value]
    if not any(isinstance(each, str) and each in wanted for each in given):
        raise unauthorized(_INVALID, f"the token's {name} isn't the one of this service")


def scopes_of(claims: Mapping[str, Any]) -> frozenset[str]:
    """The scopes that `scope` or `scp` name, as a text or a list; without any of ours, those of everybody.

    Raises HttpProblem 401 for anything else: what was meant by it may be less than what everybody may.
    """
    words: list[str] = []
    for name in ("scope", "scp"):
        value = claims.get(name)
        if isinstance(value, str):
            # RFC 6749, 3.3: other blanks are no separators.
            words += value.split(" ")
        elif isinstance(value, list) and all(isinstance(word, str) for word in value):
            words += value
        elif value is not None:
            raise unauthorized(_INVALID, f"the token's {name} is neither a text nor a list of texts")
    named = frozenset(word.removeprefix(SCOPE_PREFIX) for word in words if word.startswith(SCOPE_PREFIX))
    return named or DEFAULT_SCOPES


def signed(settings: Settings, user: str, *, scope: str, lives_s: int) -> tuple[str, dict[str, object]]:
    """A token that a node with these settings takes (HS256), and its claims. Without a scope: anybody's."""
    now = int(time.time())
    claims: dict[str, object] = {settings.auth_user_claim: user, "iat": now, "exp": now + lives_s}
    if scope:
        claims["scope"] = scope
    for name, values in (("aud", settings.jwt_audience), ("iss", settings.jwt_issuer)):
        if values:
            claims[name] = values[0]
    return jwt.encode(claims, settings.jwt_secret, algorithm="HS256"), claims


def _no_key() -> HttpProblem:
    return unauthorized(_INVALID, "the token's key or algorithm isn't one of this service")


def _expired() -> HttpProblem:
    return unauthorized("token_expired", "the token has expired")
