"""How tests are spread over the processes of a parallel run. A pytest plugin.

The tests of a file stay in one process: what they share is made once, and a full collection of the process's
objects (`conftest.small_heap`) happens once a file.

Deliberate: groups of files are listed here. The mark that pytest-xdist has for them, `xdist_group`, has no
effect with pytest 9.2: it changes a test's id, which can't be changed any more.
"""

import pytest
from xdist.scheduler.loadscope import LoadScopeScheduling
from xdist.workermanage import WorkerController

TOGETHER = {
    # Kafka is the only shared part whose start is expensive: two processes have one. With one for all of
    # these, everything else would be done long before them.
    "kafka's consumers": ("tests/intake/",),
    "kafka's users": (
        "tests/questions/test_kafka.py",
        "tests/path/test_end_to_end.py",
        "tests/path/test_asyncapi.py",
        "tests/path/test_outcomes.py",
        "tests/path/test_death.py",
        "tests/path/test_shop.py",
    ),
    # Each starts a whole deployment, and two at once are too much for two cores; some depend on their order.
    "deployment": (
        "tests/deployed/test_stack.py",
        "tests/deployed/test_make_stack.py",
        "tests/deployed/test_asking.py",
        "tests/deployed/test_shop.py",
        "tests/faults/test_fast_faults.py",
    ),
    # They share a browser.
    "page": ("tests/deployed/page/",),
    # Each file has a browser of its own.
    "client's line": ("tests/client/test_line.py",),
    "client's tabs": ("tests/client/test_tabs.py",),
    "client's questions": ("tests/client/test_asking.py",),
    "client elsewhere": ("tests/client/test_places.py",),
    # One wheel and one environment for all; installations load the machine.
    "package": ("tests/package/test_package.py", "tests/package/test_first_minute.py"),
}
# What takes longest begins first, or it would be what the others have to wait for at the end.
FIRST = (
    "deployment",
    "kafka's consumers",
    "kafka's users",
    "package",
    "tests/stream/test_contract.py",
    "tests/hardening/test_half_open.py",
    "tests/clients/",
    "tests/questions/",
    "tests/cli/",
    "tests/hardening/",
    "tests/workers/",
    "tests/deployed/",
    "tests/preferences/",
    "tests/path/",
    "client",
    "tests/client/",
)


class Scheduling(LoadScopeScheduling):  # type: ignore[misc]
    """Groups and files in the order of FIRST; of equal ones those with more tests first."""

    def _split_scope(self, nodeid: str) -> str:
        if nodeid.startswith("tests/questions/") and "kafka" in nodeid.partition("[")[2]:
            # One answerer of several, with the same Kafka.
            return "kafka's users"
        file = nodeid.partition("::")[0]
        return next((name for name, files in TOGETHER.items() if nodeid.startswith(files)), file)

    def _assign_work_unit(self, node: WorkerController) -> None:
        """Gives a process the next unit of the queue, which xdist has sorted by the number of tests."""
        following = min(self.workqueue, key=_place)
        self.workqueue.move_to_end(following, last=False)
        super()._assign_work_unit(node)


def _place(unit: str) -> int:
    return next((place for place, begin in enumerate(FIRST) if unit.startswith(begin)), len(FIRST))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> LoadScopeScheduling:
    return Scheduling(config, log)
