"""`pushsse top`: what all nodes do, once and live."""

import json
import re
from collections.abc import Iterator

import pytest

from tests.cli.running import Served, served
from tests.cli.test_terminal import exactly
from tests.waiting import until

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("node"), PUSHSSE_NODE="push-1") as running:
        assert running.run("publish", "news", "hello", "--to", "all").returncode == 0
        until(lambda: running.run("prefs", "off", "news", "--user", "ann").returncode == 0, "the type")
        until(lambda: "push-1" in running.run("top").stdout, "the node's first report")
        yield running


def test_elsewhere_than_at_a_terminal_it_is_printed_once(node: Served) -> None:
    summary, head, row, chosen = node.run("top").stdout.splitlines()
    assert re.match(
        r"1 node, 0 streams, 0 people, .* events/s, .* delivered/s, lag 0, 0 dead letters$", summary
    )
    assert head.split()[:5] == ["NODE", "STATE", "STREAMS", "PEOPLE", "BEHIND"]
    assert row.split()[:5] == ["push-1", "ready", "0", "0", "0"]
    # Numbers end where their head does.
    assert row[: head.index("STREAMS") + len("STREAMS")].endswith(" 0")
    assert chosen == "switched by people: news 0 on 1 off"
    found = json.loads(node.run("top", "--json").stdout)
    assert [each["node"] for each in found["nodes"]] == ["push-1"]


def test_at_a_terminal_it_is_drawn_again_and_again(node: Served) -> None:
    shown = exactly(node.folder, "top", "--every", "0.5", "--url", node.url, until="switched by people")
    assert "push-1" in shown
    # A screen of its own.
    assert "\x1b[?1049h" in shown


def test_a_service_that_is_away_ends_it_in_one_line(node: Served) -> None:
    ended = node.run("top", "--url", "http://127.0.0.1:1")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.startswith("pushsse: http://127.0.0.1:1: ")
    assert len(ended.stderr.splitlines()) == 1
