"""The locks: whole, exact, and the same versions in both."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RUNTIME, TOOLS = "requirements.lock", "requirements-dev.lock"
# Of environments of their own, by their group in pyproject.toml.
BESIDE = {"audit": "requirements-audit.lock", "docs": "requirements-docs.lock"}


def _locked(name: str) -> dict[str, str]:
    """Name and version of each package in a lock."""
    text = (ROOT / name).read_text()
    return dict(re.findall(r"^([a-z0-9-]+)==(\S+)", text, flags=re.MULTILINE))


def _names(requirements: list[str]) -> set[str]:
    return {re.split(r"[\[<>=; ]", requirement)[0].lower() for requirement in requirements}


@pytest.mark.parametrize("name", [RUNTIME, TOOLS, *BESIDE.values()])
def test_every_line_of_a_lock_pins_one_version_with_its_hashes(name: str) -> None:
    text = (ROOT / name).read_text().replace("\\\n", " ")
    for line in text.splitlines():
        assert re.fullmatch(r"[a-z0-9-]+==[^\s;\[]+( ; [^#]+?)?( +--hash=sha256:[0-9a-f]{64})+", line), line
    assert "://" not in text


def test_the_tools_lock_holds_the_runtime_lock() -> None:
    assert _locked(RUNTIME).items() < _locked(TOOLS).items()


def test_the_runtime_lock_has_what_the_package_asks_for_and_no_tools() -> None:
    asked = tomllib.loads((ROOT / "pyproject.toml").read_text())
    locked = _locked(RUNTIME).keys()
    assert _names(asked["project"]["dependencies"]) <= locked
    # The package itself is built without an environment of its own, which would resolve.
    assert _names(asked["build-system"]["requires"]) <= locked
    assert not (_names(asked["dependency-groups"]["dev"]) - {"httpx"}) & locked


@pytest.mark.parametrize("group", BESIDE)
def test_a_lock_beside_has_what_its_group_asks_for(group: str) -> None:
    asked = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert _names(asked["dependency-groups"][group]) <= _locked(BESIDE[group]).keys()
