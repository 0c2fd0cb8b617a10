from collections.abc import Sequence

import pytest


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """Leaves one of four ways to serve to `make long`: TLS and h11 are each tested without the other."""
    for item in items:
        if item.path.name == "test_contract.py" and "tls-h11" in item.name:
            item.add_marker(pytest.mark.long)
