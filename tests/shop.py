"""The shop of examples/: its topics, and its producer, which is no module of a package."""

import importlib.util
from pathlib import Path
from types import ModuleType

SHOP = Path(__file__).parents[1] / "examples/shop"
TOPICS = ("shop.orders", "shop.alarms.hamburg", "shop.alarms.lyon", "shop.chat")


def producer() -> ModuleType:
    """The producer, as it is."""
    spec = importlib.util.spec_from_file_location("shop_produce", SHOP / "produce.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
