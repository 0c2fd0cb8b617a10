"""Keys of a company's login, and tokens that it signs, or somebody else does."""

import hmac
import json
import time
from base64 import urlsafe_b64encode
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import get_default_algorithms

SECRET = "a secret that has more than the sixty-four bytes which HS512 is meant to have"
ISSUER, AUDIENCE = "https://login.example", "push"
RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
CURVES = {"ES256": ec.SECP256R1(), "ES384": ec.SECP384R1(), "ES512": ec.SECP521R1()}
PRIVATE: dict[str, Any] = {
    **dict.fromkeys(("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"), RSA),
    **{name: ec.generate_private_key(curve) for name, curve in CURVES.items()},
    "EdDSA": ed25519.Ed25519PrivateKey.generate(),
}
OTHERS: dict[str, Any] = {
    "RS256": rsa.generate_private_key(public_exponent=65537, key_size=2048),
    "ES256": ec.generate_private_key(CURVES["ES256"]),
    "EdDSA": ed25519.Ed25519PrivateKey.generate(),
}


def jwk(algorithm: str, private: Any, **members: object) -> dict[str, Any]:
    """The public half of a key."""
    made = get_default_algorithms()[algorithm].to_jwk(private.public_key(), as_dict=True)
    made.pop("key_ops", None)
    return {**made, "alg": algorithm, "kid": algorithm, "use": "sig", **members}


def key_set(*keys: object) -> bytes:
    return json.dumps({"keys": keys}).encode()


def signed(algorithm: str, private: Any = None, *, kid: str | None = None, **claims: object) -> str:
    body = {"sub": "ann", "iss": ISSUER, "aud": AUDIENCE, "exp": time.time() + 600, **claims}
    headers = {"kid": kid} if kid is not None else {}
    return jwt.encode(body, private or PRIVATE[algorithm], algorithm, headers)


def by_hand(header: object, secret: bytes, body: object = None, *, raw: bytes | None = None) -> str:
    """A token as no library makes it: signed with whatever bytes; `raw` are those of its claims."""
    said = raw if raw is not None else json.dumps(claims() if body is None else body).encode()
    parts = [urlsafe_b64encode(part).rstrip(b"=") for part in (json.dumps(header).encode(), said)]
    bits = str(header.get("alg", ""))[2:] if isinstance(header, dict) else ""
    digest = hmac.digest(secret, b".".join(parts), f"sha{bits if bits in ('256', '384', '512') else 256}")
    return b".".join([*parts, urlsafe_b64encode(digest).rstrip(b"=")]).decode()


def claims() -> dict[str, object]:
    return {"sub": "ann", "iss": ISSUER, "aud": AUDIENCE, "exp": int(time.time()) + 600}
