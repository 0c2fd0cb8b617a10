"""Kafka, Redis and PostgreSQL with TLS, and a password of odd characters: an event goes through each."""

import asyncio
import os
import tempfile
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from urllib.parse import quote

import asyncpg
import httpx
import pytest

from deploy.parts import Kafka, Postgres
from deploy.parts.certificate import Certificate, make_certificate
from deploy.parts.ports import take_port
from tests.backplane.redis_server import RedisServer
from tests.cli.running import Served, pushsse, served
from tests.parts import running
from tests.waiting import until

pytestmark = [pytest.mark.real, pytest.mark.slow]
# What has a meaning in a URL, in a shell, in SQL, in a DSN, in a percent-encoding.
DATABASE = "node @/:%"
PASSWORD = "p@ss:w/rd?#[]%25&=+ $'\"\\`;{}é張"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    """Another authority, which vouches for none of the parts."""
    return make_certificate(tmp_path_factory.mktemp("stranger"))


def comes_through(node: Served) -> None:
    """Publishes an event, and finds it in the person's events."""
    with httpx.Client(base_url=node.url, trust_env=False, timeout=30) as http:
        event = {"type": "news", "message": "through", "to": {"users": ["ann"]}}
        assert http.post("/v1/events", json=event).status_code == 202

        def is_there() -> bool:
            found = http.get("/v1/events?user=ann&since=1h").json()["events"]
            return [each["data"]["message"] for each in found] == ["through"]

        until(is_there, "the event")
        types = {"types": {"news": False}}
        until(lambda: http.post("/v1/preferences?user=ann", json=types).status_code == 200, "the switch")


def check_nothing_tells(node: Served, *secrets: str) -> None:
    for secret in (*secrets, *map(quote, secrets)):
        assert secret not in node.logged + node.printed


def judged(folder: Path, name: str, settings: Mapping[str, str]) -> str:
    """doctor's line on a part."""
    said = pushsse(folder, "doctor", **settings)
    assert PASSWORD not in said.stdout + said.stderr
    return next(line for line in said.stdout.splitlines() if line.split()[1] == name)


def test_kafka_with_scram_over_tls(tmp_path: Path, certificate: Certificate, stranger: Certificate) -> None:
    for kafka in running(SecuredKafka(tmp_path / "kafka", certificate)):
        for topic in ("push.events", "push.events.dlq"):
            kafka.create_topic(topic)
        settings = {
            "PUSHSSE_KAFKA_BOOTSTRAP": f"127.0.0.1:{kafka.secure_port}",
            "PUSHSSE_KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
            "PUSHSSE_KAFKA_SASL_MECHANISM": "SCRAM-SHA-512",
            "PUSHSSE_KAFKA_SASL_USERNAME": "node",
            "PUSHSSE_KAFKA_SASL_PASSWORD": KAFKA_PASSWORD,
            "PUSHSSE_KAFKA_SSL_CAFILE": str(certificate.authority),
        }
        with served(tmp_path, **settings) as node:
            comes_through(node)
            check_nothing_tells(node, KAFKA_PASSWORD)
        assert judged(tmp_path, "kafka", settings).startswith("ok")
        for wrong in (
            {"PUSHSSE_KAFKA_SASL_PASSWORD": "another"},
            {"PUSHSSE_KAFKA_SSL_CAFILE": str(stranger.authority)},
        ):
            assert judged(tmp_path, "kafka", settings | wrong).startswith("fault"), wrong


# Without what the storage tool's own list has a meaning for: a comma, brackets, a quotation mark.
KAFKA_PASSWORD = "p@ss:w/rd?#%25&+ $;é"


class SecuredKafka(Kafka):
    """A broker with a second port, `secure_port`, for clients with a password over TLS."""

    def __init__(self, folder: Path, certificate: Certificate) -> None:
        self.secure_port = take_port(self)
        self._store = certificate.key.read_text() + certificate.chain.read_text()
        at = f"127.0.0.1:{self.secure_port}"
        module = "org.apache.kafka.common.security.scram.ScramLoginModule"
        properties = f"""\
listeners=PLAINTEXT://127.0.0.1:{{port}},SECURE://{at},CONTROLLER://127.0.0.1:{{controller}}
advertised.listeners=PLAINTEXT://127.0.0.1:{{port}},SECURE://{at}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,SECURE:SASL_SSL,CONTROLLER:PLAINTEXT
sasl.enabled.mechanisms=SCRAM-SHA-512
listener.name.secure.scram-sha-512.sasl.jaas.config={module} required;
ssl.keystore.type=PEM
ssl.keystore.location=store.pem
"""
        user = f"SCRAM-SHA-512=[name=node,password={KAFKA_PASSWORD}]"
        super().__init__(folder, properties=properties, format_options=("--add-scram", user))

    def prepare(self) -> None:
        (self.folder / "store.pem").write_text(self._store)
        super().prepare()


class SecuredRedis(RedisServer):
    """A server with a second port, `secure_port`, for TLS; whoever gives no name may only PING."""

    def __init__(self, folder: Path, certificate: Certificate) -> None:
        self.secure_port = take_port(self)
        rules = "~pushsse:* &pushsse:* +@all -@admin -@dangerous +info"
        super().__init__(
            folder,
            *("--tls-port", str(self.secure_port), "--tls-auth-clients", "no"),
            *("--tls-cert-file", str(certificate.chain), "--tls-key-file", str(certificate.key)),
            *("--tls-ca-cert-file", str(certificate.authority), "--appendonly", "yes"),
            *("--user", "default", "on", "nopass", "resetkeys", "resetchannels", "-@all", "+ping"),
            *("--user", *f"node on #{sha256(PASSWORD.encode()).hexdigest()} {rules}".split()),
        )


def test_redis_with_a_user_and_tls(tmp_path: Path, certificate: Certificate, stranger: Certificate) -> None:
    server = SecuredRedis(tmp_path / "redis", certificate)
    server.start()

    def url(password: str = PASSWORD, authority: Path = certificate.authority) -> str:
        where = f"127.0.0.1:{server.secure_port}/0?ssl_ca_certs={quote(str(authority))}"
        return f"rediss://node:{quote(password, safe='')}@{where}"

    try:
        with served(tmp_path, PUSHSSE_REDIS_URL=url()) as node:
            comes_through(node)
            check_nothing_tells(node, PASSWORD)
        assert judged(tmp_path, "redis", {"PUSHSSE_REDIS_URL": url()}).startswith("ok")
        for wrong in (url(password="another"), url(authority=stranger.authority)):
            assert judged(tmp_path, "redis", {"PUSHSSE_REDIS_URL": wrong}).startswith("fault")
    finally:
        server.close()


class SecuredPostgres(Postgres):
    """A cluster that speaks TLS."""

    def __init__(self, folder: Path, certificate: Certificate) -> None:
        super().__init__(folder)
        self._certificate = certificate
        self._tls: Path | None = None

    def prepare(self) -> None:
        super().prepare()
        if self._tls is None:
            # The server's user may not reach our folders, and it insists on a key that is its own.
            self._tls = Path(tempfile.mkdtemp(prefix="pushsse-postgres-tls-"))
            for name in ("chain", "key"):
                made = self._tls / name
                made.touch(0o600)
                made.write_text(getattr(self._certificate, name).read_text())
            for path in (self._tls, *self._tls.iterdir()):
                os.chown(path, self.user() or os.getuid(), self.group() or os.getgid())

    def command(self) -> Sequence[str]:
        files = (f"ssl_cert_file={self._tls}/chain", f"ssl_key_file={self._tls}/key")
        return [*super().command(), "-c", "ssl=on", *(word for each in files for word in ("-c", each))]

    def remove(self) -> None:
        super().remove()
        if self._tls is not None:
            for path in self._tls.iterdir():
                path.unlink()
            self._tls.rmdir()


def test_postgresql_with_tls_and_a_password_of_odd_characters(
    tmp_path: Path, certificate: Certificate, stranger: Certificate
) -> None:
    user = "node @/:%'é"
    for postgres in running(SecuredPostgres(tmp_path / "postgres", certificate)):
        asyncio.run(add_user(postgres.url, user))
        where = f"127.0.0.1:{postgres.port}/{quote(DATABASE, safe='')}"

        def url(password: str = PASSWORD, authority: Path = certificate.authority, where: str = where) -> str:
            checked = f"sslmode=verify-full&sslrootcert={quote(str(authority))}"
            return f"postgres://{quote(user, safe='')}:{quote(password, safe='')}@{where}?{checked}"

        settings = {"PUSHSSE_DATABASE_URL": url()}
        assert pushsse(tmp_path, "migrate", **settings).returncode == 0
        with served(tmp_path, **settings) as node:
            comes_through(node)
            assert asyncio.run(encrypted(postgres.url, user)) == {True}
            check_nothing_tells(node, PASSWORD)
        assert judged(tmp_path, "database", settings).startswith("ok")
        for wrong in (url(password="another"), url(authority=stranger.authority)):
            assert judged(tmp_path, "database", {"PUSHSSE_DATABASE_URL": wrong}).startswith("fault")


async def add_user(url: str, name: str) -> None:
    """A user with the password, who owns a database."""
    connection = await asyncpg.connect(url)
    try:
        texts = (("ident", name), ("literal", PASSWORD), ("ident", DATABASE))
        quoted = [await connection.fetchval(f"SELECT quote_{how}($1::text)", text) for how, text in texts]
        await connection.execute(f"CREATE USER {quoted[0]} PASSWORD {quoted[1]}")
        await connection.execute(f"CREATE DATABASE {quoted[2]} OWNER {quoted[0]}")
    finally:
        await connection.close()


async def encrypted(url: str, user: str) -> set[bool]:
    """Whether the connections of a user are encrypted."""
    connection = await asyncpg.connect(url)
    try:
        rows = await connection.fetch(
            "SELECT ssl FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE usename = $1", user
        )
        return {row["ssl"] for row in rows}
    finally:
        await connection.close()
