"""Debian's packages: finds a program, and installs the package that has it where it is missing.

Nothing installed here is left running or starts with the machine; services that were there are not touched.
"""

import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from deploy.parts.missing import PartMissing

_LIMIT_S = 600
_POLICY = Path("/usr/sbin/policy-rc.d")
_PLACES = ("/usr/sbin", "/sbin", "/usr/local/sbin")


def find(program: str) -> str | None:
    """The path of a program, also where an ordinary user's PATH doesn't look."""
    return shutil.which(program) or shutil.which(program, path=os.pathsep.join(_PLACES))


def program(name: str, package: str) -> str:
    """The path of a program, installed if need be. Raises PartMissing."""
    found = find(name)
    if found is None:
        install([package])
        found = find(name)
    if found is None:
        raise PartMissing(f"{name} isn't there, though Debian's package {package} is installed")
    return found


def install(packages: Sequence[str]) -> None:
    """Installs Debian's packages. Raises PartMissing."""
    names = " ".join(packages)
    if find("apt-get") is None:
        raise PartMissing(f"{names}: missing, and this machine has no apt-get; install what it stands for")
    print(f"installing {names}", flush=True)
    # Several of us at once would only wait for dpkg's lock, and each take the other's policy away.
    with _one_at_a_time(), _services_stay_off():
        _apt("update")
        _apt("install", "-y", "--no-install-recommends", *packages)
    _disable_at_boot(packages)


def _apt(*arguments: str) -> None:
    _run(
        [
            "env",
            "DEBIAN_FRONTEND=noninteractive",
            "apt-get",
            "-q",
            "-o",
            "DPkg::Lock::Timeout=120",
            *arguments,
        ]
    )


def _as_root() -> list[str]:
    if os.getuid() == 0:
        return []
    if (
        find("sudo")
        and subprocess.run(["sudo", "-n", "true"], check=False, capture_output=True, timeout=20).returncode
        == 0
    ):
        return ["sudo", "-n"]
    raise PartMissing("packages are missing, and neither are we root nor does sudo work without a password")


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(
        [*_as_root(), *command], check=False, capture_output=True, text=True, timeout=_LIMIT_S
    )
    if done.returncode:
        raise PartMissing(f"{' '.join(command)} failed: {(done.stderr or done.stdout)[-800:].strip()}")


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    with (Path(tempfile.gettempdir()) / f"pushsse-packages-{os.getuid()}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def _services_stay_off() -> Iterator[None]:
    """Debian asks policy-rc.d before a package starts its service; 101 says no."""
    if _POLICY.exists():
        yield
        return
    _run(["sh", "-c", f"printf '#!/bin/sh\\nexit 101\\n' > {_POLICY} && chmod 755 {_POLICY}"])
    try:
        yield
    finally:
        _run(["rm", "-f", str(_POLICY)])


def _disable_at_boot(packages: Sequence[str]) -> None:
    if find("systemctl") is None or not Path("/run/systemd/system").exists():
        return
    for package in packages:
        if Path(f"/lib/systemd/system/{package}.service").exists():
            _run(["systemctl", "disable", package])
