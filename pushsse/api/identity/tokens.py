"""JWTs (RFC 7519) in the Authorization header or in a cookie: their signature, their claims, whom they name.

The key decides the algorithm, never the token (RFC 8725, 3.1): secrets are for HS256, HS384 and HS512 alone.
Deliberate: PyJWT looks at a secret for each token, in case it is a public key, which is a tenth of what
accepting a stream costs. Here it is looked at once, and the last good tokens are remembered.
"""

import hmac
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256, sha384, sha512
from typing import Any

import jwt
import msgspec
from jwt.algorithms import HMACAlgorithm
from starlette.requests import HTTPConnection

from pushsse.api import HttpProblem
from pushsse.api.identity import DEFAULT_SCOPES, SCOPE_PREFIX, Identity, unauthorized
from pushsse.api.identity.origins import refuse_other_sites
from pushsse.errors import SettingsError
from pushsse.event import is_user
from pushsse.hub.opening import Revocations

# RFC 7518, 3.2: no shorter than the hash of HS256.
SECRET_BYTES = 32
REMEMBERED = 256
# The end of the year 9999: what lies beyond it is no time for most libraries.
_LAST_TIME = 253_402_300_799
_HASHES = {"HS256": sha256, "HS384": sha384, "HS512": sha512}
_INVALID = "token_invalid"


@dataclass(frozen=True, slots=True)
class HeaderToken:
    """The credential of `Authorization: Bearer TOKEN` (RFC 6750)."""

    tokens: "Tokens"

    def look(self, request: HTTPConnection) -> Identity | None:
        """Whom the token names. Another scheme, such as a proxy's Basic, isn't for this service."""
        authorization = request.headers.get("authorization")
        if authorization is None:
            return None
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer":
            return None
        return self.tokens.identity(token.strip())


@dataclass(frozen=True, slots=True)
class CookieToken:
    """The credential of a cookie with a token. Pages of other sites can't use it, unless they are named."""

    tokens: "Tokens"
    cookie: str
    allowed_origins: Collection[str] = ()

    def look(self, request: HTTPConnection) -> Identity | None:
        """Whom the token names."""
        token = request.cookies.get(self.cookie)
        if not token:
            return None
        refuse_other_sites(request, self.allowed_origins)
        return self.tokens.identity(token)


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
        return Identity(user, _scopes(claims), expires_at, issued_at)


class Tokens:
    """Says whom a token names, if one of the secrets has signed it and it keeps to the rules."""

    def __init__(self, secrets: Mapping[str, str], rules: TokenRules, revocations: Revocations) -> None:
        """`secrets` by the names of their settings. Raises SettingsError as `Secret` does."""
        self._secrets: Sequence[Secret] = [Secret(name, secret) for name, secret in secrets.items()]
        self._rules = rules
        self._revocations = revocations
        self._remembered = lru_cache(REMEMBERED)(self._check)

    def identity(self, token: str) -> Identity:
        """The identity of a good token. Raises HttpProblem 401, with a code for the check that failed."""
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
            raise unauthorized(_INVALID, "the token's algorithm isn't that of a key") from None
        except (jwt.InvalidTokenError, msgspec.MsgspecError, ValueError, RecursionError):
            # The last two are what PyJWT lets out of an odd header.
            raise unauthorized(_INVALID, "the token can't be read") from None
        if not isinstance(claims, dict):
            raise unauthorized(_INVALID, "the token can't be read")
        return self._rules.identity(claims)

    def _payload(self, token: str) -> bytes:
        for secret in self._secrets[:-1]:
            try:
                return secret.payload(token)
            except jwt.InvalidSignatureError:
                # Another one may have signed it.
                continue
        return self._secrets[-1].payload(token)


class _Prepared(HMACAlgorithm):
    """One of the algorithms, with its key."""

    def __init__(self, hash_alg: Any, secret: str) -> None:
        super().__init__(hash_alg)
        self._key = super().prepare_key(secret)
        self._digest = hash_alg().name

    def prepare_key(self, key: str | bytes) -> bytes:
        return self._key

    def check_key_length(self, key: bytes) -> str | None:
        return None

    def sign(self, msg: bytes, key: bytes) -> bytes:
        return hmac.digest(key, msg, self._digest)


class Secret:
    """A secret that signs with HS256, HS384 or HS512, and what it has signed."""

    def __init__(self, name: str, secret: str) -> None:
        """`name` is its setting's. Raises SettingsError if it is short, or looks like a public key."""
        if (size := len(secret.encode("utf-8", "surrogateescape"))) < SECRET_BYTES:
            raise SettingsError(
                f"{name}: has {size} bytes, and whoever has one token can guess it: it needs"
                f" {SECRET_BYTES} or more, such as those of `openssl rand -hex 32`"
            )
        self._jws = jwt.PyJWS(algorithms=[])
        for algorithm, hash_alg in _HASHES.items():
            try:
                self._jws.register_algorithm(algorithm, _Prepared(hash_alg, secret))
            except jwt.InvalidKeyError as error:
                raise SettingsError(f"{name}: {error}") from None

    def payload(self, token: str) -> bytes:
        """What a token holds. Raises jwt.InvalidTokenError; ValueError, RecursionError for odd headers."""
        found: bytes = self._jws.decode(token, algorithms=list(_HASHES))
        return found


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
    """Raises HttpProblem 401 unless a claim is one of these, or a list that has one of them."""
    if not wanted:
        return
    given = value if isinstance(value, list) else [value]
    if not any(isinstance(each, str) and each in wanted for each in given):
        raise unauthorized(_INVALID, f"the token's {name} isn't the one of this service")


def _scopes(claims: Mapping[str, Any]) -> frozenset[str]:
    words: list[str] = []
    for name in ("scope", "scp"):
        value = claims.get(name)
        if isinstance(value, str):
            words += value.split()
        elif isinstance(value, list):
            words += [word for word in value if isinstance(word, str)]
    named = frozenset(word.removeprefix(SCOPE_PREFIX) for word in words if word.startswith(SCOPE_PREFIX))
    return named or DEFAULT_SCOPES


def _expired() -> HttpProblem:
    return unauthorized("token_expired", "the token has expired")
