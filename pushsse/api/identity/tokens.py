"""JWTs (RFC 7519) signed with a shared secret, in the Authorization header or in a cookie.

Deliberate: PyJWT looks at the key for each token, in case it is a public one, which is a tenth of what
accepting a stream costs. Here the secret is looked at once, and the last good tokens are remembered.
"""

import hmac
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256, sha384, sha512
from typing import Any

import jwt
from jwt.algorithms import HMACAlgorithm
from starlette.requests import HTTPConnection

from pushsse.api.identity import DEFAULT_SCOPES, SCOPE_PREFIX, Identity, unauthorized
from pushsse.api.identity.origins import refuse_other_sites
from pushsse.errors import SettingsError
from pushsse.event import is_user
from pushsse.hub.opening import Revocations


@dataclass(frozen=True, slots=True)
class HeaderToken:
    """The credential of `Authorization: Bearer TOKEN` (RFC 6750)."""

    people: "TokenPeople"

    def look(self, request: HTTPConnection) -> Identity | None:
        """Whom the token names."""
        authorization = request.headers.get("authorization")
        if authorization is None:
            return None
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise unauthorized("token_invalid", "the Authorization header has no Bearer token")
        return self.people.identity(token.strip())


@dataclass(frozen=True, slots=True)
class CookieToken:
    """The credential of a cookie with a token. Pages of other sites can't use it, unless they are named."""

    people: "TokenPeople"
    cookie: str
    allowed_origins: Collection[str] = ()

    def look(self, request: HTTPConnection) -> Identity | None:
        """Whom the token names."""
        token = request.cookies.get(self.cookie)
        if not token:
            return None
        refuse_other_sites(request, self.allowed_origins)
        return self.people.identity(token)


@dataclass(frozen=True, slots=True)
class TokenPeople:
    """Says whom a token names; what is wrong with it becomes a 401."""

    tokens: "Tokens"
    user_claim: str
    revocations: Revocations

    def identity(self, token: str) -> Identity:
        """The identity of a good token. Raises HttpProblem 401."""
        claims = self._claims(token)
        user = claims.get(self.user_claim)
        if not isinstance(user, str) or not is_user(user):
            raise unauthorized("token_invalid", f"the claim {self.user_claim!r} doesn't name a user")
        who = Identity(user, _scopes(claims), claims["exp"], claims.get("iat"))
        if self.revocations.refuses(user, who.issued_at):
            raise unauthorized("token_revoked", "the token is older than the kick that took its access away")
        return who

    def _claims(self, token: str) -> Mapping[str, Any]:
        try:
            claims = self.tokens.claims(token)
        except jwt.ExpiredSignatureError:
            raise unauthorized("token_expired", "the token has expired") from None
        except jwt.ImmatureSignatureError:
            raise unauthorized("token_not_yet_valid", "the token isn't valid yet") from None
        except jwt.MissingRequiredClaimError:
            raise unauthorized("token_invalid", "the token has no exp") from None
        except jwt.InvalidSignatureError:
            raise unauthorized("token_invalid", "the token's signature is wrong") from None
        except (jwt.InvalidTokenError, ValueError, OverflowError, RecursionError):
            raise unauthorized("token_invalid", "the token can't be read") from None
        return claims


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


# RFC 7518, 3.2: no shorter than the hash of HS256.
_SECRET_BYTES = 32
# The end of the year 9999: what lies beyond it is no time for most libraries.
_LAST_TIME = 253_402_300_799
REMEMBERED = 256
_HASHES = {"HS256": sha256, "HS384": sha384, "HS512": sha512}


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


class Tokens(jwt.PyJWT):
    """Reads tokens of one secret."""

    def __init__(self, secret: str, *, leeway_s: float = 0.0) -> None:
        """`leeway_s`: how many seconds iat and nbf may lie in the future, since clocks differ. exp has none:
        a stream that opened after it would end at once, and for good.

        Raises SettingsError if the secret is short, or looks like a public key, which everybody may know.
        """
        if (size := len(secret.encode("utf-8", "surrogateescape"))) < _SECRET_BYTES:
            raise SettingsError(
                f"PUSHSSE_JWT_SECRET: has {size} bytes, and whoever has one token can guess it: it needs"
                f" {_SECRET_BYTES} or more, such as those of `openssl rand -hex 32`"
            )
        self._leeway_s = leeway_s
        self._checked = lru_cache(REMEMBERED)(self._check)
        super().__init__({"require": ["exp"], "verify_aud": False, "verify_sub": False})
        for name, hash_alg in _HASHES.items():
            self._jws.unregister_algorithm(name)
            try:
                self._jws.register_algorithm(name, _Prepared(hash_alg, secret))
            except jwt.InvalidKeyError as error:
                raise SettingsError(f"PUSHSSE_JWT_SECRET: {error}") from None

    def claims(self, token: str) -> Mapping[str, Any]:
        """What a token says, its `exp` as a float.

        Raises jwt.InvalidTokenError; OverflowError for an `exp` beyond all clocks; ValueError, RecursionError
        for a header that PyJWT doesn't expect.
        """
        claims = self._checked(token)
        # Remembered or not, its end is looked at now: a token is good until `exp`, and not a second longer.
        if claims["exp"] <= time.time():
            raise jwt.ExpiredSignatureError("the token has expired since")
        return claims

    def _check(self, token: str) -> Mapping[str, Any]:
        claims = self.decode(token, algorithms=list(_HASHES), leeway=self._leeway_s)
        for name in ("exp", "nbf", "iat"):
            # RFC 7519, 2: a NumericDate is a number. PyJWT takes texts and truth values, too.
            if name in claims and type(claims[name]) not in (int, float):
                raise jwt.DecodeError(f"{name} is not a number")
        if claims["exp"] > _LAST_TIME:
            raise OverflowError("exp lies beyond the year 9999")
        return {**claims, "exp": float(claims["exp"])}
