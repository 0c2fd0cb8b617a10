"""Session fixtures of the real parts: started when the first test asks, stopped at the end. A pytest plugin.

A part that can't be had skips the tests that need it, by name; in CI (CI=true) it fails them.
"""

import os
import signal
from collections.abc import Iterator
from typing import NoReturn, TypeVar

import pytest

from deploy.parts import Kafka, Part, PartMissing, Postgres, Redis

P = TypeVar("P", bound=Part)


def pytest_configure() -> None:
    """Ended by SIGTERM (a time limit, a cancelled run) the tests stop their parts as on Ctrl-C."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


@pytest.fixture(scope="session")
def redis_part(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    """A Redis that all tests share; whoever breaks it needs one of his own."""
    yield from running(Redis(tmp_path_factory.mktemp("redis")))


@pytest.fixture(scope="session")
def postgres_part(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    """A PostgreSQL that all tests share; `create_database` gives each its own."""
    yield from running(Postgres(tmp_path_factory.mktemp("postgres")))


@pytest.fixture(scope="session")
def kafka_part(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kafka]:
    """A Kafka that all tests share; topics and groups are the test's own."""
    yield from running(Kafka(tmp_path_factory.mktemp("kafka")))


def missing(why: object) -> NoReturn:
    """Skips the test, or fails it in CI."""
    if os.environ.get("CI") == "true":
        pytest.fail(str(why))
    pytest.skip(str(why))


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
