"""Quiet hours: when a person wants to be shown events and not to be alerted to them.

A value and a calculation, without any I/O: the store checks what a person sets with `checked`, and whoever
sends to phones asks `quiet_until`. Nothing on the path asks: events reach open streams at any hour.

Deliberate: a window begins at the first and ends at the last of two equal times of the clock (the hour that
comes twice when summer ends), so that it isn't interrupted. A time that the clock leaves out counts as the
moment in which it jumps.
"""

import re
from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime, time, timedelta
from typing import Annotated, Literal, get_args
from zoneinfo import ZoneInfo

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import replace

from pushsse.errors import InvalidInput, Violation

MOST_WINDOWS = 20
Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
DAYS: tuple[Day, ...] = get_args(Day)
_CLOCK = r"([01][0-9]|2[0-3]):[0-5][0-9]"
# As in the IANA database, whose files they are.
_ZONE = re.compile(r"[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+){0,2}")
# Of the same database with other seconds: browsers know none of these.
_OTHER_SECONDS = ("posix/", "right/")
# Files beside its zones: the machine's own, one for rules that are left out, one that stands for no place.
_NO_PLACES = frozenset(("localtime", "posixrules", "factory"))
_LAST_YEAR = 9000
# A schedule whose windows leave nothing out never ends: a week shows all of it.
_LOOK_AHEAD = timedelta(days=8)
_DAY = timedelta(days=1)


class QuietWindow(Struct, frozen=True, forbid_unknown_fields=True, rename={"start": "from", "end": "to"}):
    """From a time of the clock to another one, on some days; to the next day if `to` isn't after `from`."""

    start: Annotated[
        str,
        Meta(pattern=rf"^{_CLOCK}\Z", description="a time such as 22:00", examples=["22:00"]),
    ]
    end: Annotated[
        str,
        Meta(
            pattern=rf"^({_CLOCK}|24:00)\Z",
            description="a time such as 07:00, up to 24:00",
            examples=["07:00"],
        ),
    ]
    days: Annotated[tuple[Day, ...], Meta(min_length=1, max_length=7)] = DAYS


class Schedule(Struct, frozen=True):
    """A person's quiet hours, in the time of a zone, and until when everything is quiet."""

    quiet: tuple[QuietWindow, ...] = ()
    zone: str = ""
    paused_until: datetime | None = None

    def __bool__(self) -> bool:
        """Whether it says anything at all."""
        return bool(self.quiet or self.zone or self.paused_until is not None)


_decoder = msgspec.json.Decoder(Schedule)


def encoded(schedule: Schedule) -> str:
    """A schedule as JSON; empty for one that says nothing."""
    return msgspec.json.encode(schedule).decode() if schedule else ""


def decoded(text: str) -> Schedule:
    """The schedule of such a text."""
    return _decoder.decode(text) if text else Schedule()


def checked(schedule: Schedule) -> Schedule:
    """The schedule as it is kept. Raises InvalidInput that names every member that can't be used."""
    violations = []
    if len(schedule.quiet) > MOST_WINDOWS:
        violations.append(Violation("$.quiet", f"has {len(schedule.quiet)} windows, over {MOST_WINDOWS}"))
    for place, window in enumerate(schedule.quiet[:MOST_WINDOWS]):
        if window.start == window.end:
            detail = f"begins and ends at {window.end}: write 00:00 to 24:00 for a whole day"
            violations.append(Violation(f"$.quiet[{place}].to", detail))
    if schedule.zone:
        if not _is_zone(schedule.zone):
            detail = f"{schedule.zone[:80]!r} is no zone of the IANA database, such as Asia/Shanghai"
            violations.append(Violation("$.zone", detail))
    elif schedule.quiet:
        violations.append(
            Violation("$.zone", "is missing, such as Asia/Shanghai: the zone of the quiet hours")
        )
    until = schedule.paused_until
    if until is not None and not 1970 <= until.year < _LAST_YEAR:
        violations.append(Violation("$.paused_until", f"must lie between 1970 and {_LAST_YEAR}"))
    if violations:
        raise InvalidInput(*violations)
    return schedule if until is None else replace(schedule, paused_until=until.astimezone(UTC))


def quiet_until(schedule: Schedule, at: datetime) -> datetime | None:
    """Until when it is quiet, if it is at `at`; None if it isn't. Both have a zone; the answer is in UTC.

    Windows that touch are one. For a schedule that never ends, the answer is at least a week ahead.
    """
    instant = at.astimezone(UTC)
    if schedule.paused_until is not None and instant < schedule.paused_until:
        instant = schedule.paused_until.astimezone(UTC)
    if schedule.quiet:
        zone = ZoneInfo(schedule.zone)
        limit = instant + _LOOK_AHEAD
        while instant < limit and (end := _end(schedule.quiet, zone, instant)) is not None:
            instant = end
    return instant if instant > at else None


def _end(windows: Sequence[QuietWindow], zone: ZoneInfo, instant: datetime) -> datetime | None:
    """The latest end of the windows that an instant lies in."""
    local = instant.astimezone(zone).date()
    # A window is at most a day long, and a zone has once left out a whole one (Pacific/Apia, 2011).
    ends = [
        end
        for back in range(-1, 3)
        for start, end in _spans(windows, zone, local - back * _DAY)
        if start <= instant < end
    ]
    return max(ends, default=None)


def _spans(windows: Sequence[QuietWindow], zone: ZoneInfo, day: date) -> Iterator[tuple[datetime, datetime]]:
    """The windows that begin on a day."""
    name = DAYS[day.weekday()]
    for window in windows:
        if name in window.days:
            ends_on = day + _DAY if window.end <= window.start or window.end == "24:00" else day
            until = "00:00" if window.end == "24:00" else window.end
            yield _instant(zone, day, window.start, last=False), _instant(zone, ends_on, until, last=True)


def _instant(zone: ZoneInfo, day: date, clock: str, *, last: bool) -> datetime:
    """When a clock shows a time on a day: the first or last time that it does, or would have to (PEP 495)."""
    naive = datetime.combine(day, time.fromisoformat(clock))
    before = naive.replace(tzinfo=zone, fold=0).astimezone(UTC)
    after = naive.replace(tzinfo=zone, fold=1).astimezone(UTC)
    if before > after:
        return _jump(zone, after, before)
    return after if last else before


def _jump(zone: ZoneInfo, low: datetime, high: datetime) -> datetime:
    """When the offset of a zone changes, between two instants; to the second."""
    offset = low.astimezone(zone).utcoffset()
    while high - low > timedelta(seconds=1):
        middle = low + (high - low) // 2
        middle = middle.replace(microsecond=0)
        if middle.astimezone(zone).utcoffset() == offset:
            low = middle
        else:
            high = middle
    return high


def _is_zone(name: str) -> bool:
    if not _ZONE.fullmatch(name) or name.startswith(_OTHER_SECONDS) or name.lower() in _NO_PLACES:
        return False
    try:
        ZoneInfo(name)
    except (LookupError, ValueError, OSError):
        # No such file; one that isn't a zone's; a folder.
        return False
    return True
