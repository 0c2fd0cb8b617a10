"""What the log says of a part that is away."""

import logging
import time

import pytest

from pushsse import retry
from pushsse.errors import DatabaseUnavailable
from pushsse.retry import Backoff, Outage, Seldom, hourly

logger = logging.getLogger("pushsse.test")


def outage() -> Outage:
    return Outage("reading", logger, Backoff(0.0, 0.0))


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage().partition(", after")[0].partition(";")[0] for record in caplog.records]


def test_an_outage_is_one_line_when_it_begins_and_one_when_it_is_over(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tried = outage()
    for number in range(100):
        tried.failed(OSError(f"no answer, try {number}"))
    tried.over()
    tried.over()
    tried.failed(TimeoutError())
    assert said(caplog) == ["reading: no answer, try 0", "reading: works again", "reading: TimeoutError"]


def test_a_reason_that_differs_is_said_after_a_while(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "FIRST_QUIET_S", 0.0)
    tried = outage()
    for reason in ("connection lost", "connection lost", "starting up", "read-only", "read-only"):
        tried.failed(OSError(reason))
    assert said(caplog) == ["reading: connection lost", "reading: starting up", "reading: read-only"]


def test_each_line_doubles_the_time_until_the_next(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    tried = outage()
    at: list[float] = []
    for number in range(1000):
        tried.failed(OSError(f"try {number}"))
        if len(caplog.records) > len(at):
            at.append(now - 1000)
        now += 1
    assert at == [0, 5, 15, 35, 75, 155, 315, 635]


def test_an_outage_whose_reason_is_logged_already_begins_silently(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tried = outage()
    tried.begin()
    tried.failed(OSError("locked"))
    assert not caplog.records
    tried.over()
    assert said(caplog) == ["reading: works again"]


def test_what_fails_for_thousands_is_a_line_at_once_and_then_one_every_ten_seconds(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    seldom = Seldom("a client is refused", logger)
    for _ in range(161):
        seldom.failed(OSError("no answer"))
        now += 0.125
    assert [record.getMessage() for record in caplog.records] == [
        "a client is refused: no answer",
        "a client is refused: no answer; 79 more since the last such line",
        "a client is refused: no answer; 79 more since the last such line",
    ]


@pytest.mark.anyio
async def test_hourly_work_that_fails_is_tried_again_and_then_each_hour(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_FIRST_S", "_EVERY_S"):
        monkeypatch.setattr(retry, name, 0.001)
    monkeypatch.setattr(Backoff, "next_s", lambda _: 0.0)
    outcomes = iter((None, DatabaseUnavailable("locked"), DatabaseUnavailable("locked"), None, None))

    async def work() -> None:
        # At the end of it another error, which whoever supervises the work hears of.
        if (error := next(outcomes, ValueError("over"))) is not None:
            raise error

    with pytest.raises(ValueError, match="over"):
        await hourly(work, "reading", logger)
    assert said(caplog) == ["reading: locked", "reading: works again"]
