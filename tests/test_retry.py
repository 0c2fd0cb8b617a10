"""What the log says of a part that is away."""

import logging

import pytest

from pushsse.retry import MOST_REASONS, Backoff, Outage

logger = logging.getLogger("pushsse.test")


def outage() -> Outage:
    return Outage("reading", logger, Backoff(0.0, 0.0))


def test_an_outage_is_one_line_for_each_reason_and_one_when_it_is_over(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tried = outage()
    for reason in ("connection lost", "connection lost", "read-only", "connection lost"):
        tried.failed(OSError(reason))
    tried.over()
    tried.over()
    assert [record.getMessage().partition(", after")[0] for record in caplog.records] == [
        "reading: connection lost; trying again until it works",
        "reading: read-only; trying again until it works",
        "reading: works again",
    ]


def test_reasons_that_never_repeat_are_a_few_lines(caplog: pytest.LogCaptureFixture) -> None:
    tried = outage()
    for number in range(100):
        tried.failed(OSError(f"no answer, try {number}"))
    assert len(caplog.records) == MOST_REASONS


def test_the_next_outage_says_its_reasons_again(caplog: pytest.LogCaptureFixture) -> None:
    tried = outage()
    for _ in range(2):
        tried.failed(TimeoutError())
        tried.over()
    assert [record.getMessage().partition(";")[0] for record in caplog.records][::2] == [
        "reading: TimeoutError"
    ] * 2


def test_an_outage_whose_reason_is_logged_already_is_silent_until_it_is_over(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tried = outage()
    tried.begin(is_logged=True)
    tried.failed(OSError("locked"))
    assert not caplog.records
    tried.over()
    assert len(caplog.records) == 1
