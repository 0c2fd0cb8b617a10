"""The wheel holds all that runs: built, installed into an empty environment, and served from there."""

import shutil
import subprocess
import sys
import sysconfig
import zipfile
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from pushsse.api.files import DEVELOPMENT_PAGE, PAGE
from tests.cli.running import served

pytestmark = pytest.mark.real

ROOT = Path(__file__).parents[2]
INSIDE = (
    "pushsse/py.typed",
    "pushsse/api/docs/index.html",
    "pushsse/api/docs/docs.js",
    "pushsse/api/docs/docs.css",
    *(f"pushsse/api/page/{name}" for name, _ in (PAGE | DEVELOPMENT_PAGE).values()),
    "pushsse/client/pushsse.min.js",
    "pushsse/client/pushsse.d.ts",
    "pushsse/migrations/0001_initial.py",
    "pushsse/questions/faq.toml",
    "pushsse/backplane/redis/scripts/publish.lua",
)


@dataclass(frozen=True)
class Environment:
    """An empty virtual environment, made as the Makefile does it."""

    folder: Path

    def make(self) -> None:
        if shutil.which("uv"):
            self._run("uv", "venv", "-q", "--python", sys.executable, str(self.folder))
        else:
            self._run(sys.executable, "-m", "venv", str(self.folder))

    def build(self, into: Path) -> Path:
        if shutil.which("uv"):
            self._run("uv", "build", "-q", "--wheel", "--out-dir", str(into), str(ROOT))
        else:
            self._pip("wheel", "--no-deps", "-w", str(into), str(ROOT))
        return next(into.glob("*.whl"))

    def install(self, wheel: Path) -> None:
        """The wheel alone; its dependencies are those of the tests' own environment."""
        if shutil.which("uv"):
            self._run("uv", "pip", "install", "-q", "--no-deps", "--python", str(self.python), str(wheel))
        else:
            self._pip("install", "--no-deps", str(wheel))
        # Files ending in .pth are read in site-packages alone, so the editable install there isn't found.
        site = next(self.folder.glob("lib/python*/site-packages"))
        (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    def _pip(self, *arguments: str) -> None:
        self._run(str(self.python), "-m", "pip", "-q", "--disable-pip-version-check", *arguments)

    def _run(self, *command: str) -> None:
        done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
        assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    made = Environment(tmp_path_factory.mktemp("environment") / "venv")
    made.make()
    return made


@pytest.fixture(scope="module")
def wheel(environment: Environment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return environment.build(tmp_path_factory.mktemp("wheel"))


def test_wheel_has_everything_it_needs_at_run_time(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert set(INSIDE) <= names
    source = {str(path.relative_to(ROOT)) for path in (ROOT / "pushsse").rglob("*.lua")}
    assert source <= names
    assert all(name.startswith(("pushsse/", "pushsse-")) for name in names)
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_wheel_says_which_pythons_it_runs_on(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    metadata = archive.read(next(n for n in archive.namelist() if n.endswith("METADATA"))).decode()
    assert "Requires-Python: <3.14,>=3.11" in metadata
    assert "License-Expression: MIT" in metadata


def test_installed_package_serves_page_and_answers(
    environment: Environment, wheel: Path, tmp_path: Path
) -> None:
    environment.install(wheel)
    where = [str(environment.python), "-c", "import pushsse; print(pushsse.__file__)"]
    found = subprocess.run(where, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert found.startswith(str(environment.folder))
    with (
        served(tmp_path, program=(str(environment.folder / "bin" / "pushsse"),)) as node,
        httpx.Client(base_url=node.url, trust_env=False) as client,
    ):
        assert "<title>pushsse</title>" in client.get("/").text
        assert client.get("/page/main.js").status_code == 200
        assert client.get("/pushsse.js").status_code == 200
        assert client.get("/v1/preferences?user=ann").status_code == 200
        question = {"text": "How do I switch an event type off?"}
        accept = {"accept": "text/event-stream"}
        answer = client.post("/v1/questions?user=ann", json=question, headers=accept).text
        assert "event: answer\n" in answer
