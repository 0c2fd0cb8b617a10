"""URLs for people: no part of a secret, whatever the URL's form."""

import pytest

from pushsse.logs import safe_url

SECRET = "hunter2"


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("postgres://ann:hunter2@db:5432/push", "postgres://db:5432/push"),
        ("postgres://db/push?user=ann&password=hunter2", "postgres://db/push"),
        ("postgres:///push?host=/var/run/postgresql&password=hunter2", "postgres:///push?host=/var/run/postgresql"),
        ("postgresql://%2Fvar%2Frun/push", "postgresql://%2Fvar%2Frun/push"),
        ("postgres://a:hunter2@one:1,two:2/push?target_session_attrs=primary", "postgres://one:1,two:2/push"),
        ("redis://:hunter2@[::1]:6379/0", "redis://[::1]:6379/0"),
        ("rediss://hunter2@cache/0?ssl_cert_reqs=none", "rediss://cache/0"),
        ("unix://ann:hunter2@/run/redis.sock?db=1", "unix:///run/redis.sock"),
        ("openai:https://ann:hunter2@models/v1?model=m&key=hunter2", "openai:https://models/v1"),
        ("sqlite://pushsse.db?journal_mode=WAL", "sqlite://pushsse.db"),
        ("sqlite:///var/lib/push@home/pushsse.db", "sqlite:///var/lib/push@home/pushsse.db"),
        ("sqlite://:memory:", "sqlite://:memory:"),
        ("kafka1:9092,kafka2:9092", "kafka1:9092,kafka2:9092"),
        ("faq:questions.toml", "faq:questions.toml"),
    ],
)  # fmt: skip
def test_url_is_shown_without_what_is_secret(url: str, text: str) -> None:
    assert safe_url(url) == text


@pytest.mark.parametrize("mark", ["#", "/", "?", "[", "]", "@", ":", "%", " ", "\n", "=", "&", "//", "://"])
@pytest.mark.parametrize("form", ["{}@db:5432/push", "ann:{}@db/push", ":{}@db", "db/push?password={}"])
@pytest.mark.parametrize("scheme", ["postgres", "redis", "rediss"])
def test_raw_special_characters_let_nothing_out(scheme: str, form: str, mark: str) -> None:
    for secret in (f"hunter2{mark}retnuh", f"{mark}hunter2", f"hunter2{mark}", f"hunter2{mark}retnuh@{mark}"):
        text = safe_url(f"{scheme}://{form.format(secret)}")
        assert "hunter2" not in text, text
        assert "retnuh" not in text, text


@pytest.mark.parametrize(
    "text",
    ["ann:hunter2@db", "redis://db:hunter2", "host=db password=hunter2", "//ann:hunter2@db", "?p=hunter2"],
)
def test_what_is_no_url_is_shown_only_if_it_holds_no_secret(text: str) -> None:
    assert SECRET not in safe_url(text)
