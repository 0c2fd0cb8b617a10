"""A head that is read without httptools is one of which httptools makes the same."""

import httptools
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pushsse.stream.immediate import plain_head

HOST = b"Host: 127.0.0.1"
BROWSERS = (HOST, b"Connection: keep-alive", b"Accept: text/event-stream", b'Sec-CH-UA: "A";v="1"', b"DNT: 1")


class Parsed:
    """What httptools finds in bytes."""

    def __init__(self, data: bytes) -> None:
        self.url = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.ends: list[bool] = []
        self._parser = httptools.HttpRequestParser(self)
        self._parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self._parser.feed_data(data)
        self.kind = self._parser.get_method(), self._parser.get_http_version()

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_body(self, body: bytes) -> None:
        raise AssertionError("a body")

    def on_message_complete(self) -> None:
        # Whether the connection is kept, and no other protocol is asked for.
        self.ends.append(self._parser.should_keep_alive() and not self._parser.should_upgrade())


def get(*lines: bytes, target: bytes = b"/v1/stream?user=ann", first: bytes = b"GET %b HTTP/1.1") -> bytes:
    return b"\r\n".join([first % target, *lines]) + b"\r\n\r\n"


def test_what_clients_send_to_open_a_stream_is_plain() -> None:
    read = plain_head(get(*BROWSERS))
    assert read is not None
    url, headers = read
    assert url == b"/v1/stream?user=ann"
    assert headers[0] == (b"host", b"127.0.0.1")
    assert headers[3] == (b"sec-ch-ua", b'"A";v="1"')


@pytest.mark.parametrize(
    "data",
    [
        get(),
        get(HOST, HOST),
        get(b"Host: a b"),
        get(b"Host:"),
        get(HOST, b"Content-Length: 0"),
        get(HOST, b"Transfer-Encoding: chunked"),
        get(HOST, b"Transfer_Encoding: chunked"),
        get(HOST, b"Content-Encoding: gzip"),
        get(HOST, b"Upgrade: h2c"),
        get(HOST, b"Connection: close"),
        get(HOST, b"Connection: Upgrade, keep-alive"),
        get(HOST, b"Expect: 100-continue"),
        get(HOST, b"A : x"),
        get(HOST, b"A: x", b" more"),
        get(HOST, b"A: x\ry"),
        get(HOST, b"A: x\ny"),
        get(HOST, b"A: x\0y"),
        get(HOST, b"A: \xc3\xa9"),
        get(HOST, b"A: x "),
        get(HOST, target=b"http://127.0.0.1/v1/stream"),
        get(HOST, target=b"/v1/stream#user"),
        get(HOST, first=b"GET %b HTTP/1.0"),
        get(HOST, first=b"HEAD %b HTTP/1.1"),
        get(HOST, first=b"get %b HTTP/1.1"),
        get(HOST, first=b"\r\nGET %b HTTP/1.1"),
        get(HOST)[:-1],
        get(HOST).replace(b"\r\n", b"\n"),
        get(HOST) + b"G",
        get(HOST) + get(HOST),
    ],
)
def test_what_could_be_read_in_two_ways_is_not_plain(data: bytes) -> None:
    assert plain_head(data) is None


NAMES = st.sampled_from([b"A", b"connection", b"Via", b"X-1", b"accept", b"Keep-Alive", b"A_b", b"b:", b""])
VALUES = st.lists(
    st.sampled_from([b"close", b"keep-alive", b"x", b":", b" ", b",", b"\t", b"\r", b"\n", b"~"])
)
LINES = st.builds(lambda name, value: name + b": " + b"".join(value), NAMES, VALUES)
TARGETS = st.lists(
    st.sampled_from([b"/", b"?", b"a", b"%41", b"%", b"#", b"//", b":", b"@", b",", b" ", b"["])
)


@given(st.lists(LINES), TARGETS.map(b"".join))
@example(list(BROWSERS[1:]), b"v1/stream?a=b")
def test_httptools_makes_the_same_of_a_plain_head(lines: list[bytes], target: bytes) -> None:
    data = get(*lines, HOST, target=b"/" + target)
    read = plain_head(data)
    if read is None:
        return
    parsed = Parsed(data)
    assert read == (parsed.url, parsed.headers)
    assert parsed.ends == [True]
    assert parsed.kind == (b"GET", "1.1")
