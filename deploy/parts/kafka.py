"""Apache Kafka: one node in KRaft mode, broker and controller in one process, with a small heap."""

import base64
import os
import subprocess
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

from deploy.parts import kafka_wire
from deploy.parts.java import java, kafka_jars
from deploy.parts.part import Part, PartFailed
from deploy.parts.ports import take_port

_PROPERTIES = """\
process.roles=broker,controller
node.id=1
controller.quorum.bootstrap.servers=127.0.0.1:{controller}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
controller.listener.names=CONTROLLER
log.dirs=data
auto.create.topics.enable=false
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500
group.initial.rebalance.delay.ms=0
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.num.partitions=4
transaction.state.log.min.isr=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
"""
_JVM = (
    "-Xms128m",
    "-Xmx384m",
    "-XX:TieredStopAtLevel=1",
    "-XX:+UseSerialGC",
    "-Xshare:auto",
    "-Dlog4j2.level=INFO",
)
_FORMAT_LIMIT_S = 60


class Kafka(Part):
    """One broker; `url` is what clients call the bootstrap address.

    `properties` are further lines of its file, which outweigh ours; `format_options` are the storage tool's.
    """

    # Two cores that others work on as well: five seconds when nothing else runs.
    start_limit_s = 90.0
    stop_limit_s = 20.0

    def __init__(
        self,
        folder: Path,
        *,
        port: int | None = None,
        log: Path | None = None,
        properties: str = "",
        format_options: Sequence[str] = (),
    ) -> None:
        super().__init__("kafka", folder, port=port, log=log)
        self._controller = take_port(self)
        self._more_properties = properties
        self._format_options = tuple(format_options)
        self._java: tuple[str, ...] = ()

    @property
    def url(self) -> str:
        return f"127.0.0.1:{self.port}"

    def create_topic(self, name: str, partitions: int = 1) -> None:
        """Makes a topic; one that is there is left as it is."""
        kafka_wire.create_topic(self.port, name, partitions)

    def delete_topic(self, name: str) -> None:
        """Deletes a topic; the broker may take a moment longer."""
        kafka_wire.delete_topic(self.port, name)

    def prepare(self) -> None:
        if not self._java:
            self._java = (java(), *_JVM, "-cp", f"{kafka_jars()}/*")
        if not self._properties.exists():
            # All paths in it, and its own, are relative: whatever the folder is called, Java needn't read it.
            properties = (_PROPERTIES + self._more_properties).format(
                port=self.port, controller=self._controller
            )
            self._properties.write_text(properties)
            self._format()

    def command(self) -> Sequence[str]:
        return [*self._java, "kafka.Kafka", self._properties.name]

    def environment(self) -> Mapping[str, str]:
        # Without a locale Java finds no jar in a folder whose name has more than ASCII.
        return {**os.environ, "LC_ALL": "C.UTF-8"}

    def is_ready(self) -> bool:
        return kafka_wire.has_controller(self.port)

    @property
    def _properties(self) -> Path:
        return self.folder / "server.properties"

    def _format(self) -> None:
        # A name that began with "-" would be taken for an option.
        cluster = "A" + base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")[1:]
        tool = (
            "kafka.tools.StorageTool",
            "format",
            "--standalone",
            "-t",
            cluster,
            "-c",
            self._properties.name,
            *self._format_options,
        )
        done = subprocess.run(
            [*self._java, *tool],
            check=False,
            capture_output=True,
            text=True,
            timeout=_FORMAT_LIMIT_S,
            cwd=self.folder,
            env=self.environment(),
        )
        if done.returncode:
            self._properties.unlink()
            raise PartFailed(
                f"Kafka's storage can't be formatted: {(done.stderr or done.stdout)[-800:].strip()}"
            )
