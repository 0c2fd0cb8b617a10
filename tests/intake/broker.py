"""A real Apache Kafka, one node, for as long as the tests run."""

import base64
import os
import shutil
import socket
import subprocess
import tempfile
import time
import uuid
from pathlib import Path

PROPERTIES = """
process.roles=broker,controller
node.id=1
controller.quorum.bootstrap.servers=127.0.0.1:{controller}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
controller.listener.names=CONTROLLER
log.dirs={folder}/data
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
group.initial.rebalance.delay.ms=0
auto.create.topics.enable=false
"""
JAVA = ("java", "-Xmx384m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")


def jars() -> str:
    """The folder of Kafka's jars, "" where there is none."""
    found = os.environ.get("KAFKA_LIBS", "")
    return found if found and shutil.which("java") else ""


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port


class Broker:
    """Starts Kafka in a folder of its own, and takes it away again."""

    def __init__(self, libs: str) -> None:
        self.port = free_port()
        self.bootstrap = f"127.0.0.1:{self.port}"
        self._java = (*JAVA, "-cp", f"{libs}/*")
        self._folder = Path(tempfile.mkdtemp(prefix="pushsse-kafka-"))
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        properties = self._folder / "server.properties"
        properties.write_text(PROPERTIES.format(port=self.port, controller=free_port(), folder=self._folder))
        name = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        format_storage = ("kafka.tools.StorageTool", "format", "--standalone", "-t", name, "-c")
        subprocess.run(
            [*self._java, *format_storage, str(properties)], check=True, capture_output=True, timeout=60
        )
        self.run()

    def run(self) -> None:
        """Runs Kafka on what its folder holds."""
        with (self._folder / "kafka.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*self._java, "kafka.Kafka", str(self._folder / "server.properties")],
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self._wait()

    def kill(self) -> None:
        """Ends it as a crash would; its data stays."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None

    def _wait(self) -> None:
        until = time.monotonic() + 60
        while time.monotonic() < until:
            with socket.socket() as asking:
                asking.settimeout(1)
                if asking.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.1)
        raise RuntimeError("Kafka didn't come up: " + (self._folder / "kafka.log").read_text()[-2000:])

    def remove(self) -> None:
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)
