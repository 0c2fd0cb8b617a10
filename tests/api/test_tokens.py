"""Tokens mean what PyJWT says they do, though the key is looked at once."""

import time

import jwt
import pytest

from pushsse.api.tokens import Tokens
from pushsse.errors import SettingsError

DAY_S = 86_400
OTHER = "another secret, of the same length or so as the one that is configured here"
SECRET = "a secret that has more than the sixty-four bytes which HS512 is meant to have"


def signed(algorithm: str = "HS256", key: str = SECRET, **claims: object) -> str:
    return jwt.encode({"sub": "ann", "exp": time.time() + DAY_S, **claims}, key, algorithm=algorithm)


@pytest.mark.parametrize("algorithm", ["HS256", "HS384", "HS512"])
def test_a_good_token_says_what_was_signed(algorithm: str) -> None:
    token = signed(algorithm, scope="pushsse:ask")
    assert Tokens(SECRET).claims(token) == jwt.decode(token, SECRET, algorithms=[algorithm])


def test_every_change_of_a_letter_is_noticed() -> None:
    tokens, token = Tokens(SECRET), signed()
    for at, letter in enumerate(token):
        changed = token[:at] + ("A" if letter != "A" else "Q") + token[at + 1 :]
        # The last letter of the signature has two bits that mean nothing.
        if at < len(token) - 1:
            with pytest.raises(jwt.InvalidTokenError):
                tokens.claims(changed)


@pytest.mark.parametrize(
    ("token", "error"),
    [
        (signed(key=OTHER), jwt.InvalidSignatureError),
        (signed("none", ""), jwt.InvalidAlgorithmError),
        (signed(exp=time.time() - 1), jwt.ExpiredSignatureError),
        (signed(nbf=time.time() + DAY_S / 2), jwt.ImmatureSignatureError),
        (signed(exp="soon"), jwt.DecodeError),
        (jwt.encode({"sub": "ann"}, SECRET), jwt.MissingRequiredClaimError),
        ("", jwt.DecodeError),
        ("a.b", jwt.DecodeError),
        ("a.b.c.d", jwt.DecodeError),
        ("é.é.é", jwt.DecodeError),
    ],
    ids=["other key", "none", "expired", "too early", "exp", "no exp", "empty", "two", "four", "no ascii"],
)
def test_a_token_that_cannot_be_used_is_refused_for_its_reason(token: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        Tokens(SECRET).claims(token)


@pytest.mark.parametrize(
    "secret",
    [
        "-----BEGIN PUBLIC KEY-----\nMIIB\n-----END PUBLIC KEY-----",
        "ssh-ed25519 AAAA",
        '{"kty": "oct", "k": "AA"}',
    ],
)
def test_a_key_that_is_no_secret_is_refused_at_the_start(secret: str) -> None:
    with pytest.raises(SettingsError, match="PUSHSSE_JWT_SECRET"):
        Tokens(secret)
