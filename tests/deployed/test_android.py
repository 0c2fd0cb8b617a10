"""The Android example is compiled with the libraries that it names. That it works is a test of the matrix."""

import subprocess
from pathlib import Path

import pytest

from deploy.parts import PartMissing
from deploy.parts.java import jars, java
from tests.clients.toolchains import KOTLIN
from tests.parts import missing

pytestmark = [pytest.mark.real, pytest.mark.long]

EXAMPLE = Path(__file__).parents[2] / "examples/android"
# Android's own classes, as an application sees them.
LIBRARIES = ("com.squareup.okhttp3:okhttp-sse:5.5.1", "com.google.android:android:4.1.1.4")
_LIMIT_S = 300


def test_the_android_example_compiles(tmp_path: Path) -> None:
    try:
        folder, compiler, machine = jars("android-2", *LIBRARIES), jars(*KOTLIN), java()
    except PartMissing as error:
        missing(error)
    path, own = (":".join(map(str, sorted(each.glob("*.jar")))) for each in (folder, compiler))
    command = [machine, "-Xmx600m", "-cp", own, "org.jetbrains.kotlin.cli.jvm.K2JVMCompiler"]
    sources = [str(file) for file in sorted(EXAMPLE.glob("*.kt"))]
    done = subprocess.run(
        [*command, "-no-stdlib", "-no-reflect", "-classpath", path, "-d", str(tmp_path), *sources],
        capture_output=True,
        text=True,
        check=False,
        timeout=_LIMIT_S,
    )
    assert done.returncode == 0, done.stderr
    for name in ("PushStream", "AndroidPush", "ListenKt"):
        assert (tmp_path / f"{name}.class").exists()
