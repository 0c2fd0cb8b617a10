"""Settings with which anybody gets in don't start; and what is said of a bad one holds no password."""

from pathlib import Path

import pytest

from tests.cli.running import pushsse

pytestmark = pytest.mark.real

PASSWORD = "hunter2"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PUSHSSE_JWT_SECRET", "x"),
        ("PUSHSSE_JWT_SECRET", "x" * 31),
        ("PUSHSSE_JWT_SECRET_OLD", "x" * 31),
        ("PUSHSSE_TOKEN_LEEWAY_S", "61"),
        ("PUSHSSE_JWKS_URL", "https://login.example/keys"),
        ("PUSHSSE_AUTH_URL", "app.example/session"),
        ("PUSHSSE_LOGIN_URL", "javascript:alert(1)"),
        ("PUSHSSE_AUTH_URL", f"http://ann:{PASSWORD}@app.example/session"),
        ("PUSHSSE_JWKS_URL", "file:///etc/keys"),
        ("PUSHSSE_JWKS_URL", "https://"),
        ("PUSHSSE_JWKS_URL", "login.example/keys"),
        ("PUSHSSE_JWKS_URL", f"https://ann:{PASSWORD}@login.example/keys"),
        ("PUSHSSE_ALLOWED_ORIGINS", "*"),
        ("PUSHSSE_ALLOWED_ORIGINS", "https://app.example.com,*"),
        ("PUSHSSE_ALLOWED_ORIGINS", "null"),
        ("PUSHSSE_REDIS_URL", f"redis://:{PASSWORD}@127.0.0.1:port"),
        ("PUSHSSE_REDIS_URL", f"redis://:{PASSWORD}@127.0.0.1:99999"),
    ],
)
def test_what_would_let_anybody_in_or_cannot_work_does_not_start_and_one_line_says_why(
    tmp_path: Path, name: str, value: str
) -> None:
    settings = {"PUSHSSE_JWT_SECRET": "x" * 32, name: value}
    ended = pushsse(tmp_path, "serve", "--port", "0", "--host", "0.0.0.0", **settings)
    assert ended.returncode == 2
    [line] = (ended.stdout + ended.stderr).splitlines()
    assert line.startswith(f"pushsse: {name}: ")
    assert PASSWORD not in line


@pytest.mark.parametrize(
    "line",
    [
        f'redis_url = ["redis://:{PASSWORD}@redis"]',
        f'database_url = {{ at = "postgres://ann:{PASSWORD}@db/push" }}',
        f'[redis_url]\nurl = "redis://:{PASSWORD}@redis"',
        f'kafka_bootstrap = ["SASL://ann:{PASSWORD}@kafka"]',
        f'kafka_sasl_password = ["{PASSWORD}"]',
        f'kafka_sasl_username = ["{PASSWORD}"]',
        f'jwt_secret = {{ secret = "{PASSWORD}" }}',
        f'answerer = ["openai:https://ann:{PASSWORD}@models/v1"]',
        f'workers = "redis://:{PASSWORD}@redis"',
        f'jwt_secret = "{PASSWORD}\\q"',
        f"redis_url = redis://:{PASSWORD}@redis",
        f'redis = "redis://:{PASSWORD}@redis"',
    ],
)
def test_a_mistake_in_the_file_prints_no_password(tmp_path: Path, line: str) -> None:
    (tmp_path / "pushsse.toml").write_text(line)
    ended = pushsse(tmp_path, "serve", "--port", "0")
    assert ended.returncode == 2
    assert len((ended.stdout + ended.stderr).splitlines()) == 1
    assert PASSWORD not in ended.stdout + ended.stderr
