"""Quiet hours by the clocks of several zones, with hours that are left out and hours that come twice."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pushsse.errors import InvalidInput
from pushsse.preferences.quiet import (
    DAYS,
    QuietWindow,
    Schedule,
    checked,
    decoded,
    encoded,
    quiet_until,
)

NIGHT = QuietWindow(start="22:00", end="07:00")
ZONES = (
    "UTC",
    "America/New_York",
    "America/Sao_Paulo",  # has left out midnight
    "Asia/Shanghai",
    "Australia/Lord_Howe",  # half an hour
    "Europe/Berlin",
    "Europe/Dublin",  # winter is the exception
    "Pacific/Apia",  # has left out a day
    "Africa/Casablanca",
)


def schedule(*windows: QuietWindow, zone: str = "UTC", paused: datetime | None = None) -> Schedule:
    return Schedule(quiet=windows, zone=zone, paused_until=paused)


def at(text: str) -> datetime:
    return datetime.fromisoformat(text)


@pytest.mark.parametrize(
    ("zone", "window", "instant", "until"),
    [
        ("Asia/Shanghai", NIGHT, "2026-11-23T21:59:59+08:00", None),
        ("Asia/Shanghai", NIGHT, "2026-11-23T22:00:00+08:00", "2026-11-24T07:00:00+08:00"),
        ("Asia/Shanghai", NIGHT, "2026-11-24T06:59:59+08:00", "2026-11-24T07:00:00+08:00"),
        ("Asia/Shanghai", NIGHT, "2026-11-24T07:00:00+08:00", None),
        # By the person's clock, wherever the question is asked.
        ("Asia/Shanghai", NIGHT, "2026-11-23T14:30:00+00:00", "2026-11-23T23:00:00+00:00"),
        # Spring: the clock leaves out 02:00 to 03:00, and the night is an hour shorter.
        ("America/New_York", NIGHT, "2026-03-07T23:00:00-05:00", "2026-03-08T11:00:00+00:00"),
        ("America/New_York", QuietWindow(start="02:30", end="05:00"), "2026-03-08T06:59:59+00:00", None),
        (
            "America/New_York",
            QuietWindow(start="02:30", end="05:00"),
            "2026-03-08T07:00:00+00:00",
            "2026-03-08T09:00:00+00:00",
        ),
        (
            "America/New_York",
            QuietWindow(start="22:00", end="02:30"),
            "2026-03-08T06:30:00+00:00",
            "2026-03-08T07:00:00+00:00",
        ),
        # A window within what is left out: there is no such time that night.
        ("America/New_York", QuietWindow(start="02:10", end="02:50"), "2026-03-08T07:00:00+00:00", None),
        # Autumn: 01:00 to 02:00 comes twice, and what ends in between ends the second time.
        (
            "America/New_York",
            QuietWindow(start="22:00", end="01:30"),
            "2026-11-01T01:45:00-04:00",
            "2026-11-01T01:30:00-05:00",
        ),
        (
            "America/New_York",
            QuietWindow(start="01:30", end="05:00"),
            "2026-11-01T01:10:00-05:00",
            "2026-11-01T05:00:00-05:00",
        ),
        # Half an hour.
        (
            "Australia/Lord_Howe",
            QuietWindow(start="01:15", end="02:10"),
            "2026-10-03T15:00:00+00:00",
            "2026-10-03T15:30:00+00:00",
        ),
        # Midnight doesn't exist.
        (
            "America/Sao_Paulo",
            QuietWindow(start="22:00", end="24:00"),
            "2017-10-14T23:30:00-03:00",
            "2017-10-15T01:00:00-02:00",
        ),
        ("America/Sao_Paulo", QuietWindow(start="00:00", end="01:00"), "2017-10-15T03:00:00+00:00", None),
        # Nor does a Friday.
        (
            "Pacific/Apia",
            QuietWindow(start="22:00", end="07:00", days=("fri",)),
            "2011-12-31T06:00:00+14:00",
            "2011-12-31T07:00:00+14:00",
        ),
        (
            "Pacific/Apia",
            QuietWindow(start="09:00", end="17:00", days=("fri",)),
            "2011-12-30T10:00:00Z",
            None,
        ),
    ],
)
def test_the_clock_of_the_zone_decides(
    zone: str, window: QuietWindow, instant: str, until: str | None
) -> None:
    found = quiet_until(schedule(window, zone=zone), at(instant))
    assert found == (None if until is None else at(until))
    assert found is None or found.tzinfo is UTC


def test_a_window_belongs_to_the_day_on_which_it_begins() -> None:
    friday = schedule(QuietWindow(start="22:00", end="07:00", days=("fri",)))
    assert quiet_until(friday, at("2026-11-27T23:00:00Z")) == at("2026-11-28T07:00:00Z")
    assert quiet_until(friday, at("2026-11-28T06:00:00Z")) == at("2026-11-28T07:00:00Z")
    assert quiet_until(friday, at("2026-11-28T23:00:00Z")) is None
    assert quiet_until(friday, at("2026-11-27T06:00:00Z")) is None


def test_windows_that_touch_are_one() -> None:
    weekend = schedule(
        QuietWindow(start="20:00", end="24:00", days=("fri",)),
        QuietWindow(start="00:00", end="24:00", days=("sat", "sun")),
        QuietWindow(start="00:00", end="08:00", days=("mon",)),
    )
    assert quiet_until(weekend, at("2026-11-27T20:30:00Z")) == at("2026-11-30T08:00:00Z")


def test_a_pause_ends_with_the_window_that_it_ends_in() -> None:
    paused = schedule(NIGHT, paused=at("2026-11-23T23:00:00Z"))
    assert quiet_until(paused, at("2026-11-23T12:00:00Z")) == at("2026-11-24T07:00:00Z")
    assert quiet_until(paused, at("2026-11-24T08:00:00Z")) is None
    alone = Schedule(paused_until=at("2026-11-23T23:00:00+08:00"))
    assert quiet_until(alone, at("2026-11-23T12:00:00Z")) == at("2026-11-23T15:00:00Z")
    assert quiet_until(alone, at("2026-11-23T15:00:00Z")) is None


def test_what_never_ends_is_answered_for_a_week() -> None:
    always = schedule(QuietWindow(start="00:00", end="24:00"), zone="Europe/Berlin")
    now = at("2026-11-23T12:00:00Z")
    until = quiet_until(always, now)
    assert until is not None
    assert timedelta(days=7) < until - now < timedelta(days=10)


@pytest.mark.parametrize(
    ("bad", "places"),
    [
        (Schedule(quiet=(NIGHT,)), ["$.zone"]),
        (schedule(NIGHT, zone="Asia/Shangai"), ["$.zone"]),
        (schedule(NIGHT, zone="../../etc/passwd"), ["$.zone"]),
        (schedule(NIGHT, zone="/etc/localtime"), ["$.zone"]),
        (schedule(NIGHT, zone="America"), ["$.zone"]),
        (schedule(NIGHT, zone="zone.tab"), ["$.zone"]),
        (schedule(NIGHT, zone="tzdata"), ["$.zone"]),
        (schedule(NIGHT, zone="right/UTC"), ["$.zone"]),
        (schedule(NIGHT, zone="localtime"), ["$.zone"]),
        (schedule(NIGHT, zone="posixrules"), ["$.zone"]),
        (schedule(NIGHT, zone="Factory"), ["$.zone"]),
        (schedule(NIGHT, zone="Asia/Shanghai\n"), ["$.zone"]),
        (schedule(NIGHT, zone="x" * 5000), ["$.zone"]),
        (schedule(*[NIGHT] * 21), ["$.quiet"]),
        (
            schedule(NIGHT, QuietWindow(start="07:00", end="07:00"), zone="no/such"),
            ["$.quiet[1].to", "$.zone"],
        ),
        (Schedule(paused_until=at("9999-12-31T23:00:00-08:00")), ["$.paused_until"]),
    ],
)
def test_what_cannot_be_used_is_named(bad: Schedule, places: list[str]) -> None:
    with pytest.raises(InvalidInput) as caught:
        checked(bad)
    assert [violation.at for violation in caught.value.violations] == places


def test_a_schedule_is_text_and_comes_back() -> None:
    one = schedule(NIGHT, zone="Asia/Shanghai", paused=at("2026-11-23T23:00:00+00:00"))
    assert checked(one) == one
    assert decoded(encoded(one)) == one
    assert encoded(Schedule()) == ""
    assert not decoded("")


clocks = st.builds("{:02}:{:02}".format, st.integers(0, 23), st.integers(0, 59))
windows = st.builds(
    QuietWindow,
    start=clocks,
    end=clocks | st.just("24:00"),
    days=st.lists(st.sampled_from(DAYS), min_size=1, max_size=7, unique=True).map(tuple),
).filter(lambda window: window.start != window.end)
# Years in which each of these zones has changed its clock, or has left out a day.
instants = st.datetimes(datetime(2010, 1, 1), datetime(2027, 1, 1)).map(lambda one: one.replace(tzinfo=UTC))


def by_the_clock(one: Schedule, instant: datetime) -> bool:
    """Whether a clock on the wall shows a time of a window: a model that knows no ends."""
    local = instant.astimezone(ZoneInfo(one.zone))
    shown, today, yesterday = (
        f"{local:%H:%M}",
        DAYS[local.weekday()],
        DAYS[(local - timedelta(days=1)).weekday()],
    )
    for window in one.quiet:
        overnight = window.end <= window.start
        if today in window.days and window.start <= shown and (overnight or shown < window.end):
            return True
        if overnight and yesterday in window.days and shown < window.end:
            return True
    return False


def comes_twice(one: Schedule, instant: datetime) -> bool:
    local = instant.astimezone(ZoneInfo(one.zone))
    return local.replace(fold=0).utcoffset() != local.replace(fold=1).utcoffset()


@settings(max_examples=400, deadline=None)
@given(st.lists(windows, min_size=1, max_size=4), st.sampled_from(ZONES), instants, st.data())
def test_it_is_quiet_when_the_clock_shows_it_and_until_the_moment_that_is_said(
    some: list[QuietWindow], zone: str, instant: datetime, data: st.DataObject
) -> None:
    one = schedule(*some, zone=zone)
    if data.draw(st.booleans()):
        # Close to a change of the clock, where there is one that year.
        instant = close_to_a_change(zone, instant, data.draw(st.integers(-200, 200)))
    until = quiet_until(one, instant)
    if by_the_clock(one, instant):
        assert until is not None
    elif until is not None:
        # The hour that comes twice is quiet both times, if it begins or ends within it.
        assert comes_twice(one, instant) or zone == "Pacific/Apia"
    if until is None:
        return
    assert until > instant
    moment = instant + (until - instant) * data.draw(st.floats(0, 0.999))
    assert quiet_until(one, moment) == until or until - instant > timedelta(days=7)
    if until - instant < timedelta(days=7):
        assert quiet_until(one, until) is None


def close_to_a_change(zone: str, instant: datetime, minutes: int) -> datetime:
    offset = instant.astimezone(ZoneInfo(zone)).utcoffset()
    for days in range(366):
        later = instant + timedelta(days=days)
        if later.astimezone(ZoneInfo(zone)).utcoffset() != offset:
            low, high = later - timedelta(days=1), later
            while high - low > timedelta(minutes=1):
                middle = low + (high - low) / 2
                if middle.astimezone(ZoneInfo(zone)).utcoffset() == offset:
                    low = middle
                else:
                    high = middle
            return high + timedelta(minutes=minutes)
    return instant
