"""The first minute: a fresh copy of the tree, `make run`, an event by the printed lines, Ctrl-C, and again.

On a machine that has Python and make alone, with the oldest pip that this Python came with and the newest;
and where uv is installed. Each prints how long it took.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import TOLD
from tests.parts import missing
from tests.waiting import until

pytestmark = [pytest.mark.real, pytest.mark.first_minute]

ROOT = Path(__file__).parents[2]
# What ensurepip of each Python's first release brings.
_OLDEST = {11: "22.3", 12: "23.2.1", 13: "24.2"}
PIPS = {"oldest pip": f"pip=={_OLDEST[sys.version_info[1]]}", "newest pip": "pip"}
_INSTALL_S = 240.0
_STEP_S = 30.0
# What a run of `make test` leaves in its environment, and what would help a fresh machine.
_OURS = re.compile(r"PUSHSSE_|COVERAGE|COV_|PYTEST|MAKE|MFLAGS$|ARGS$|PYTHON|VIRTUAL_ENV$|UV_PYTHON")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """The repository as a clone has it, with what isn't committed yet."""
    listed = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        names = subprocess.run(listed, capture_output=True, check=True, timeout=_STEP_S).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        missing(f"no list of the files: {error}")
    folder = tmp_path / "clone"
    for name in filter(None, names.decode().split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


def surroundings(tmp_path: Path, *, uv: str | None) -> dict[str, str]:
    """Our environment with empty caches; without uv on PATH, or with it in front."""
    kept = {name: value for name, value in os.environ.items() if not _OURS.match(name)}
    caches = {"PIP_CACHE_DIR": str(tmp_path / "pip"), "UV_CACHE_DIR": str(tmp_path / "uv")}
    folders = [_without_uv(tmp_path, Path(name)) for name in os.get_exec_path()]
    if uv is not None:
        folders.insert(0, Path(uv).parent)
    return {**kept, **caches, "PATH": os.pathsep.join(map(str, folders))}


def _without_uv(tmp_path: Path, folder: Path) -> Path:
    """A folder of PATH; where uv is in it, one with links to everything else."""
    if not (folder / "uv").exists():
        return folder
    shadow = tmp_path / f"path{abs(hash(folder))}"
    if shadow.exists():
        # PATH names it twice.
        return shadow
    shadow.mkdir()
    for entry in folder.iterdir():
        if entry.name not in ("uv", "uvx"):
            (shadow / entry.name).symlink_to(entry)
    return shadow


def base_python() -> str:
    """The Python that our own environment was made of."""
    return str(getattr(sys, "_base_executable", sys.executable))


def prepare(tree: Path, requirement: str, environment: dict[str, str]) -> None:
    """An environment with another pip than Python's own, as its ensurepip would have made it."""
    run = {"cwd": tree, "env": environment, "check": True, "timeout": _INSTALL_S}
    subprocess.run([base_python(), "-m", "venv", ".venv"], **run)  # type: ignore[call-overload]
    pip = (".venv/bin/python", "-m", "pip", "install", "-q", "--disable-pip-version-check")
    subprocess.run([*pip, "--upgrade", requirement], **run)  # type: ignore[call-overload]


@contextmanager
def made(tree: Path, environment: dict[str, str], output: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """`make run` in a process group of its own, as a terminal has it."""
    with output.open("wb") as out:
        started = subprocess.Popen(
            ["make", "run", "ARGS=--port 0", f"PYTHON3={base_python()}"],
            cwd=tree,
            env=environment,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield started
        finally:
            if started.poll() is None:
                os.killpg(started.pid, signal.SIGKILL)
            started.wait()


def first_minute(tree: Path, environment: dict[str, str]) -> str:
    """Goes through it; how long it took."""
    output, heard = tree.parent / "output", tree.parent / "heard"
    began = time.monotonic()
    with made(tree, environment, output) as making:

        def is_ready() -> bool:
            assert making.poll() is None, output.read_text()
            return "publish:" in output.read_text()

        until(is_ready, "banner", within_s=_INSTALL_S)
        ready = time.monotonic() - began
        with heard.open("wb") as out:
            listening = subprocess.Popen(
                _pasted(output, "listen"), stdout=out, stderr=subprocess.DEVNULL, env=environment
            )
        try:
            until(lambda: "event: ready" in heard.read_text(), "ready")
            publish = _pasted(output, "publish")
            subprocess.run(publish, env=environment, check=True, timeout=_STEP_S, capture_output=True)
            until(lambda: '"message":"hello"' in heard.read_text(), "event")
            took = time.monotonic() - began
            # The last word before it is told to end.
            until(lambda: "joined the catalogue: news" in output.read_text(), "word of the new type")
            before = output.stat().st_size
            os.killpg(making.pid, signal.SIGINT)
            asked = time.monotonic()
            making.wait(_STEP_S)
            ended = time.monotonic() - asked
            listening.wait(_STEP_S)
        finally:
            listening.kill()
            listening.wait()
    last = output.read_bytes()[before:].decode()
    assert len(last.splitlines()) == 1, last
    assert "stopping" in last
    assert '"code":"shutdown"' in heard.read_text()
    _restart(tree, environment, heard.read_text())
    return f"ready after {ready:.1f} s, an event after {took:.1f} s, Ctrl-C took {ended:.1f} s"


def _restart(tree: Path, environment: dict[str, str], heard: str) -> None:
    """Runs it again: a client that comes back with its last id has missed nothing, and is told so."""
    last = re.findall(r"^id: (\S+)$", heard, flags=re.MULTILINE)[-1]
    output, resumed = tree.parent / "again", tree.parent / "resumed"
    with made(tree, environment, output):
        until(lambda: "publish:" in output.read_text(), "banner")
        command = [
            *_pasted(output, "listen")[:2],
            f"{_pasted(output, 'listen')[2]} -H 'Last-Event-ID: {last}'",
        ]
        with resumed.open("wb") as out:
            coming = subprocess.Popen(command, stdout=out, stderr=subprocess.DEVNULL, env=environment)
        try:
            until(lambda: "event: ready" in resumed.read_text(), "ready")
            assert '"resume":"complete"' in resumed.read_text()
        finally:
            coming.kill()
            coming.wait()


def _pasted(output: Path, name: str) -> list[str]:
    found = re.search(rf"{name}: +(.*)", output.read_text())
    assert found is not None
    return ["bash", "-c", f"exec {found[1]}"]


@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", [pytest.param("oldest pip", marks=pytest.mark.long), "newest pip"])
def test_make_run_needs_python_and_make_alone(
    name: str, tree: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    environment = surroundings(tmp_path, uv=None)
    assert shutil.which("uv", path=environment["PATH"]) is None
    prepare(tree, PIPS[name], environment)
    told = first_minute(tree, environment)
    assert "with pip" in (tmp_path / "output").read_text()
    record_property(TOLD, f"make run with the {name}: {told}")


@pytest.mark.timeout(400)
def test_make_run_takes_uv_where_it_is(
    tree: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    uv = shutil.which("uv")
    if uv is None:
        pytest.skip("uv isn't installed")
    told = first_minute(tree, surroundings(tmp_path, uv=uv))
    assert "with uv" in (tmp_path / "output").read_text()
    record_property(TOLD, f"make run with uv: {told}")
