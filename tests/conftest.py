"""Fixtures for all tests, and what they tell at the end."""

import pytest

pytest_plugins = ["tests.parts", "tests.parallel"]
# What a test records as a property of this name is printed at the end, whichever process it ran in.
TOLD = "told"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints what tests have recorded for people to read."""
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            if name == TOLD:
                terminalreporter.write_line(str(value))
