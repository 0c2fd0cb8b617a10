"""Links, files and settings that README.md, CHANGELOG.md, docs/ and examples/ name exist."""

import importlib
import re
from functools import lru_cache
from pathlib import Path

import pytest

from deploy import reference
from pushsse.settings import FIELDS, variable

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    page.relative_to(ROOT).as_posix()
    for page in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/**/*.md"))
    # What an example has installed has pages of its own.
    if not {"node_modules", "venv"} & set(page.relative_to(ROOT).parts)
)
_FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ +(.*?) *$", re.MULTILINE)
# A path of this repository as docs write it: `hub/delivery.py`, `tests/questions/asked.toml`.
_FILE = re.compile(r"`((?:[\w.-]+/)+[\w.-]*\.(?:py|lua|md|toml|c|conf|sql|js|yaml))`")

# A module as docstrings and comments write it: `hub/delivery`, `kafka.consumer`.
_MODULE = re.compile(r"`([a-z_]+)[/.]([a-z_]+)(?:\.\w+)?`")

# Variables that aren't settings of the service: those of its clients, and of the tests.
_OTHERS = {"PUSHSSE_URL", "PUSHSSE_TOKEN", "PUSHSSE_TOKEN_FILE", "PUSHSSE_CA", "PUSHSSE_PARTS_DIR"}


def text(page: Path) -> str:
    """A page without its blocks of code."""
    return _FENCED.sub("", page.read_text())


@lru_cache
def anchors(page: Path) -> frozenset[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    found: set[str] = set()
    for heading in _HEADING.findall(text(page)):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        count = 0
        while (name := f"{slug}-{count}" if count else slug) in found:
            count += 1
        found.add(name)
    return frozenset(found)


@pytest.mark.parametrize("name", PAGES)
def test_relative_links_and_anchors_lead_somewhere(name: str) -> None:
    page = ROOT / name
    dead = []
    for link in _LINK.findall(text(page)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            dead.append(link)
    assert not dead, f"{name} has links that lead nowhere: {dead}"


def test_the_page_of_all_settings_is_current() -> None:
    assert reference.PAGE.read_text() == reference.page(), "run python -m deploy.reference"


def test_every_page_is_in_the_navigation_once() -> None:
    index = ROOT / "docs" / "index.md"
    entries = re.findall(r"^- \[[^\]]+\]\(([^)#\s]+\.md)\)", index.read_text(), re.MULTILINE)
    listed = [(index.parent / entry).resolve().relative_to(ROOT).as_posix() for entry in entries]
    assert sorted(listed) == sorted(name for name in PAGES if not name.startswith("examples/"))


def test_every_picture_is_shown_by_a_page() -> None:
    shown = {
        (ROOT / name).parent.joinpath(link).resolve()
        for name in PAGES
        for link in _LINK.findall(text(ROOT / name))
        if not re.match(r"[a-z]+:", link)
    }
    made = {file for folder in ("images", "plots") for file in (ROOT / "docs" / folder).iterdir()}
    assert made
    assert not {file.name for file in made - shown}


READMES = ("README.md", "README.zh-CN.md")


def test_both_readmes_name_the_same_commands_figures_and_pages() -> None:
    def said(name: str) -> list[list[str]]:
        page = (ROOT / name).read_text()
        blocks = re.findall(r"```(?:sh|json)\n(.*?)```", page, re.DOTALL)
        figures = re.findall(r"^\|.*\|$", page, re.MULTILINE)
        links = set(re.findall(r"(?<!!)\[[^\]]+\]\((?:docs|examples)/([^)]*)\)", page))
        return [blocks, figures, sorted(links)]

    english, chinese = map(said, READMES)
    assert len(english[0]) > 4
    assert english == chinese
    for name, other in zip(READMES, reversed(READMES), strict=True):
        assert f"]({other})" in (ROOT / name).read_text()


@pytest.mark.parametrize("name", READMES)
def test_the_figures_of_a_readme_are_those_of_the_last_measurement(name: str) -> None:
    measured = (ROOT / "docs/performance.md").read_text()
    page = (ROOT / name).read_text()
    rows = re.findall(r"^\| [\d,]+ streams.*\|$", page, re.MULTILINE)
    assert len(rows) == 3
    assert [row for row in rows if row not in measured] == []
    for figure, row in {
        "2.5": r"^\| memory per stream, .* \*\*([\d.]+)\*\* kB",
        "122": r"^\| 4 \| \*\*pushsse .* \*\*(\d+) µs",
        "66": r"^\| 1 \| Centrifugo \| (\d+) µs",
        "60": r"^\| 1 \| nchan \| (\d+) µs",
    }.items():
        assert re.findall(row, measured, re.MULTILINE) == [figure]
        assert re.search(rf"(?<![\d.]){re.escape(figure)}(?![\d.]\d)", page)


@pytest.mark.parametrize("name", PAGES)
def test_files_that_a_page_names_exist(name: str) -> None:
    page = ROOT / name
    # Docs name the package's modules without `pushsse/`.
    places = (ROOT, ROOT / "pushsse", page.parent)
    named = set(_FILE.findall(text(page)))
    missing = sorted(file for file in named if not any((place / file).is_file() for place in places))
    assert not missing, f"{name} names files that don't exist: {missing}"


def test_each_part_of_the_package_has_its_place_in_the_architecture() -> None:
    table = (ROOT / "docs" / "architecture.md").read_text().partition("## The files that")[0]
    parts = {file.name for file in (ROOT / "pushsse").glob("*.py") if not file.name.startswith("__")}
    parts |= {f"{file.parent.name}/" for file in (ROOT / "pushsse").glob("*/__init__.py")}
    missing = sorted(part for part in parts if f"`{part}`" not in table)
    assert not missing, f"docs/architecture.md doesn't say what these are: {missing}"


def test_modules_that_the_package_names_exist() -> None:
    package = ROOT / "pushsse"
    named = {
        (file.relative_to(package).as_posix(), folder, name)
        for file in package.rglob("*.py")
        for folder, name in _MODULE.findall(file.read_text())
        if (package / folder).is_dir()
    }
    assert len(named) > 10
    missing = [each for each in named if not _is_in(package / each[1], each[2])]
    assert not missing


def _is_in(folder: Path, name: str) -> bool:
    """Whether a package has a module or a folder of this name, or defines or imports it itself."""
    face = folder / "__init__.py"
    return any(folder.glob(f"{name}.*")) or (folder / name).is_dir() or f" {name}" in face.read_text()


@pytest.mark.parametrize("name", ["docs/architecture.md", "docs/contributing.md"])
def test_names_of_code_that_a_page_for_engineers_names_exist(name: str) -> None:
    files = [*ROOT.glob("pushsse/**/*.py"), *ROOT.glob("tests/**/*.py"), ROOT / "pyproject.toml"]
    code = {word for file in files if file != Path(__file__) for word in re.findall(r"\w+", file.read_text())}
    named = set(re.findall(r"`([A-Za-z_]\w*)(?:\(\))?`", text(ROOT / name)))
    assert len(named) > 20
    missing = sorted(word for word in named if "_" in word or not word.islower() if word not in code)
    assert not missing, f"{name} names what isn't in the code: {missing}"


@pytest.mark.parametrize("name", PAGES)
def test_variables_that_a_page_names_are_settings(name: str) -> None:
    named = set(re.findall(r"PUSHSSE_[A-Z_]*[A-Z]", (ROOT / name).read_text()))
    unknown = named - set(map(variable, FIELDS)) - _OTHERS
    assert not unknown, f"{name} names variables that aren't settings: {sorted(unknown)}"


def test_tests_that_a_page_names_exist() -> None:
    written = {
        found
        for file in (ROOT / "tests").rglob("test_*.py")
        for found in re.findall(r"def (test_\w+)\(", file.read_text())
    }
    for name in PAGES:
        missing = set(re.findall(r"`(test_\w+)`", text(ROOT / name))) - written
        assert not missing, f"{name} names tests that don't exist: {sorted(missing)}"


def test_each_hardening_test_has_its_place_in_the_threat_model() -> None:
    page = (ROOT / "docs" / "security.md").read_text()
    files = {file.name for file in (ROOT / "tests" / "hardening").glob("test_*.py")}
    missing = sorted(name for name in files if f"tests/hardening/{name}" not in page)
    assert not missing, f"docs/security.md doesn't say what these show: {missing}"


_UNITS = {"KiB": 1024, "MiB": 1024**2, "s": 1, "d": 86_400, "h": 3_600}
_SIZE = re.compile(r"\| ([\d,]+)(?: (\w+))? \| `(?:PUSHSSE_(\w+)|(\w+)` in `([\w/]+)\.py)` \|")


def sizes() -> list[tuple[int, str, str]]:
    """The rows of the table of sizes: how much, and a setting, or a constant and its module."""
    table = (ROOT / "docs/operations.md").read_text().partition("### Sizes")[2].partition("\n## ")[0]
    return [
        (int(number.replace(",", "")) * _UNITS.get(unit, 1), setting.lower() or constant, module)
        for number, unit, setting, constant, module in _SIZE.findall(table)
    ]


@pytest.mark.parametrize(("bound", "name", "module"), sizes())
def test_a_size_in_the_docs_is_the_one_in_the_code(bound: int, name: str, module: str) -> None:
    if module:
        place = module.removesuffix("/__init__").replace("/", ".")
        assert getattr(importlib.import_module(f"pushsse.{place}"), name) == bound
    else:
        assert FIELDS[name].default == bound


def test_the_table_of_sizes_is_read() -> None:
    assert len(sizes()) > 15
