"""Who is asking, and what they may do: a JWT in header or cookie, or the development identity on loopback.

Every endpoint asks here first, and gets a name with its scopes; tokens go no further. Deliberate: PyJWT
looks at the key for each token, in case it is a public one, which is a tenth of what accepting a stream
costs. Here the secret is looked at once, and the last good tokens are remembered.
"""

import hmac
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256, sha384, sha512
from typing import Any, Protocol
from urllib.parse import urlsplit

import jwt
from jwt.algorithms import HMACAlgorithm
from starlette.requests import HTTPConnection

from pushsse.api import HttpProblem
from pushsse.errors import SettingsError
from pushsse.event import is_user
from pushsse.settings import is_loopback

STREAM, ASK, PREFERENCES, PUBLISH, ANSWER, ADMIN = (
    "stream",
    "ask",
    "preferences",
    "publish",
    "answer",
    "admin",
)
SCOPES = (STREAM, ASK, PREFERENCES, PUBLISH, ANSWER, ADMIN)
DEFAULT_SCOPES = frozenset({STREAM, ASK, PREFERENCES})
SCOPE_PREFIX = "pushsse:"
_PROXY_HEADERS = frozenset((b"forwarded", b"x-real-ip", b"via"))
_PROXY_PREFIX = b"x-forwarded-"
_EVERYTHING = frozenset(SCOPES)
_READING = frozenset(("GET", "HEAD"))
_USUAL_PORTS = {"http": ":80", "https": ":443"}


@dataclass(frozen=True, slots=True)
class Identity:
    """A person and what he may do; `expires_at` in seconds since 1970, None for never."""

    user: str
    scopes: frozenset[str]
    expires_at: float | None = None

    @property
    def has_expired(self) -> bool:
        """Whether the token has ended since it was checked."""
        return self.expires_at is not None and self.expires_at <= time.time()


class Identifier(Protocol):
    """Says who is asking. Raises HttpProblem 401 (with a code) or 403."""

    def identify(self, request: HTTPConnection, scope: str) -> Identity:
        """The identity behind a request that needs `scope`."""
        ...


class TokenIdentifier:
    """Bearer header or cookie with a JWT (RFC 7519) signed with a shared secret.

    A page of another site can't use a person's cookie, unless `allowed_origins` names it.
    Raises SettingsError for a secret under 32 bytes, or one that looks like a public key.
    """

    def __init__(
        self,
        *,
        secret: str,
        cookie: str,
        user_claim: str,
        leeway_s: float = 0.0,
        allowed_origins: Collection[str] = (),
    ) -> None:
        self._tokens = Tokens(secret, leeway_s=leeway_s)
        self._cookie = cookie
        self._user_claim = user_claim
        self._allowed_origins = allowed_origins

    def identify(self, request: HTTPConnection, scope: str) -> Identity:
        """Checks the token; the first place that has one decides."""
        claims = self._claims(self._token(request))
        user = claims.get(self._user_claim)
        if not isinstance(user, str) or not is_user(user):
            raise _unauthorized("token_invalid", f"the claim {self._user_claim!r} doesn't name a user")
        identity = Identity(user, _scopes(claims), claims["exp"])
        if scope not in identity.scopes and ADMIN not in identity.scopes:
            raise HttpProblem(403, "scope_missing", f"this needs the scope {SCOPE_PREFIX}{scope}")
        return identity

    def _token(self, request: HTTPConnection) -> str:
        authorization = request.headers.get("authorization")
        if authorization is not None:
            scheme, _, token = authorization.partition(" ")
            if scheme.lower() == "bearer" and token.strip():
                return token.strip()
            raise _unauthorized("token_invalid", "the Authorization header has no Bearer token")
        if token := request.cookies.get(self._cookie, ""):
            refuse_other_sites(request, self._allowed_origins)
            return token
        raise _unauthorized("token_missing", "there is no token")

    def _claims(self, token: str) -> Mapping[str, Any]:
        try:
            claims = self._tokens.claims(token)
        except jwt.ExpiredSignatureError:
            raise _unauthorized("token_expired", "the token has expired") from None
        except jwt.ImmatureSignatureError:
            raise _unauthorized("token_not_yet_valid", "the token isn't valid yet") from None
        except jwt.MissingRequiredClaimError:
            raise _unauthorized("token_invalid", "the token has no exp") from None
        except jwt.InvalidSignatureError:
            raise _unauthorized("token_invalid", "the token's signature is wrong") from None
        except (jwt.InvalidTokenError, ValueError, OverflowError, RecursionError):
            raise _unauthorized("token_invalid", "the token can't be read") from None
        return claims


@dataclass(frozen=True, slots=True)
class DevelopmentIdentifier:
    """`?user=NAME`, everything allowed, for a browser or a shell on this machine and nobody else.

    A page of another port of this machine (a development server) may call where `allowed_origins` names it.
    """

    allowed_origins: Collection[str] = ()

    def identify(self, request: HTTPConnection, scope: str) -> Identity:
        """The name in the query; a request from outside gets 403."""
        refuse_strangers(request, self.allowed_origins)
        user = request.query_params.get("user", "dev") if request.scope["query_string"] else "dev"
        if not is_user(user):
            raise HttpProblem(
                400, "user_invalid", f"user={user!r} isn't 1–128 characters without white space"
            )
        return Identity(user, _EVERYTHING)


def _may_call(origin: str, host: str, origins: Collection[str]) -> bool:
    """Whether a page may: of the same origin, or a named one on this machine.

    Named or not, never a page from elsewhere: it would be everybody, in the browser of whoever develops.
    """
    place = origin.partition("://")[2]
    return place == host or (origin in origins and _is_here(place.encode("latin-1")))


def refuse_strangers(request: HTTPConnection, origins: Collection[str] = ()) -> None:
    """Raises HttpProblem 403 unless the request came straight from this machine, meant for it."""
    # Of a header that is given twice, the first.
    headers = dict(reversed(request.scope["headers"]))
    for name in headers:
        if name in _PROXY_HEADERS or name.startswith(_PROXY_PREFIX):
            detail = f"development identity, and the request has {name.decode('latin-1')[:80]}"
            raise HttpProblem(403, "development_only", detail)
    host = headers.get(b"host", b"")
    if not _is_here(host):
        raise HttpProblem(403, "development_only", "development identity, and the Host isn't this machine")
    origin = headers.get(b"origin")
    if origin is not None and not _may_call(origin.decode("latin-1"), host.decode("latin-1"), origins):
        raise HttpProblem(403, "development_only", "development identity, and the Origin is another one")
    client = request.scope.get("client")
    if client and not _is_loopback(client[0]):
        raise HttpProblem(403, "development_only", "development identity, and the client is elsewhere")


def refuse_other_sites(request: HTTPConnection, origins: Collection[str]) -> None:
    """Raises HttpProblem 403 where a page of another site may have sent the request, with a person's cookie.

    A call that changes something needs an Origin that fits or, without one, `Sec-Fetch-Site: same-origin`
    (W3C Fetch Metadata), and JSON as its content type, which no form sends. What only reads is refused for
    what is there alone: browsers send no Origin with a GET of the same origin, and WebKit before 16.4 sends
    no Sec-Fetch-Site.
    """
    headers = request.headers
    given, site = headers.getlist("origin"), headers.get("sec-fetch-site")
    reads = request.scope["method"] in _READING
    if given:
        host = headers.get("host", "")
        # A page of http://HOST that calls https://HOST is of another site, and the node may not see the TLS.
        same = site in (None, "same-origin")
        fits = all(each in origins or (same and _is_origin_of(each, host)) for each in given)
    else:
        fits = site != "cross-site" if reads else site == "same-origin"
    if not fits:
        detail = "a page of another site can't use the cookie; PUSHSSE_ALLOWED_ORIGINS names those that may"
        raise HttpProblem(403, "origin_refused", detail)
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if not reads and kind != "application/json":
        detail = "with a cookie, a call that changes something needs Content-Type: application/json"
        raise HttpProblem(403, "content_type_refused", detail)


def _is_origin_of(origin: str, host: str) -> bool:
    """Whether a page of this origin is one of the host's own; a proxy may have added the usual port."""
    scheme, _, place = origin.partition("://")
    return scheme in _USUAL_PORTS and place == host.lower().removesuffix(_USUAL_PORTS[scheme])


@lru_cache(maxsize=256)
def _is_here(host: bytes) -> bool:
    """Whether a Host header names this machine."""
    try:
        return is_loopback((urlsplit(f"//{host.decode('latin-1')}").hostname or "").lower())
    except ValueError:
        return False


@lru_cache(maxsize=256)
def _is_loopback(address: str) -> bool:
    return not address or is_loopback(address)


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


def _unauthorized(code: str, detail: str) -> HttpProblem:
    return HttpProblem(
        401, code, detail, {"www-authenticate": f'Bearer error="invalid_token", error_description="{code}"'}
    )


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
