"""TypeScript takes the client's types for what they say, in the strictest mode."""

import subprocess
from pathlib import Path

import pytest

from deploy.parts import PartMissing
from pushsse.api.files import CLIENT_FOLDER
from tests.deployed.npm import package
from tests.parts import missing

pytestmark = [pytest.mark.real, pytest.mark.long]
TYPESCRIPT = ("typescript", "7.0.2")


def test_what_an_app_writes_is_typed(tmp_path: Path) -> None:
    try:
        compiler = package(*TYPESCRIPT) / "node_modules/.bin/tsc"
    except PartMissing as error:
        missing(error)
    (tmp_path / "node_modules").mkdir()
    (tmp_path / "node_modules/pushsse").symlink_to(CLIENT_FOLDER)
    (tmp_path / "types.ts").write_text(Path(__file__).with_name("types.ts").read_text())
    options = [
        "--noEmit",
        "--strict",
        "--module",
        "nodenext",
        "--target",
        "es2022",
        "--lib",
        "es2022,dom",
        "--moduleDetection",
        "force",
    ]
    (tmp_path / "package.json").write_text('{"type": "module"}')
    done = subprocess.run(
        [str(compiler), *options, "types.ts"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
