"""The benchmark counts right: marks split over reads, what is missing, bounds, pictures."""

import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import msgspec
import pytest

from bench import formats
from bench.attacks import Pair, of_allowed
from bench.contestants import Floor, floor_program
from bench.generator import Figures, Generator, LoadFailed
from bench.held import DIGITS, MARK, Held
from bench.plots import lines
from bench.questions import Heard, QuestionCosts
from bench.rows import Row, markdown
from bench.usage import Usage

STREAMS = 20


@pytest.fixture(params=[pytest.param("compiled", marks=pytest.mark.real), "python"])
def floor(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Floor]:
    in_python = [sys.executable, str(Path(floor_program.__code__.co_filename).with_name("floor.py"))]
    with Floor(
        tmp_path / "work", floor_program(tmp_path) if request.param == "compiled" else in_python
    ) as floor:
        yield floor


def test_every_delivery_is_counted_one_at_a_time_in_bursts_and_at_a_rate(floor: Floor) -> None:
    with floor.generator(STREAMS) as load:
        load.open(STREAMS)
        publish = floor.publish()
        for figures in (
            load.each(publish, events=10, reach=STREAMS),
            load.acked(publish, events=10, reach=STREAMS),
            load.burst(publish, events=64, reach=STREAMS, window=16),
            load.burst(publish, events=8, reach=STREAMS, size=10_000),
            load.steady(publish, events=10, reach=STREAMS, rate=100),
        ):
            assert figures.complete
        assert figures.delivered == 10 * STREAMS
        assert 0 < figures.p50_ms <= figures.p99_ms < 5_000
        assert figures.us_each > 0


def test_streams_that_get_more_than_their_share_are_noticed(floor: Floor) -> None:
    with floor.generator(STREAMS) as load:
        load.open(STREAMS)
        figures = load.each(floor.publish(), events=3, reach=STREAMS - 1)
        assert not figures.complete
        assert figures.delivered > figures.expected


def test_closed_streams_get_nothing_and_the_others_everything(floor: Floor) -> None:
    with floor.generator(STREAMS) as load:
        load.open(STREAMS)
        load.keep(5)
        assert load.each(floor.publish(), events=4, reach=5).complete


def test_a_refused_stream_fails_the_measurement(floor: Floor) -> None:
    wrong = ["POST / HTTP/1.1\r\nContent-Length: 0\r\n\r\n"]
    with Generator(floor.port, floor.pid, wrong) as load, pytest.raises(LoadFailed, match="refused"):
        load.open(1)


@pytest.mark.parametrize("cut", range(1, len(MARK) + 2))
def test_a_mark_that_two_reads_share_counts_once(cut: int) -> None:
    text = b"data: " + MARK + b"0" * DIGITS + b"\n\n" + b"mail@example @@ " + MARK + b"1" * DIGITS
    at = text.index(MARK) + cut
    held = Held()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        opening = threading.Thread(target=held.open, args=(listener.getsockname()[1], ["GET /"]))
        opening.start()
        server, _ = listener.accept()
        with server:
            server.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            opening.join(20)
            for part in (text[:at], text[at:]):
                server.sendall(part)
                held.rest(0.05)
            assert held.total == 2
            assert list(held.delivered.values()) == [2]
            held.keep(0)
    held.poll.close()


def test_a_row_says_how_far_it_got() -> None:
    assert [Row("x", 3, 2, seen).verdict for seen in (4, 2.5, 1.9, 0)] == [
        "missed",
        "reach",
        "aim",
        "not measured",
    ]
    assert Row("x", 15_000, 40_000, 20_000, rising=True).verdict == "reach"
    assert "| x | 3 | 2 | **2.5** kB | reach |" in markdown([Row("x", 3, 2, 2.5, "kB")])


def test_a_picture_is_well_formed_and_has_every_series() -> None:
    drawn = lines(
        "CPU <each>", "streams", "µs", {"floor": {100: 4.0, 5000: 6.5}, "pushsse": {100: 9.0}, "none": {}}
    )
    assert ElementTree.fromstring(drawn).tag.endswith("svg")
    assert ">floor<" in drawn
    assert ">pushsse<" in drawn
    assert ">none<" not in drawn


def test_what_an_attack_costs_is_told_by_what_it_may_cost() -> None:
    def figures(p99_ms: float) -> Figures:
        return Figures(1, 1, 0, 0, 1.0, 1.0, p99_ms, Usage(0, 0))

    assert Pair(figures(4), figures(9)).of_allowed == 1
    assert Pair(figures(100), figures(125)).of_allowed == 1
    assert Pair(figures(100), figures(60)).of_allowed == 0
    # 0 would say that nothing was measured.
    assert 0 < of_allowed([Pair(figures(9), figures(4))]) < 0.01
    assert of_allowed([]) == 0


def test_formats_of_sources_have_half_the_throughput_of_our_own() -> None:
    rates = formats.measure(turns=20)
    for name in ("structured", "binary", "mapped"):
        # What `make bench` asks for is 0.5; a busy machine isn't to fail a test.
        assert rates.ratio(name) > 0.4, (name, rates.ratio(name))


def heard(*deltas: tuple[int, int, str], whole: str) -> Heard:
    """What a stream has heard of one answer: the number, place and text of each delta, and its end."""
    found = Heard(asked={"q": "ann"})
    for seq, start, text in deltas:
        data = msgspec.json.encode({"question": "q", "seq": seq, "from": start, "text": text})
        found.take("answer.delta", data)
    found.take("answer", msgspec.json.encode({"question": "q", "text": whole}))
    return found


def test_joined_deltas_are_no_gap_but_missing_repeated_and_lost_ones_are() -> None:
    one, two = "1 a; ", "2 b; "
    both = one + two
    apart, joined = heard((1, 0, one), (2, 5, two), whole=both), heard((1, 0, both), whole=both)
    for whole in (apart, joined):
        assert (whole.gaps, whole.unequal) == ([], [])
    assert heard((1, 0, one), (3, 5, two), whole=both).gaps == ["q"]
    assert heard((1, 0, one), (1, 0, one), (2, 5, two), whole=both).gaps == ["q"]
    assert heard((2, 0, both), whole=both).gaps == ["q"]
    assert heard((1, 0, one), whole=both).unequal == ["q"]
    # An answer of which no delta was heard is counted, and has no time of a first one.
    silent = heard(whole=both)
    assert (silent.unequal, silent.first_ms) == (["q"], {})
    costs = QuestionCosts()
    costs.count(apart)
    assert costs.complete
    costs.count(silent)
    assert (costs.answers, costs.unequal, costs.complete) == (2, 1, False)
