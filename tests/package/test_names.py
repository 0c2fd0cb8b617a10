"""One class name is one thing in the whole package."""

import ast
from collections import defaultdict
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "pushsse"


def test_no_two_modules_define_classes_of_the_same_name() -> None:
    modules: dict[str, list[str]] = defaultdict(list)
    for file in sorted(PACKAGE.rglob("*.py")):
        # Each migration is a class of the same name: Tortoise wants it so.
        if file.parent.name == "migrations":
            continue
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.ClassDef):
                modules[node.name].append(file.relative_to(PACKAGE).as_posix())
    assert len(modules) > 300
    assert {name: where for name, where in modules.items() if len(where) > 1} == {}
