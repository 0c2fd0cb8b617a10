"""`make docs`: it renders every page, and fails where something leads nowhere."""

import json
import subprocess
from pathlib import Path

import pytest

from tests.package.test_docs import PAGES, ROOT

# Sphinx is installed for it.
pytestmark = [pytest.mark.real, pytest.mark.long]


def render(source: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Makes the site of these sources in this folder, with the environment of this repository."""
    given = [f"DOCS_OUT={folder}", f"DOCS_VENV={ROOT / '.venv-docs'}"]
    command = ["make", "-C", str(source), "docs", *given]
    return subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of this repository, to be changed."""
    listed = ["git", "-C", str(ROOT), "ls-files", "-z"]
    names = subprocess.run(listed, capture_output=True, text=True, check=True).stdout.split("\0")
    folder = tmp_path_factory.mktemp("repository")
    for name in filter(None, names):
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes((ROOT / name).read_bytes())
    return folder


def test_the_site_has_every_page_its_navigation_and_a_search(tmp_path: Path) -> None:
    done = render(ROOT, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in PAGES:
        page = (tmp_path / name).with_suffix(".html").read_text()
        assert "toctree-l1" in page, name
        assert 'role="search"' in page, name
    first = (tmp_path / "index.html").read_text()
    assert first.index("docs/getting-started.html") < first.index("docs/operations.html")
    found = (tmp_path / "searchindex.js").read_text()
    searched = json.loads(found[found.index("{") : found.rindex("}") + 1])
    assert "docs/operations" in searched["docnames"]
    assert "heartbeat" in searched["terms"]


@pytest.mark.parametrize("broken", ["[a](nowhere.md)", "[a](clients.md#nowhere)", "![a](images/nowhere.png)"])
def test_what_leads_nowhere_fails(copy: Path, tmp_path: Path, broken: str) -> None:
    page = copy / "docs" / "events.md"
    whole = page.read_text()
    page.write_text(f"{whole}\n{broken}\n")
    try:
        done = render(copy, tmp_path)
    finally:
        page.write_text(whole)
    assert done.returncode != 0
    assert "nowhere" in done.stderr
