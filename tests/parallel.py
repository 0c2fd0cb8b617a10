"""How tests are spread over the processes of a parallel run. A pytest plugin.

pytest-xdist hands each test to the next free worker, except for those that must share one. Its own mark for
that, `xdist_group`, has no effect with pytest 9.2 (it changes a test's id, which can't be changed any more):
the groups are listed here by file.
"""

import pytest
from xdist.scheduler.loadscope import LoadScopeScheduling

TOGETHER = {
    # Kafka is the only shared part whose start is expensive: a second one costs more than it saves.
    "kafka": ("tests/intake/", "tests/questions/test_kafka.py", "tests/path/test_end_to_end.py"),
    # Each starts a whole deployment, and two at once are too much for two cores; some depend on their order.
    "deployment": (
        "tests/deployed/test_stack.py",
        "tests/deployed/test_make_stack.py",
        "tests/faults/test_fast_faults.py",
    ),
    # One wheel and one environment for all; installations load the machine.
    "package": ("tests/package/test_package.py", "tests/package/test_first_minute.py"),
}


class Scheduling(LoadScopeScheduling):  # type: ignore[misc]
    """Groups go first, the largest at the head; then each test by itself."""

    def _split_scope(self, nodeid: str) -> str:
        if nodeid.startswith("tests/questions/") and "kafka" in nodeid.partition("[")[2]:
            # One answerer of several, with the same Kafka.
            return "kafka"
        return next((name for name, files in TOGETHER.items() if nodeid.startswith(files)), nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> LoadScopeScheduling:
    return Scheduling(config, log)
