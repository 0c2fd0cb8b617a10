"""`make audit`: silence of the source of advisories is no answer."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FINDS = "jinja2 2.10    PYSEC-2019-217 2.10.1"
CLEAN = "No known vulnerabilities found"


def advisories(
    folder: Path, *, canary: tuple[int, str], locks: tuple[int, str]
) -> subprocess.CompletedProcess[str]:
    """The part of `make audit` that asks, with a pip-audit that answers this."""
    program = folder / "pip-audit"
    program.write_text(
        "#!/bin/sh\n"
        f"case \"$*\" in *canary.txt*) echo '{canary[1]}'; exit {canary[0]};; esac\n"
        f"echo \"asked $*\"; echo '{locks[1]}'; exit {locks[0]}\n"
    )
    program.chmod(0o755)
    installed = folder / ".installed"
    installed.touch()
    given = [f"AUDIT={program}", f"AUDIT_STAMP={installed}"]
    return subprocess.run(
        ["make", "-o", str(installed), "advisories", *given],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    "canary",
    [(0, CLEAN), (1, "ConnectionError: api.osv.dev"), (1, "jinja2: Dependency not found on PyPI"), (127, "")],
    ids=["knows nothing", "away", "a mirror", "not installed"],
)
def test_a_source_that_does_not_know_the_canary_fails_the_audit(
    tmp_path: Path, canary: tuple[int, str]
) -> None:
    done = advisories(tmp_path, canary=canary, locks=(0, CLEAN))
    assert done.returncode != 0
    assert "nothing was audited" in done.stderr
    assert "asked" not in done.stdout


def test_what_is_locked_is_asked_about_once_the_canary_is_found(tmp_path: Path) -> None:
    done = advisories(tmp_path, canary=(1, FINDS), locks=(0, CLEAN))
    assert done.returncode == 0, done.stderr
    asked = next(line for line in done.stdout.splitlines() if line.startswith("asked"))
    assert "--strict" in asked
    assert "requirements-dev.lock" in asked
    assert "requirements-audit.lock" in asked
    assert "requirements-docs.lock" in asked


def test_a_finding_fails_the_audit(tmp_path: Path) -> None:
    done = advisories(tmp_path, canary=(1, FINDS), locks=(1, "starlette 1.0 PYSEC-2026-1"))
    assert done.returncode != 0
    assert "PYSEC-2026-1" in done.stdout
