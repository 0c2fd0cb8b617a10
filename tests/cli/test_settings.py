"""Settings: what is borne, what is named, and what no error shows."""

import re
from pathlib import Path

import pytest

from pushsse.backplane.redis.commands import Connector
from pushsse.errors import SettingsError
from pushsse.settings import FIELDS, load, unknown, variable

SECRET = "hunter2"
KUBERNETES = {
    "PUSHSSE_PORT": "tcp://10.0.0.7:8000",
    "PUSHSSE_PORT_8000_TCP": "tcp://10.0.0.7:8000",
    "PUSHSSE_PORT_8000_TCP_ADDR": "10.0.0.7",
    "PUSHSSE_PORT_8000_TCP_PORT": "8000",
    "PUSHSSE_PORT_8000_TCP_PROTO": "tcp",
    "PUSHSSE_SERVICE_HOST": "10.0.0.7",
    "PUSHSSE_SERVICE_PORT": "8000",
    "PUSHSSE_SERVICE_PORT_HTTP": "8000",
    "PUSHSSE_REDIS_PORT": "tcp://10.0.0.8:6379",
    "PUSHSSE_REDIS_SERVICE_HOST": "10.0.0.8",
}


def test_what_kubernetes_sets_for_a_service_called_pushsse_is_ignored_with_one_line() -> None:
    assert load(KUBERNETES).port == 8000
    (line,) = unknown(KUBERNETES)
    assert "PUSHSSE_PORT and 9 more" in line
    assert "Kubernetes" in line
    assert load({**KUBERNETES, "PUSHSSE_PORT": "9000"}).port == 9000


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("text", ["", " "])
def test_empty_variable_is_an_unset_one(name: str, text: str) -> None:
    environment = {variable(name): text}
    loaded = load({"PUSHSSE_NODE": "n", **environment}) if name != "node" else load(environment)
    assert name == "node" or getattr(loaded, name) == getattr(load({"PUSHSSE_NODE": "n"}), name)
    assert unknown(environment) == []


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("PUSHSSE_KAFKA_BOOTSTRAPS", "PUSHSSE_KAFKA_BOOTSTRAP"),
        ("PUSHSSE_REDIS_URI", "PUSHSSE_REDIS_URL"),
        ("PUSHSSE_HEARTBEAT", "PUSHSSE_HEARTBEAT_S"),
        ("PUSHSSE_ALLOW_ORIGINS", "PUSHSSE_ALLOWED_ORIGINS"),
        ("pushsse_redis_url", "PUSHSSE_REDIS_URL"),
    ],
)
def test_misspelt_variable_is_named_with_the_nearest_right_one(name: str, nearest: str) -> None:
    (line,) = unknown({name: SECRET, "HOME": "/"})
    assert line == f"{name} is not a setting: did you mean {nearest}?"


def test_foreign_variable_is_named_and_harms_nothing() -> None:
    environment = {"PUSHSSE_COLOUR_OF_THE_SKY": "blue", "PUSHSSE_URL": "http://x", "PUSHSSE_TOKEN": "t"}
    load(environment)
    assert unknown(environment) == ["PUSHSSE_COLOUR_OF_THE_SKY is not a setting"]


def test_misspelt_key_of_the_file_is_named_with_the_nearest_right_one(tmp_path: Path) -> None:
    file = tmp_path / "pushsse.toml"
    file.write_text('redis_uri = "redis://localhost"\n')
    with pytest.raises(SettingsError, match=r"'redis_uri' is not a setting: did you mean redis_url\?"):
        load({}, file=file)


@pytest.mark.parametrize("before", ["", "\ufeff"])
def test_file_may_begin_with_a_byte_order_mark(tmp_path: Path, before: str) -> None:
    file = tmp_path / "pushsse.toml"
    file.write_text(f"{before}port = 9000\r\n", encoding="utf-8")
    assert load({}, file=file).port == 9000


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("log_level", "INFO", "info"),
        ("log_level", "Warning", "warning"),
        ("kafka_security_protocol", "sasl_ssl", "SASL_SSL"),
        ("kafka_sasl_mechanism", "scram-sha-256", "SCRAM-SHA-256"),
        ("auth", "None", "none"),
        ("host", "[::1]", "::1"),
        ("host", "127.0.0.2", "127.0.0.2"),
        ("allowed_origins", "https://App.example.com/, http://localhost:5173", "https://app.example.com"),
        ("allowed_origins", "https://app.example.com:443", "https://app.example.com"),
        ("allowed_origins", "https://app.example.com:8443/", "https://app.example.com:8443"),
    ],
)
def test_common_ways_of_writing_a_value_are_borne(name: str, text: str, value: str) -> None:
    found = getattr(load({variable(name): text}), name)
    assert (found[0] if isinstance(found, tuple) else found) == value


@pytest.mark.parametrize(
    "text", ["app.example.com", "https://app.example.com/path", "https://", "https://a b"]
)
def test_what_is_no_origin_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match=r"PUSHSSE_ALLOWED_ORIGINS.*isn't an origin"):
        load({"PUSHSSE_ALLOWED_ORIGINS": text})


@pytest.mark.parametrize(
    "url",
    [
        "redis://localhost:abc",
        "redis://localhost:70000",
        "redis://localhost:0",
        "redis://localhost:hunter2",
        "redis://:hunter2#x@localhost",
        "redis://:x/hunter2@localhost",
        "redis://:x?hunter2@localhost",
        "redis://:[hunter2@localhost",
        "redis://:hunter2@x@localhost",
        "redis://:hunter2@localhost/abc",
        "redis://:1234?hunter2@localhost",
        "redis://:1234?x@hunter2=1",
        "redis://localhost?password=hunter2&password=hunter2",
        "redis://localhost?password=hunter2%0A&db=x",
        "redis://localhost?password=hunter2&foo=hunter2",
        "rediss://localhost?ssl_password=hunter2&ssl_password=",
        "ann:hunter2@localhost",
        "hunter2@localhost",
    ],
)
def test_redis_url_that_cannot_be_used_is_one_line_without_its_password(url: str) -> None:
    with pytest.raises(SettingsError) as raised:
        load({"PUSHSSE_REDIS_URL": url})
    text = str(raised.value)
    assert text.startswith("PUSHSSE_REDIS_URL")
    assert "\n" not in text
    assert SECRET not in text


@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("redis://localhost?foo=1", "'foo'"),
        ("redis://localhost?decode_responses=true", "'decode_responses'"),
        ("redis://localhost?protocol=3", "'protocol'"),
        ("redis://localhost?socket_timeout=1", "'socket_timeout'"),
        ("redis://localhost?max_connections=1", "'max_connections'"),
        ("redis://localhost?encoding=utf-16", "'encoding'"),
        ("redis://localhost?host=other", "'host'"),
        ("redis://localhost?ssl_cert_reqs=none", "ssl_cert_reqs needs rediss://"),
        ("rediss://localhost?ssl_cert_reqs=CERT_NONE", "ssl_cert_reqs can't be 'CERT_NONE'"),
        ("rediss://localhost?ssl_check_hostname=maybe", "ssl_check_hostname can't be 'maybe'"),
        ("redis://localhost?db=abc", "db can't be 'abc'"),
        ("redis://localhost?db=", "db can't be ''"),
        ("redis://localhost?client_name=a%20b", "client_name can't be 'a b'"),
        ("redis://localhost?db=1&db=2", "db is there twice"),
    ],
)
def test_a_parameter_of_redis_url_that_cannot_be_used_is_named(url: str, named: str) -> None:
    with pytest.raises(SettingsError, match=f"^PUSHSSE_REDIS_URL: .*{re.escape(named)}"):
        load({"PUSHSSE_REDIS_URL": url})


@pytest.mark.parametrize(
    "url",
    [
        "redis://localhost/1?client_name=pushsse",
        "redis://localhost?db=1&username=ann&password=a%20b",
        "redis://localhost?password=a%0Ab",
        "rediss://localhost?ssl_cert_reqs=none&ssl_check_hostname=False&ssl_ca_certs=/ca.pem",
    ],
)
def test_parameters_of_redis_url_that_its_client_takes_are_taken(url: str) -> None:
    assert load({"PUSHSSE_REDIS_URL": url}).redis_url == url
    # What it can't use it refuses here.
    Connector(url, timeout_s=1).connection()


@pytest.mark.parametrize("url", ["http://[", "http://[::1", "http://[x]/", "http://a]b/", "http://h:٣/"])
@pytest.mark.parametrize("name", ["JWKS_URL", "AUTH_URL", "LOGIN_URL", "REDIS_URL", "DATABASE_URL"])
def test_what_is_no_url_is_one_line(name: str, url: str) -> None:
    with pytest.raises(SettingsError, match=f"^PUSHSSE_{name}: .*") as raised:
        load({f"PUSHSSE_{name}": url})
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("url", ["redis://[", "redis://[::1/0", "rediss://a]b/0"])
def test_what_is_no_url_of_redis_is_one_line(url: str) -> None:
    with pytest.raises(SettingsError, match=r"^PUSHSSE_REDIS_URL: .*%5B %5D"):
        load({"PUSHSSE_REDIS_URL": url})


@pytest.mark.parametrize(
    "bad",
    [
        "x:abc",
        "h:99999",
        "h:0",
        "h:",
        ":9092",
        "",
        "h:1;h2:2",
        "kafka://h:1",
        "[::1",
        "[::1]x",
        "[h]:1",
        "a b:1",
    ],
)
def test_what_is_no_address_of_a_broker_is_named(bad: str) -> None:
    with pytest.raises(SettingsError, match=f"^PUSHSSE_KAFKA_BOOTSTRAP: {re.escape(repr(bad))} isn't HOST"):
        load({"PUSHSSE_KAFKA_BOOTSTRAP": f"kafka1:9092,{bad}"})


def test_a_password_among_the_addresses_of_brokers_is_not_shown() -> None:
    with pytest.raises(SettingsError, match=r"^PUSHSSE_KAFKA_BOOTSTRAP: .* isn't HOST:PORT") as raised:
        load({"PUSHSSE_KAFKA_BOOTSTRAP": f"ann:{SECRET}@kafka1:9092"})
    assert SECRET not in str(raised.value)


def test_addresses_of_brokers_are_taken() -> None:
    text = "kafka1, kafka_2.shop:9092 ,10.0.0.7:65535,[::1]:9092,[fe80::1],::1"
    assert load({"PUSHSSE_KAFKA_BOOTSTRAP": text}).kafka_bootstrap == text


def test_database_url_with_a_password_that_looks_like_a_port_shows_nothing_of_it() -> None:
    with pytest.raises(SettingsError) as raised:
        load({"PUSHSSE_DATABASE_URL": f"postgres://ann:1234?{SECRET}@localhost/shop"})
    assert SECRET not in str(raised.value)


@pytest.mark.parametrize("raw", ["#", "/", "?", "[", "]", "@", "@/", "x#y", "1/2"])
@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("PUSHSSE_DATABASE_URL", "postgres://ann:hunter2{}hunter2@db:5432/push"),
        ("PUSHSSE_REDIS_URL", "rediss://ann:hunter2{}hunter2@cache:6379/0"),
    ],
)
def test_raw_special_characters_in_a_password_are_one_line_that_says_what_to_write(
    name: str, url: str, raw: str
) -> None:
    with pytest.raises(SettingsError) as raised:
        load({name: url.format(raw)})
    assert str(raised.value).startswith(name)
    assert "write" in str(raised.value)
    assert SECRET not in str(raised.value)


@pytest.mark.parametrize(
    "url",
    [
        "postgres://ann:a%23b%2Fc%3Fd%5Be%40f@db:5432/push?sslmode=require",
        "postgres:///push?host=/var/run/postgresql",
        "postgres://db/push?user=ann&password=a@b",
        "postgresql://ann@[::1]:5432/push",
        "sqlite:///var/lib/a@b#c/pushsse.db",
        "sqlite://:memory:",
    ],
)
def test_database_url_that_can_be_read_is_taken(url: str) -> None:
    assert load({"PUSHSSE_DATABASE_URL": url}).database_url == url


@pytest.mark.parametrize(
    "text",
    [
        'jwt_secret = ["hunter2"]',
        "jwt_secret = {hunter2 = 1}",
        'kafka_sasl_password = ["hunter2"]',
        'database_url = ["postgres://ann:hunter2@db/push"]',
        'database_url = {url = "postgres://ann:hunter2@db/push"}',
        'redis_url = ["redis://:hunter2@localhost"]',
        'port = {password = "hunter2"}',
        'database_url = "mysql://ann:hunter2@db/push"',
        'database_url = "ann:hunter2@db/push"',
        'redis_url = "http://:hunter2@localhost"',
        "jwt_secret = hunter2",
    ],
)
def test_no_error_shows_a_secret(tmp_path: Path, text: str) -> None:
    file = tmp_path / "pushsse.toml"
    file.write_text(text)
    with pytest.raises(SettingsError) as raised:
        load({}, file=file)
    assert SECRET not in str(raised.value)
