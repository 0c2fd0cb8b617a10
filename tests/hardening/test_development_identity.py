"""The development identity is for a shell or a browser on this machine: nothing that came through a proxy."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from pushsse.api.files import DEVELOPMENT_PAGE
from pushsse.errors import SettingsError
from pushsse.settings import load, variable
from tests.serving import Running, serving

pytestmark = pytest.mark.anyio
NAMES = ("For", "Host", "Proto", "Port", "Server", "Prefix", "Ssl", "Scheme", "By", "User", "Anything")
HEADERS = [f"X-Forwarded-{name}" for name in NAMES] + ["Forwarded", "X-Real-IP", "Via"]


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Running]:
    async with serving(tmp_path) as running:
        yield running


@pytest.mark.parametrize("header", HEADERS)
async def test_any_header_of_a_proxy_alone_is_enough_to_be_refused(node: Running, header: str) -> None:
    event = {"type": "news", "message": 1, "to": "all"}
    for value in ("", "https", "127.0.0.1"):
        for method, path, body in (
            ("GET", "/v1/stream?user=ann", None),
            ("GET", "/v1/preferences", None),
            ("GET", "/v1/me", None),
            ("GET", "/", None),
            ("POST", "/v1/events", event),
        ):
            reply = await node.http.request(method, path, json=body, headers={header: value})
            assert (reply.status_code, reply.json()["code"]) == (403, "development_only")
    assert node.node.metrics.appended == 0


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
async def test_a_page_elsewhere_is_refused_also_where_it_sends_no_origin(node: Running, site: str) -> None:
    for path in ("/v1/stream?user=ann", "/v1/events?user=ann", "/v1/preferences", "/v1/me"):
        reply = await node.http.get(path, headers={"Sec-Fetch-Site": site})
        assert (reply.status_code, reply.json()["code"]) == (403, "development_only")
    # A link to the page is followed.
    assert (await node.http.get("/", headers={"Sec-Fetch-Site": site})).status_code == 200


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "[::]", "10.0.0.1", "192.168.0.7", "fe80::1", "example.com", " "]
)
async def test_without_a_key_no_address_but_this_machine_own_is_listened_to(host: str) -> None:
    key = "x" * 32
    keys: list[dict[str, object]] = [
        {},
        {"auth": "none", "jwt_secret": key},
        {"auth": "none", "auth_url": "https://app.example/session"},
        {"auth": "none", "jwks_url": "https://app.example/", "jwt_audience": "a", "jwt_issuer": "i"},
        {"jwt_secret": "", "auth_url": " ", "jwks_url": ""},
        {"jwt_audience": "a", "jwt_issuer": "i", "allowed_origins": "https://app.example"},
    ]
    for given in keys:
        environment = {variable(name): str(value) for name, value in given.items()}
        with pytest.raises(SettingsError, match="PUSHSSE_HOST"):
            load(environment, {"host": host})
        for here in ("127.0.0.1", "localhost", "::1", "127.8.9.1"):
            assert load(environment, {"host": here}).development
    for name, value in (("jwt_secret", key), ("auth_url", "https://app.example/session")):
        assert not load({variable(name): value}, {"host": host}).development


async def test_the_page_is_for_this_machine_alone_in_development(node: Running) -> None:
    for headers in ({"Host": "evil.example"}, {"Host": "127.0.0.1.evil.example"}):
        for path in ("/", "/page/main.js", "/page/plug.js"):
            assert (await node.http.get(path, headers=headers)).json()["code"] == "development_only"


async def test_the_page_publishes_in_development_alone(node: Running, tmp_path: Path) -> None:
    pages: list[str] = []
    (tmp_path / "other").mkdir()
    async with serving(tmp_path / "other", jwt_secret="a secret of thirty-two bytes and more") as other:
        for each in (node, other):
            page, script = await each.http.get("/"), await each.http.get("/page/main.js")
            pages.append(page.text + script.text)
            assert 'id="ask"' in pages[-1]
        for path in DEVELOPMENT_PAGE:
            assert (await other.http.get(path)).status_code == 404
    for path in DEVELOPMENT_PAGE:
        assert (await node.http.get(path)).status_code == 200
    in_development, outside = pages
    assert "development.js" in in_development
    assert 'id="publish"' in in_development
    for word in ('id="publish', 'id="plug', "v1/events", "development"):
        assert word not in outside
