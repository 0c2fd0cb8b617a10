"""A Java that is new enough, and jars from Maven Central: Kafka's for `kafka`, others for tests."""

import fcntl
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from deploy.parts.missing import PartMissing
from deploy.parts.packages import find, install, program

KAFKA = "4.1.0"
_OLDEST_JAVA = 17
_JAVA_PACKAGES = ("openjdk-17-jre-headless", "default-jre-headless")
_LIMIT_S = 900
_POM = """<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>pushsse</groupId>
  <artifactId>parts</artifactId>
  <version>1</version>
  <dependencies>{}</dependencies>
</project>
"""
_DEPENDENCY = "<dependency><groupId>{}</groupId><artifactId>{}</artifactId><version>{}</version></dependency>"


def parts_folder() -> Path:
    """Where downloaded parts are kept: PUSHSSE_PARTS_DIR, else `.parts` in the repository."""
    named = os.environ.get("PUSHSSE_PARTS_DIR")
    return Path(named) if named else Path(__file__).resolve().parents[2] / ".parts"


def java() -> str:
    """The path of a Java that Kafka runs on, installed if need be. Raises PartMissing."""
    if found := _found_java():
        return found
    for package in _JAVA_PACKAGES:
        try:
            install([package])
        except PartMissing:
            # Debian drops old versions: the next one is named after no version.
            if package == _JAVA_PACKAGES[-1]:
                raise
        if found := _found_java():
            return found
    raise PartMissing(f"no Java from {_OLDEST_JAVA} on")


def kafka_jars() -> Path:
    """The folder of Kafka's jars, fetched if need be. Raises PartMissing."""
    return jars("kafka", f"org.apache.kafka:kafka_2.13:{KAFKA}")


def jars(name: str, *wanted: str) -> Path:
    """A folder with these jars (`group:artifact:version`) and what they need. Raises PartMissing."""
    folder = parts_folder() / name
    files = ["-".join(each.split(":")[1:]) + ".jar" for each in wanted]

    def there() -> bool:
        return all((folder / file).exists() for file in files)

    if not there():
        folder.parent.mkdir(parents=True, exist_ok=True)
        # One fetches, the others wait: who fetches replaces the folder, also under a Java that runs.
        with (folder.parent / f".{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not there():
                _fetch(folder, wanted)
    return folder


def _found_java() -> str | None:
    places = [
        os.environ.get("JAVA_HOME", "") + "/bin/java",
        find("java"),
        *Path("/usr/lib/jvm").glob("*/bin/java"),
    ]
    for place in places:
        if place and os.access(place, os.X_OK) and _version(str(place)) >= _OLDEST_JAVA:
            return str(place)
    return None


def _version(path: str) -> int:
    said = subprocess.run([path, "-version"], check=False, capture_output=True, text=True, timeout=30).stderr
    found = re.search(r'version "(\d+)', said)
    return int(found[1]) if found else 0


def _fetch(jars: Path, wanted: Sequence[str]) -> None:
    maven = program("mvn", "maven")
    print(f"fetching {', '.join(wanted)} into {jars}", flush=True)
    # Beside its place and then moved: another process never sees half of it.
    with tempfile.TemporaryDirectory(prefix=f"{jars.name}-", dir=jars.parent) as making:
        dependencies = "".join(_DEPENDENCY.format(*each.split(":")) for each in wanted)
        (Path(making) / "pom.xml").write_text(_POM.format(dependencies))
        command = [maven, "-q", "-B", "dependency:copy-dependencies", f"-DoutputDirectory={making}/jars"]
        try:
            done = subprocess.run(
                [*command, "-DincludeScope=runtime"],
                cwd=making,
                check=False,
                capture_output=True,
                text=True,
                timeout=_LIMIT_S,
            )
        except subprocess.TimeoutExpired:
            raise PartMissing(f"Maven didn't fetch {jars.name} within {_LIMIT_S} s") from None
        if done.returncode:
            raise PartMissing(f"Maven can't fetch {jars.name}: {done.stdout[-800:].strip()}")
        shutil.rmtree(jars, ignore_errors=True)
        Path(making, "jars").rename(jars)
