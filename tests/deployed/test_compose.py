"""compose.yaml, the Dockerfile, and nginx's small files of theirs."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.parts import Nginx
from deploy.parts.nginx import CONFIGURATION
from deploy.whole import TOPIC
from tests.deployed.conftest import run_nginx

REPOSITORY = Path(__file__).resolve().parents[2]
SECRETS = {"PUSHSSE_JWT_SECRET": "x" * 32, "POSTGRES_PASSWORD": "secret"}
NODES = ("node1", "node2")


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((REPOSITORY / "compose.yaml").read_text())
    return loaded


def test_compose_has_all_parts(compose: dict[str, Any]) -> None:
    services = compose["services"]
    assert {*NODES, "nginx", "kafka", "redis", "postgres", "migrate"} <= set(services)
    for name in ("kafka", "redis", "postgres"):
        kept = {volume.split(":")[0] for volume in services[name]["volumes"]}
        assert kept <= set(compose["volumes"])
    for name in (*NODES, "nginx", "kafka", "redis", "postgres"):
        assert services[name]["healthcheck"]["test"]
        assert services[name]["restart"] == "unless-stopped"


def test_only_nginx_is_open_to_the_outside(compose: dict[str, Any]) -> None:
    assert [name for name, service in compose["services"].items() if "ports" in service] == ["nginx"]


def test_nodes_start_when_what_they_need_is_there_and_the_database_is_migrated_once(
    compose: dict[str, Any],
) -> None:
    services = compose["services"]
    for name in NODES:
        needs = {part: how["condition"] for part, how in services[name]["depends_on"].items()}
        done, healthy = "service_completed_successfully", "service_healthy"
        assert needs == {"migrate": done, "topics": done, "redis": healthy}
        assert services[name]["environment"]["PUSHSSE_NODE"] == name
        assert services[name]["environment"]["PUSHSSE_KAFKA_TOPIC"] == TOPIC
        assert "command" not in services[name]
    assert services["migrate"]["command"] == ["migrate"]
    assert services["nginx"]["depends_on"].keys() == {"certificate", *NODES}


def test_ours_are_confined(compose: dict[str, Any]) -> None:
    for name in (*NODES, "migrate", "nginx"):
        service = compose["services"][name]
        assert service["read_only"]
        assert service["tmpfs"] == ["/tmp"]
        assert service["cap_drop"] == ["ALL"]
    dockerfile = (REPOSITORY / "Dockerfile").read_text()
    assert dockerfile.count("\nFROM ") + dockerfile.startswith("FROM ") == 2
    user = dockerfile.rsplit("USER ", 1)[1].split()[0]
    assert user not in ("", "root", "0")


def test_readiness_is_asked_at_the_internal_address(compose: dict[str, Any]) -> None:
    small = CONFIGURATION.with_suffix(".d")
    for name in NODES:
        port = compose["services"][name]["environment"]["PUSHSSE_INTERNAL_LISTEN"].rpartition(":")[2]
        assert f"http://127.0.0.1:{port}/readyz" in compose["services"][name]["healthcheck"]["test"][-1]
        assert f"server {name}:{port} " in (small / "streams.conf").read_text()
        for public in ("nodes", "any"):
            assert f"server {name}:8000 " in (small / f"{public}.conf").read_text()


def test_redis_refuses_rather_than_forgets(compose: dict[str, Any]) -> None:
    command = " ".join(compose["services"]["redis"]["command"])
    assert "--maxmemory-policy noeviction" in command
    assert "--appendonly yes" in command


def test_vanished_peers_are_given_up_early(compose: dict[str, Any]) -> None:
    for name in (*NODES, "nginx", "redis", "postgres", "kafka"):
        assert compose["services"][name]["sysctls"] == {"net.ipv4.tcp_retries2": 6}


def test_a_node_has_the_time_to_drain(compose: dict[str, Any]) -> None:
    for name in NODES:
        assert int(compose["services"][name]["stop_grace_period"].removesuffix("s")) > 2 + 10 + 5


def test_secrets_are_asked_for(compose: dict[str, Any]) -> None:
    text = (REPOSITORY / "compose.yaml").read_text()
    for name in SECRETS:
        assert f"${{{name}:?" in text


def test_what_is_mounted_and_copied_is_there(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        for volume in service.get("volumes", []):
            if volume.startswith("."):
                assert (REPOSITORY / volume.split(":")[0]).exists()
    for line in (REPOSITORY / "Dockerfile").read_text().splitlines():
        if line.startswith("COPY ") and "--from" not in line:
            for name in line.split()[1:-1]:
                assert (REPOSITORY / name).exists()
                assert f"!{name}\n" in (REPOSITORY / ".dockerignore").read_text()


@pytest.mark.real
def test_nginx_accepts_the_small_files_of_compose(tmp_path: Path) -> None:
    """With what only a container has (names, certificate) and what is newer than this nginx replaced."""
    for nginx in run_nginx(Nginx(tmp_path / "nginx", ["127.0.0.1:1"])):
        folder = tmp_path / "compose"
        shutil.copytree(CONFIGURATION.with_suffix(".d"), folder / "nginx-sse.d")
        (folder / CONFIGURATION.name).symlink_to(CONFIGURATION)
        replaced = {
            "/tmp/": f"{folder}/",
            " resolve": "",
            "node1:": "127.0.0.1:",
            "node2:": "127.0.0.2:",
            "http2 on;": "",
            "/certificate/server.pem": str(nginx.certificate.chain),
            "/certificate/server.key": str(nginx.certificate.key),
        }
        for file in (folder / "nginx-sse.d").iterdir():
            text = file.read_text()
            for old, new in replaced.items():
                text = text.replace(old, new)
            file.write_text(text)
        program = nginx.command()[0]
        check = [program, "-t", "-p", f"{folder}/", "-c", str(folder / CONFIGURATION.name)]
        done = subprocess.run(check, check=False, capture_output=True, text=True, timeout=20)
        assert done.returncode == 0, done.stderr


@pytest.mark.real
def test_docker_compose_accepts_the_file() -> None:
    if shutil.which("docker") is None or not _has_compose():
        pytest.skip("there is no docker compose here")
    command = ["docker", "compose", "--project-directory", str(REPOSITORY), "config", "--quiet"]
    environment = {**os.environ, **SECRETS}
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60, env=environment)
    assert done.returncode == 0, done.stderr


def _has_compose() -> bool:
    asked = subprocess.run(["docker", "compose", "version"], check=False, capture_output=True, timeout=30)
    return asked.returncode == 0
