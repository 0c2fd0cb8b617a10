"""Clients whose network fails: nobody says that they are gone, and the kernel finds out."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.parts import PartMissing
from deploy.parts.packages import program
from tests.conftest import TOLD
from tests.hardening.half_open import CUTS
from tests.parts import missing

WITHIN_S = 45.0
NAMESPACE = ("unshare", "--map-root-user", "--net")
# A cable between two namespaces, as the test needs it.
TRIAL = (
    "ip link set lo up && ip link add s0 type veth peer name c0 && echo 6 >/proc/sys/net/ipv4/tcp_retries2"
)


def refused() -> str:
    """Why there can be no network namespace here; empty if there can be one."""
    for name in ("unshare", "ip"):
        if shutil.which(name) is None:
            return f"{name} isn't installed"
    tried = subprocess.run(
        [*NAMESPACE, "sh", "-c", TRIAL], capture_output=True, text=True, check=False, timeout=20
    )
    return tried.stderr.strip() if tried.returncode else ""


@pytest.mark.real
@pytest.mark.slow
def test_half_open_connections_are_gone_within_45_s_at_the_node_and_at_nginx(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    if why := refused():
        # Also in CI: many containers don't permit it.
        pytest.skip(f"no network namespace is permitted here: {why}")
    try:
        program("nginx", "nginx")
    except PartMissing as error:
        missing(error)
    ran = subprocess.run(
        [*NAMESPACE, sys.executable, "-m", "tests.hardening.half_open", str(tmp_path)],
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
    )
    assert ran.returncode == 0, ran.stderr
    gone = json.loads(ran.stdout.splitlines()[-1])
    for part in ("node", "nginx"):
        for network in CUTS:
            took_s = gone[part].get(network)
            assert took_s is not None, f"{part}: connections to the {network} network are still open"
            assert 5 < took_s <= WITHIN_S, gone
    told = ", ".join(f"{part} {max(gone[part].values()):.1f} s" for part in gone)
    record_property(TOLD, f"the last half-open connection was gone after: {told}")
