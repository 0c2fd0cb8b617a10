"""Fixtures for all tests."""

import pytest

pytest_plugins = ["tests.parts"]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
