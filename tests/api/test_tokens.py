"""Tokens mean what PyJWT says they do, though the key is looked at once."""

import time

import jwt
import pytest

from pushsse.api.identity.tokens import Tokens
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


def test_a_token_that_was_good_is_refused_once_it_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, token, other = Tokens(SECRET), signed(), signed(exp=time.time() + 2 * DAY_S)
    tokens.claims(token)
    tokens.claims(other)
    later = time.time() + DAY_S + 1
    monkeypatch.setattr(time, "time", lambda: later)
    with pytest.raises(jwt.ExpiredSignatureError):
        tokens.claims(token)
    assert tokens.claims(other)["sub"] == "ann"


def test_what_one_secret_signed_is_not_good_for_another() -> None:
    token = signed()
    Tokens(SECRET).claims(token)
    with pytest.raises(jwt.InvalidSignatureError):
        Tokens(OTHER).claims(token)


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
        (signed(exp=10**400), OverflowError),
        ("", jwt.DecodeError),
        ("a.b", jwt.DecodeError),
        ("a.b.c.d", jwt.DecodeError),
        ("é.é.é", jwt.DecodeError),
    ],
    ids=[
        "other key",
        "none",
        "expired",
        "too early",
        "exp",
        "no exp",
        "beyond all clocks",
        "empty",
        "two",
        "four",
        "no ascii",
    ],
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
