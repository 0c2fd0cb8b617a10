"""What the matrix says of a client, from what the client told, and how it gets into the page."""

from typing import cast

from tests.clients.client import Client
from tests.clients.listening import Listening, Told
from tests.clients.matrix import Matrix, Way
from tests.clients.table import BEGIN, END, FAULTS, Missing, written
from tests.clients.verdict import Verdict, judge
from tests.clients.world import World


def told(*events: tuple[float, object]) -> Listening:
    """Numbers, and others by their names; `gap` is a `ready` that says so."""
    listening = Listening()
    for at, each in events:
        if isinstance(each, int):
            listening.told.append(Told(at, "message", {"type": "number", "message": each}))
        elif each == "gap":
            listening.told.append(Told(at, "ready", {"resume": "gap"}))
        else:
            listening.told.append(Told(at, str(each), {}))
    return listening


def test_a_client_that_noticed_nothing_is_whole() -> None:
    found = judge(told((0, "ready"), (1, 0), (6, 1)), range(2), since=5)
    assert found.whole
    assert str(found) == "✓"


def test_the_pause_is_that_between_the_last_sign_of_life_and_the_new_stream() -> None:
    found = judge(told((0, "ready"), (6, 0), (7, "exception"), (10, "ready"), (10, 1)), range(2), since=5)
    assert found.whole
    assert str(found) == "back in 3 s"


def test_a_pause_begins_with_the_fault_where_nothing_came_before() -> None:
    assert judge(told((0, "ready"), (1, 0), (50, "ready"), (50, 1)), range(2), since=5).away_s == 45


def test_lost_and_repeated_events_are_counted() -> None:
    found = judge(told((0, "ready"), (1, 0), (6, 0), (8, "ready"), (9, 2)), range(3), since=5)
    assert not found.whole
    assert str(found) == "1 lost, 1 twice, back in 2 s"


def test_a_gap_is_not_whole() -> None:
    assert not judge(told((0, "ready"), (8, "gap"), (9, 0)), range(1), since=5).whole


def test_a_client_that_hears_no_more_is_silent_and_one_that_says_so_has_ended() -> None:
    assert str(judge(told((0, "ready"), (1, 0)), range(2), since=5)) == "silent"
    assert str(judge(told((0, "ready"), (1, 0), (6, "ended")), range(2), since=5)) == "ended"


def matrix(name: str, away_s: float) -> Matrix:
    """One client, over one version of HTTP."""
    client = Client(
        name, name.title(), lambda: "1.0", lambda _: [], lambda _: [], f"{name}.py", "a loop", http2=False
    )
    ways = [Way(client, tls=False, right=right) for right in (False, True)]
    # No part is started: only the verdicts are looked at.
    made = Matrix(cast(World, None), ways, limit_s=1, token_s=1)
    verdict = Verdict(lost=0, twice=0, back=True, connections=1, away_s=away_s)
    made.verdicts = {(way, fault): verdict for way in ways for fault in FAULTS}
    return made


def test_the_tables_stand_between_their_marks_and_a_run_of_some_keeps_the_rows_of_others() -> None:
    page = f"before\n{BEGIN}\n{END}\nafter\n"
    first = written(page, matrix("one", 2), [Missing("two", "no | compiler")], others=False)
    assert first.startswith(f"before\n{BEGIN}\n| client | HTTP |")
    assert first.endswith(f"\n{END}\nafter\n")
    assert "| One | 1.1 | back in 2 s |" in first
    assert "not tried: no \\| compiler" in first
    both = written(first, matrix("three", 4), [], others=True)
    again = written(both, matrix("one", 6), [], others=True)
    assert "| One | 1.1 | back in 6 s |" in again
    assert "| Three | 1.1 | back in 4 s |" in again
    assert again.count("| One |") == again.count("| Three |") == 2
