"""Tokens mean what PyJWT says they do, though the key is looked at once."""

import time

import jwt
import pytest

from pushsse.api import HttpProblem
from pushsse.api.identity import DEFAULT_SCOPES, Identity
from pushsse.api.identity.tokens import TokenRules, Tokens
from pushsse.errors import SettingsError
from pushsse.hub.people import NothingRevoked

DAY_S = 86_400
OTHER = "another secret, of the same length or so as the one that is configured here"
SECRET = "a secret that has more than the sixty-four bytes which HS512 is meant to have"


def signed(algorithm: str = "HS256", key: str = SECRET, /, **claims: object) -> str:
    return jwt.encode({"sub": "ann", "exp": time.time() + 600, **claims}, key, algorithm=algorithm)


def made(*secrets: str, **rules: object) -> Tokens:
    named = {f"PUSHSSE_JWT_SECRET_{number}": secret for number, secret in enumerate(secrets or (SECRET,))}
    return Tokens(named, TokenRules(**rules), NothingRevoked())  # type: ignore[arg-type]


def who(tokens: Tokens, token: str) -> Identity:
    """Whom a token names, which is known at once."""
    found = tokens.identity(token)
    assert isinstance(found, Identity)
    return found


def refusal(tokens: Tokens, token: str) -> str:
    """The code with which a token is refused."""
    with pytest.raises(HttpProblem) as found:
        who(tokens, token)
    assert found.value.status == 401
    return found.value.code


@pytest.mark.parametrize("algorithm", ["HS256", "HS384", "HS512"])
def test_a_good_token_says_what_was_signed(algorithm: str) -> None:
    ends, issued = time.time() + 60.5, time.time() - 1
    token = signed(algorithm, scope="pushsse:ask other:admin", exp=ends, iat=issued)
    assert who(made(), token) == Identity("ann", frozenset({"ask"}), ends, issued)
    assert who(made(), signed(scope="openid")).scopes == DEFAULT_SCOPES


def test_a_token_that_was_good_is_refused_once_it_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, token, other = made(), signed(), signed(exp=time.time() + 1200)
    who(tokens, token)
    who(tokens, other)
    later = time.time() + 601
    monkeypatch.setattr(time, "time", lambda: later)
    assert refusal(tokens, token) == "token_expired"
    assert who(tokens, other).user == "ann"


def test_what_one_secret_signed_is_not_good_for_another() -> None:
    token = signed()
    who(made(), token)
    assert refusal(made(OTHER), token) == "token_invalid"


def test_two_secrets_are_good_at_once_and_a_third_is_not() -> None:
    tokens = made(OTHER, SECRET)
    for algorithm in ("HS256", "HS384", "HS512"):
        assert who(tokens, signed(algorithm, OTHER)).user == "ann"
        assert who(tokens, signed(algorithm, SECRET)).user == "ann"
        assert refusal(tokens, signed(algorithm, OTHER + "!")) == "token_invalid"
    assert refusal(tokens, signed("HS256", SECRET, exp=1)) == "token_expired"


def test_every_change_of_a_letter_is_noticed() -> None:
    tokens, token = made(), signed()
    for at, letter in enumerate(token):
        changed = token[:at] + ("A" if letter != "A" else "Q") + token[at + 1 :]
        assert refusal(tokens, changed) == "token_invalid"


@pytest.mark.parametrize(
    ("token", "code"),
    [
        (signed("HS256", OTHER), "token_invalid"),
        (signed("none", ""), "token_invalid"),
        (signed(exp=time.time() - 1), "token_expired"),
        # Hours, since these are made long before they are used.
        (signed(nbf=time.time() + 36_000, exp=time.time() + 72_000), "token_not_yet_valid"),
        (signed(iat=time.time() + 36_000, exp=time.time() + 72_000), "token_not_yet_valid"),
        (signed(exp="soon"), "token_invalid"),
        (jwt.encode({"sub": "ann"}, SECRET), "token_invalid"),
        (signed(exp=10**400), "token_invalid"),
        ("", "token_invalid"),
        ("a.b", "token_invalid"),
        ("a.b.c.d", "token_invalid"),
        ("é.é.é", "token_invalid"),
    ],
    ids=[
        "other key",
        "none",
        "expired",
        "too early",
        "from the future",
        "exp",
        "no exp",
        "beyond all clocks",
        "empty",
        "two",
        "four",
        "no ascii",
    ],
)
def test_a_token_that_cannot_be_used_is_refused_for_its_reason(token: str, code: str) -> None:
    assert refusal(made(), token) == code


def test_clocks_may_differ_by_the_leeway_and_no_token_lives_longer_for_it() -> None:
    now = time.time()
    tokens = made(leeway_s=30.0)
    assert who(tokens, signed(nbf=now + 20, iat=now + 20)).user == "ann"
    assert refusal(tokens, signed(nbf=now + 40)) == "token_not_yet_valid"
    assert refusal(tokens, signed(exp=now - 1)) == "token_expired"


def test_a_token_is_valid_for_so_long_at_most() -> None:
    now = time.time()
    tokens = made(most_s=3600, leeway_s=5.0)
    good: list[dict[str, float]] = [{"exp": now + 3590}, {"exp": now + 3000, "iat": now - 590}]
    for claims in good:
        assert who(tokens, signed(**claims)).expires_at == claims["exp"]
    for claims in ({"exp": now + 3700}, {"exp": now + 3000, "iat": now - 700}, {"exp": now + 60, "iat": 0}):
        assert refusal(tokens, signed(**claims)) == "token_invalid"
    assert refusal(made(), signed(exp=now + DAY_S + 10)) == "token_invalid"


@pytest.mark.parametrize(("claim", "rule"), [("aud", "audiences"), ("iss", "issuers")])
def test_audience_and_issuer_have_to_be_those_of_this_service_where_they_are_set(
    claim: str, rule: str
) -> None:
    tokens = made(**{rule: ("push", "push2")})
    fitting: list[object] = ["push", "push2", ["other", "push2"]]
    for good in fitting:
        # PyJWT makes no token whose issuer isn't a text.
        if claim == "aud" or isinstance(good, str):
            assert who(tokens, signed(**{claim: good})).user == "ann"
    odd: list[object] = ["other", "push ", "PUSH", "", ["other"], [], None, 7, {"push": 1}]
    for bad in odd:
        if claim == "aud" or isinstance(bad, str):
            assert refusal(tokens, signed(**{claim: bad})) == "token_invalid"
    assert refusal(tokens, signed()) == "token_invalid"
    assert who(made(), signed(**{claim: "anything"})).user == "ann"


@pytest.mark.parametrize(
    "secret",
    [
        "-----BEGIN PUBLIC KEY-----\nMIIB\n-----END PUBLIC KEY-----",
        "ssh-ed25519 AAAA",
        '{"kty": "oct", "k": "AA"}',
        '{"kty": "oct", "k": "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"}',
        "-----BEGIN PUBLIC KEY-----\nMIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8A\n-----END PUBLIC KEY-----",
    ],
)
def test_a_key_that_is_no_secret_is_refused_at_the_start(secret: str) -> None:
    with pytest.raises(SettingsError, match="PUSHSSE_JWT_SECRET_1"):
        made(SECRET, secret)
