"""The real parts of the tests: session fixtures and the marks that go with them. A pytest plugin.

A part starts when the first test asks for it and stops at the end; each pytest-xdist worker has its own.
A part that isn't available skips the tests that need it; in CI (CI=true) it fails them.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from typing import NoReturn, TypeVar

import pytest

from deploy.parts import Kafka, Part, PartMissing, Postgres, Redis
from deploy.parts.part import descendants, kill_family
from tests import starting
from tests.guard import guarded

P = TypeVar("P", bound=Part)
# Of linux/prctl.h.
_PR_SET_CHILD_SUBREAPER = 36
_GUARD = pytest.StashKey[ExitStack]()
# A test that uses one of these fixtures, directly or through others, is marked `real`.
_REAL = {"redis_part", "postgres_part", "kafka_part", "redis_server", "own_server"}


def pytest_configure(config: pytest.Config) -> None:
    """Ended by SIGTERM (a time limit, a cancelled run) the tests stop their parts as on Ctrl-C."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    config.stash[_GUARD] = guard = ExitStack()
    guard.enter_context(guarded())
    if not _is_worker(config) and sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Ends what a worker has left: pytest-xdist gives an interrupted one ten seconds, then kills it.

    Its parts are ours by then: orphans go to the nearest ancestor that is a subreaper.
    """
    # Whoever ends the tests may do so twice: `timeout` passes on a signal that its group has already.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    starting.stop()
    config.stash[_GUARD].close()
    if not _is_worker(config):
        for pid in descendants(os.getpid()):
            kill_family(pid)


def _is_worker(config: pytest.Config) -> bool:
    return hasattr(config, "workerinput")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests that need a part."""
    for item in items:
        if _REAL.intersection(getattr(item, "fixturenames", ())):
            item.add_marker("real")


@pytest.fixture(scope="session")
def redis_part(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    """A Redis that all tests share; whoever breaks it needs one of his own."""
    yield from shared(Redis(tmp_path_factory.mktemp("redis")))


@pytest.fixture(scope="session")
def postgres_part(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    """A PostgreSQL that all tests share; `create_database` gives each its own."""
    yield from shared(Postgres(tmp_path_factory.mktemp("postgres")))


@pytest.fixture(scope="session")
def kafka_part(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kafka]:
    """A Kafka that all tests share; topics and groups are the test's own."""
    yield from shared(Kafka(tmp_path_factory.mktemp("kafka")))


def missing(why: object) -> NoReturn:
    """Skips the test, or fails it in CI."""
    if os.environ.get("CI") == "true":
        pytest.fail(str(why))
    pytest.skip(str(why))


def shared(part: P) -> Iterator[P]:
    """The part, for many tests. At the end it is killed: it would first write down what they have left."""
    for each in running(part):
        yield each
        each.kill()


def running(part: P) -> Iterator[P]:
    """The part, while the fixture lasts."""
    try:
        part.start()
    except PartMissing as error:
        missing(error)
    try:
        yield part
    finally:
        part.remove()
