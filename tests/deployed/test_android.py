"""The Android example is compiled with the libraries that it names."""

import subprocess
from pathlib import Path

import pytest

from deploy.parts import PartMissing
from deploy.parts.java import jars, java
from tests.parts import missing

pytestmark = [pytest.mark.real, pytest.mark.long]

EXAMPLE = Path(__file__).parents[2] / "examples/android/PushStream.kt"
# Android's own classes, as an application sees them, and the compiler.
LIBRARIES = (
    "com.squareup.okhttp3:okhttp-sse:4.12.0",
    "com.google.android:android:4.1.1.4",
    "org.jetbrains.kotlin:kotlin-compiler-embeddable:1.9.24",
)
_LIMIT_S = 300


def test_the_android_example_compiles(tmp_path: Path) -> None:
    try:
        folder, machine = jars("android-1", *LIBRARIES), java()
    except PartMissing as error:
        missing(error)
    path = ":".join(map(str, sorted(folder.glob("*.jar"))))
    compiler = [machine, "-Xmx600m", "-cp", path, "org.jetbrains.kotlin.cli.jvm.K2JVMCompiler"]
    done = subprocess.run(
        [*compiler, "-no-stdlib", "-no-reflect", "-classpath", path, "-d", str(tmp_path), str(EXAMPLE)],
        capture_output=True,
        text=True,
        check=False,
        timeout=_LIMIT_S,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "PushStream.class").exists()
