"""What is proposed for records of which not all are alike."""

import json
import tomllib
from collections.abc import Sequence
from typing import NamedTuple

import pytest

from pushsse.intake.proposing import proposal


class Given(NamedTuple):
    """A record as a consumer hands it out."""

    value: bytes | None
    headers: Sequence[tuple[str, bytes]] = ()
    topic: str = "orders"
    partition: int = 0
    offset: int = 0
    timestamp: int = 1_000
    key: bytes | None = None


def proposed(*values: object) -> tuple[dict[str, str], str]:
    """The map, and the comments before the table."""
    text = proposal("orders", [Given(json.dumps(value).encode()) for value in values]).toml()
    [table] = tomllib.loads(text)["kafka"]
    return table.get("map", {}), "".join(line for line in text.splitlines() if line.startswith("#"))


def test_who_is_named_in_most_records_only_gets_them_and_nobody_else_does() -> None:
    orders = [{"buyer": {"id": name}, "total": 1} for name in ("ann", "bo", None)]
    made, notes = proposed(*orders, {"total": 2}, {"buyer": {"id": "cy"}})
    assert (made["to"], made["when"]) == ("value.buyer.id", "value.buyer.id")
    assert "value.buyer.id is in 3 of these 5 records only" in notes
    # Less than half is no sign.
    made, notes = proposed(*orders, *[{"total": 2}] * 3)
    assert (made["to"], made.get("when")) == ("'all'", None)
    assert "everybody gets them" in notes


def test_a_member_that_all_have_goes_before_one_that_most_have() -> None:
    made, _ = proposed(
        {"user": "ann", "type": "a", "status": "x"},
        {"user": "ann", "type": "b", "status": "y"},
        {"user": "ann", "status": "x"},
    )
    assert (made["type"], made.get("when")) == ("join('.', ['order', value.status])", None)
    made, notes = proposed({"userId": "ann", "login": "a"}, {"login": "b"}, {"userId": "cy", "login": "c"})
    assert (made["to"], made.get("when")) == ("value.login", None)
    assert "records only" not in notes


def test_all_conditions_stand_together() -> None:
    made, notes = proposed(
        *[{"notify": True, "user": "ann", "status": status} for status in ("paid", "sent", "back")],
        {"notify": True, "user": "ann"},
        {"notify": False, "status": "paid"},
    )
    assert made["when"] == "value.notify && value.user && value.status"
    assert made["type"] == "join('.', ['order', value.status])"
    assert notes.count("records only") == 2


def test_an_id_that_several_records_have_is_named() -> None:
    made, notes = proposed({"user": "ann", "orderNo": "A-1"}, {"user": "ann", "orderNo": "A-1"})
    assert "id" not in made
    assert "value.orderNo isn't the id" in notes
    made, notes = proposed({"user": "ann", "orderNo": "A-1"}, {"user": "ann", "orderNo": "A-2"})
    assert (made["id"], notes) == ("value.orderNo", "")


@pytest.mark.parametrize(
    ("records", "to"),
    [
        ([{"userId": name} for name in ("ann", "bo", "cy")], "value.userId"),
        ([{"buyer": {"Id": name}} for name in ("ann", "bo", "cy")], "value.buyer.Id"),
    ],
    ids=["by its name", "within another"],
)
def test_who_an_event_is_for_is_not_its_id(records: Sequence[object], to: str) -> None:
    """Of each person the second event would be a repeat of the first."""
    made, notes = proposed(*records)
    assert made["to"] == to
    assert "id" not in made
    assert "isn't the id" not in notes


def test_events_of_one_thing_have_an_id_each() -> None:
    orders = [{"user": "ann", "orderNo": "A-1", "status": status} for status in ("paid", "sent")]
    assert proposed(*orders)[0]["id"] == "join('-', [value.orderNo, value.status])"
    # Also where those that are seen don't show it.
    assert proposed(orders[0])[0]["id"] == "join('-', [value.orderNo, value.status])"
    made, notes = proposed(*[{"user": "ann", "id": 7, "status": status} for status in ("paid", "sent")])
    assert (made["id"], notes) == ("join('-', [to_string(value.id), value.status])", "")
    made, notes = proposed(*orders, orders[1])
    assert "id" not in made
    assert "[value.orderNo, value.status]) isn't the id" in notes


def test_the_id_of_an_event_is_taken_as_it_is() -> None:
    events = [{"user": "ann", "id": f"e-{number}", "type": "order.paid"} for number in (1, 2)]
    assert proposed(*events)[0]["id"] == "value.id"
    made, _ = proposed(*events, {"user": "ann", "id": "e-1", "type": "order.sent"})
    assert made["id"] == "join('-', [value.id, value.type])"


def test_of_cloudevents_those_that_name_nobody_are_skipped() -> None:
    event = {"specversion": "1.0", "id": "1", "source": "/shop", "type": "order"}
    made, notes = proposed(
        *[event | {"data": {"userId": name}} for name in ("ann", "bo")], event | {"data": {}}
    )
    assert made == {"to": "value.data.userId", "when": "value.data.userId"}
    assert "in 2 of these 3" in notes
