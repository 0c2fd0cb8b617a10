"""The order of credentials, and what has to be waited for."""

import pytest
from starlette.requests import HTTPConnection, Request

from pushsse.api import HttpProblem
from pushsse.api.identity import ADMIN, PUBLISH, STREAM, Credentials, Identifying, Identity, unauthorized

pytestmark = pytest.mark.anyio


class Header:
    """A credential that is known at once: the user's name in a header."""

    def look(self, request: HTTPConnection) -> Identity | None:
        name = request.headers.get("x-name")
        if name == "nobody":
            raise unauthorized("token_invalid", "nobody has this name")
        return None if name is None else Identity(name, frozenset({STREAM}))


class Remote:
    """One that somebody has to be asked about, and that is used up by that."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def look(self, request: HTTPConnection) -> Identifying | None:
        given = request.headers.get("x-ticket")
        if given is None:
            return None

        async def asking() -> Identity:
            self.asked.append(given)
            return Identity(f"{given}'s owner", frozenset({STREAM}))

        return asking


def request(**headers: str) -> Request:
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return Request({"type": "http", "method": "GET", "path": "/", "headers": raw, "query_string": b""})


async def test_the_first_credential_that_is_there_decides() -> None:
    remote = Remote()
    identifier = Credentials([Header(), remote])
    both = request(x_name="ann", x_ticket="t")
    assert (await identifier.identify(both, STREAM)).user == "ann"
    known = identifier.identify_nowait(both, STREAM)
    assert known is not None
    assert known.user == "ann"
    with pytest.raises(HttpProblem) as bad:
        await identifier.identify(request(x_name="nobody", x_ticket="t"), STREAM)
    assert bad.value.code == "token_invalid"
    assert remote.asked == []
    with pytest.raises(HttpProblem) as none:
        identifier.identify_nowait(request(), STREAM)
    assert (none.value.status, none.value.code) == (401, "token_missing")


async def test_what_has_to_be_asked_is_not_asked_without_waiting() -> None:
    remote = Remote()
    identifier = Credentials([Header(), remote])
    assert identifier.identify_nowait(request(x_ticket="t"), STREAM) is None
    assert remote.asked == []
    assert (await identifier.identify(request(x_ticket="t"), STREAM)).user == "t's owner"
    assert remote.asked == ["t"]


async def test_a_scope_is_required_of_whatever_is_found() -> None:
    identifier = Credentials([Header(), Remote()])
    with pytest.raises(HttpProblem) as at_once:
        identifier.identify_nowait(request(x_name="ann"), PUBLISH)
    with pytest.raises(HttpProblem) as asked:
        await identifier.identify(request(x_ticket="t"), PUBLISH)
    assert at_once.value.status == asked.value.status == 403
    Identity("ann", frozenset({ADMIN})).require(PUBLISH)
