"""JWTs signed with a shared secret (RFC 7515, RFC 7519): PyJWT, with the secret looked at once.

Used by `identity`. PyJWT inspects the key again for each token, whether it might be a public key after all;
for a stream that is a tenth of what accepting it costs. Whoever publishes shows the same token again and
again: the last good ones are remembered, and only their end is checked.
"""

import hmac
import time
from collections.abc import Mapping
from functools import lru_cache
from hashlib import sha256, sha384, sha512
from typing import Any

import jwt
from jwt.algorithms import HMACAlgorithm

from pushsse.errors import SettingsError

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

        Raises SettingsError if the secret looks like a public key, which everybody may know.
        """
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
        if claims["exp"] <= time.time():
            raise jwt.ExpiredSignatureError("the token has expired since")
        return claims

    def _check(self, token: str) -> Mapping[str, Any]:
        claims = self.decode(token, algorithms=list(_HASHES), leeway=self._leeway_s)
        return {**claims, "exp": float(claims["exp"])}
