"""The time of an event at its edges: one rule, whichever way it comes in."""

from datetime import UTC, datetime

import pytest

from pushsse import event
from pushsse.errors import InvalidInput
from pushsse.event import Publication

DAY_MS = 86_400_000


def made(ts: object) -> Publication:
    given = event.from_json({"type": "a", "message": 1, "to": "all", "ts": ts})
    return event.publication(given, event_id="x", at=datetime.now(UTC), max_age_s=86_400)


@pytest.mark.parametrize(
    ("ts", "delivered", "ms"),
    [
        ("1970-01-01T00:00:00Z", "1970-01-01T00:00:00Z", 0),
        ("1970-01-01T14:00:00+14:00", "1970-01-01T00:00:00Z", 0),
        ("1969-12-31T12:00:00-12:00", "1970-01-01T00:00:00Z", 0),
        ("2026-01-01T00:00:00.123456789123Z", "2026-01-01T00:00:00.123457Z", 1_767_225_600_123),
        ("2026-01-01T13:59:00.5+14:00", "2025-12-31T23:59:00.5Z", 1_767_225_540_500),
        ("2026-01-01t00:00:00z", "2026-01-01T00:00:00Z", 1_767_225_600_000),
        ("9999-12-31T23:59:59.999999Z", "9999-12-31T23:59:59.999999Z", 253_402_300_799_999),
        # A leap second is the end of the second before it, in UTC.
        ("2016-12-31T23:59:60Z", "2016-12-31T23:59:59.999999Z", 1_483_228_799_999),
        ("2017-01-01T05:29:60.75+05:30", "2016-12-31T23:59:59.999999Z", 1_483_228_799_999),
    ],
)
def test_a_time_from_1970_to_9999_is_taken_and_expiry_counts_from_it(
    ts: str, delivered: str, ms: int
) -> None:
    publication = made(ts)
    read = datetime.fromisoformat(publication.body.split(b'"ts":"')[1].split(b'"')[0].decode())
    assert read == datetime.fromisoformat(delivered)
    assert publication.expires_ms == ms + DAY_MS
    # Zero is "never", and no event of anybody's may be that.
    assert publication.expires_ms > 0


@pytest.mark.parametrize(
    "ts",
    [
        "0001-01-01T00:00:00Z",
        "0001-01-01T00:00:00+05:00",
        "1969-12-31T23:59:59.999999Z",
        "1970-01-01T00:00:00+14:00",
        "9999-12-31T23:59:59-00:01",
    ],
)
def test_any_other_time_is_refused_by_name(ts: str) -> None:
    with pytest.raises(InvalidInput, match="must lie between 1970-01-01T00:00:00Z and 9999") as refused:
        made(ts)
    assert refused.value.violations[0].at == "$.ts"


@pytest.mark.parametrize(
    "ts",
    [
        "2026-01-01T00:00:00",
        "2026-02-30T00:00:00Z",
        "10000-01-01T00:00:00Z",
        "2016-12-31T22:59:60Z",
        "2016-12-31T23:59:61Z",
        "2016-12-31T23:59:60",
        "yesterday",
        "",
        1_700_000_000,
        True,
        None,
        ["2016-12-31T23:59:60Z"],
    ],
)
def test_what_is_no_time_is_refused_with_an_example(ts: object) -> None:
    with pytest.raises(InvalidInput, match="2026-11-23T08:00:00Z") as refused:
        made(ts)
    assert refused.value.violations[0].at == "$.ts"
