"""`pushsse publish` from standard input and files."""

import io
import json
import subprocess
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from pushsse.cli.events import FileLine, portions
from tests.cli.running import LIMIT_S, Served, environment, served
from tests.cli.test_terminal import on_terminal
from tests.starting import Forked, run, start

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("node")) as running:
        yield running


def piped(node: Served, given: bytes, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """`… | pushsse publish`."""
    return run(
        "publish",
        "--url",
        node.url,
        *arguments,
        input=given,
        cwd=node.folder,
        env=environment({}),
        timeout=LIMIT_S,
    )


def publishing(node: Served) -> "Forked | subprocess.Popen[bytes]":
    """`pushsse publish` with pipes."""
    pipe = subprocess.PIPE
    return start(
        "publish",
        "--url",
        node.url,
        cwd=node.folder,
        env=environment({}),
        stdin=pipe,
        stdout=pipe,
        stderr=pipe,
    )


def heard(node: Served, user: str, count: int) -> list[object]:
    """The messages that somebody has, the oldest first."""
    out = node.run("listen", "--user", user, "--since", "1h", "--json", "--count", str(count)).stdout
    lines = [json.loads(line) for line in out.split("\n")[:-1]]
    return [line["data"]["message"] for line in lines if "message" in line["data"]]


def event(user: str, message: object, **more: object) -> str:
    return json.dumps({"type": "news", "to": {"users": [user]}, "message": message, **more})


@pytest.mark.parametrize(
    ("user", "given", "messages"),
    [
        ("one", event("one", 1), [1]),
        ("end", event("end", 1) + "\n", [1]),
        ("many", "\n" + event("many", 1) + "\r\n\r\n" + event("many", 2) + "\n", [1, 2]),
        ("pretty", json.dumps(json.loads(event("pretty", {"a": [1]})), indent=2) + "\n", [{"a": [1]}]),
        ("bom", "\ufeff" + event("bom", "é"), ["é"]),
    ],
)
def test_standard_input_holds_one_event_or_many(
    node: Served, user: str, given: str, messages: list[object]
) -> None:
    done = piped(node, given.encode())
    assert (done.returncode, done.stderr) == (0, f"{len(messages)} accepted, 0 rejected\n")
    assert len(done.stdout.split()) == len(messages)
    assert heard(node, user, len(messages)) == messages


@pytest.mark.parametrize(
    ("user", "arguments", "given", "message"),
    [
        ("t1", ["--type", "news"], b"two\nlines \n", "two\nlines "),
        ("t2", ["news"], "你好".encode(), "你好"),
        ("t3", ["news", "--json"], b'{"a":\n[1]}\n', {"a": [1]}),
        ("t4", ["--type", "news", "--file", "-"], b"text\r\n", "text"),
    ],
)
def test_with_a_type_it_is_the_message(
    node: Served, user: str, arguments: list[str], given: bytes, message: object
) -> None:
    done = piped(node, given, *arguments, "--to", user)
    assert (done.returncode, done.stderr) == (0, "")
    assert heard(node, user, 1) == [message]


def test_refused_lines_are_named_and_counted(node: Served) -> None:
    lines = [event("mix", n) for n in range(4)]
    lines[1] = '{"type": 1}'
    lines[3] = "not JSON"
    done = piped(node, ("\n" + "\n".join(lines)).encode())
    assert done.returncode == 1
    said = done.stderr.splitlines()
    assert [line.partition(":")[0] for line in said] == ["line 3", "line 5", "2 accepted, 2 rejected"]
    assert len(done.stdout.split()) == 2


def test_lines_that_are_all_refused_are_named_too(node: Served) -> None:
    done = piped(node, b'{"type":1}\n{"type":2}\n\n{"type":3}\n')
    assert done.returncode == 1
    said = done.stderr.splitlines()
    assert [line.partition(":")[0] for line in said] == [
        "line 1", "line 2", "line 4", "0 accepted, 3 rejected",
    ]  # fmt: skip
    assert "$.type" in said[0]


def test_repeats_are_counted(node: Served) -> None:
    lines = "\n".join(event("rep", n, id="same") for n in range(3))
    done = piped(node, lines.encode())
    assert (done.returncode, done.stderr) == (0, "3 accepted (2 repeated), 0 rejected\n")


def test_a_large_file_goes_in_portions(node: Served) -> None:
    lines = [event("large", str(n) * 50) for n in range(5_000)]
    lines[4_321] = "{}"
    done = piped(node, "\n".join(lines).encode())
    assert done.returncode == 1
    assert done.stderr.splitlines()[0].startswith("line 4322: ")
    assert done.stderr.splitlines()[-1] == "4999 accepted, 1 rejected"
    assert heard(node, "large", 100) == [str(n) * 50 for n in range(100)]


def test_a_line_too_long_for_a_call_is_rejected_and_the_rest_sent(node: Served) -> None:
    done = piped(node, b"\n".join([event("long", 1).encode(), b"x" * 3_000_000, event("long", 2).encode()]))
    assert done.returncode == 1
    assert done.stderr.startswith("line 2: has more than 1048576 bytes\n")
    assert heard(node, "long", 2) == [1, 2]


def test_what_a_pipe_has_is_sent_while_it_is_open(node: Served) -> None:
    with publishing(node) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for number in (1, 2):
            process.stdin.write(event("open", number).encode() + b"\n")
            process.stdin.flush()
            assert process.stdout.readline().strip()
        process.stdin.close()
        assert process.wait(LIMIT_S) == 0
    assert heard(node, "open", 2) == [1, 2]


@pytest.mark.parametrize(
    ("arguments", "given", "status", "word"),
    [
        ([], b"", 1, "nothing to read"),
        ([], b"{\n}\n{\n}\n", 1, "jq -c"),
        ([], b"hello", 1, "line 1: "),
        (["--to", "all"], b"hello", 2, "TYPE"),
        (["news"], b"hello", 2, "--to"),
        (["news", "--to", "all"], b"", 1, "nothing to read"),
        (["news", "--to", "all"], b"\xff", 1, "UTF-8"),
        (["news", "--to", "all"], b"x" * 1_048_577, 1, "more than 1048576 bytes"),
        (["news", "--type", "news", "--to", "all"], b"hello", 2, "twice"),
        (["news", "hello", "--to", "all", "--file", "-"], b"hello", 2, "not both"),
    ],
)
def test_what_cannot_be_meant_is_said(
    node: Served, arguments: list[str], given: bytes, status: int, word: str
) -> None:
    done = piped(node, given, *arguments)
    assert done.returncode == status
    assert word in done.stderr
    assert "Traceback" not in done.stderr


def test_nobody_waits_at_a_terminal_without_a_word(node: Served) -> None:
    assert "standard input" in on_terminal(node.folder, "publish", "--url", node.url)
    assert "standard input" in on_terminal(node.folder, "publish", "news", "--to", "all")
    asked = on_terminal(node.folder, "publish", "--file", "-", until="Ctrl-D")
    assert "reading events" in asked


def test_service_that_goes_away_says_how_far_it_got(tmp_path: Path) -> None:
    with served(tmp_path) as node:
        first, rest = event("ann", 1).encode() + b"\n", event("ann", 2).encode() + b"\n"
        with publishing(node) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(first)
            process.stdin.flush()
            process.stdout.readline()
            node.process.terminate()
            node.process.wait(LIMIT_S)
            process.stdin.write(rest)
            process.stdin.close()
            assert process.wait(LIMIT_S) == 1
            assert process.stderr is not None
            said = process.stderr.read()
    assert b"1 accepted, 0 rejected; what comes after line 1 may not have been sent" in said


class Endless(io.RawIOBase):
    """A file of so many lines, made as it is read."""

    def __init__(self, line: bytes, times: int) -> None:
        self.line, self.times = line, times

    def readable(self) -> bool:
        return True

    def readinto(self, into: object) -> int:
        buffer = memoryview(into)  # type: ignore[arg-type]
        count = min(len(buffer) // len(self.line), self.times)
        buffer[: count * len(self.line)] = self.line * count
        self.times -= count
        return count * len(self.line)


@pytest.mark.parametrize("line", [b'{"n":1}' + b" " * 500 + b"\n", b"x" * 508])
def test_memory_is_bounded_whatever_the_size(line: bytes) -> None:
    size = 32 * 1024 * 1024 // len(line)
    file = io.BufferedReader(Endless(line, size))
    tracemalloc.start()
    try:
        numbers = [lines[-1].number for lines in portions(file)]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert numbers[-1] == (size if line.endswith(b"\n") else 1)
    assert peak < 8 * 1024 * 1024


class InSteps(io.BytesIO):
    """A pipe that has so many bytes at a time."""

    def __init__(self, body: bytes, step: int) -> None:
        super().__init__(body)
        self.step = step

    def read1(self, size: int | None = -1, /) -> bytes:
        return super().read(self.step)


@pytest.mark.parametrize(("step", "long"), [(1, 0), (7, 0), (4096, 1_048_577), (2_000_000, 1_048_577)])
def test_lines_are_the_same_however_they_arrive(step: int, long: int) -> None:
    body = b'\xef\xbb\xbf\n{"a":1}\n\nsecond\n' + b"y" * long + b'\n{"b":2}'
    found = [line for lines in portions(InSteps(body, step)) for line in lines]
    too_long = [FileLine(5, None)] if long else []
    assert found == [FileLine(2, b'{"a":1}'), FileLine(4, b"second"), *too_long, FileLine(6, b'{"b":2}')]


def test_a_key_is_published_and_shown_and_so_is_what_takes_it_away(node: Served) -> None:
    for message in ("paid", "sent"):
        node.run("publish", "order", message, "--to", "keys", "--collapse", "order-981")
    shown = node.run("listen", "--user", "keys", "--since", "1h", "--count", "1").stdout
    assert shown.endswith("  order  sent  [order-981]\n")
    node.run("publish", "order", "--to", "keys", "--withdraw", "order-981")
    acks = ({"ids": ["one", "two"], "state": "clicked"}, {"up_to": "aaaa-1.bbbb-2", "state": "read"})
    for ack in acks:
        assert httpx.post(f"{node.url}/v1/acks?user=keys", json=ack, trust_env=False).status_code == 204
    node.run("publish", "order", "over", "--to", "keys")
    shown = node.run("listen", "--user", "keys", "--since", "1h", "--count", "1").stdout
    assert [line.rpartition("Z  ")[2] for line in shown.splitlines()] == [
        "withdrawn: [order-981]", "clicked: one, two", "read: all up to aaaa-1.bbbb-2", "order  over",
    ]  # fmt: skip
    refused = piped(node, b"", "order", "why", "--to", "keys", "--withdraw", "order-981")
    assert refused.returncode == 2
    assert "--withdraw takes no MESSAGE" in refused.stderr
