"""Where clients come from: registries and Debian's packages.

What can't be had raises PartMissing; what doesn't compile, PartFailed. What is fetched or compiled stays in
the folder of parts (PUSHSSE_PARTS_DIR), under a name that follows its sources.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from deploy.parts import PartFailed, PartMissing, packages
from deploy.parts.java import jars, java, parts_folder
from tests.clients.client import Command, Place
from tests.deployed import npm

KOTLIN = ("kotlin-2.4.21", "org.jetbrains.kotlin:kotlin-compiler-embeddable:2.4.21")
_CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
_LIMIT_S = 900
_TRUST_PASSWORD = "loopback"


def chromium() -> str:
    """Its path."""
    found = next((path for name in _CHROMIUM if (path := packages.find(name))), None)
    return found or packages.program("chromium", "chromium")


def browser(program: str, script: str) -> Command:
    """A Chromium of its own with a page that runs a script."""

    def command(place: Place) -> list[str]:
        quiet = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run")
        network = ("--disable-background-networking", "--ignore-certificate-errors")
        folder = f"--user-data-dir={place.folder}/profile"
        # The page stays open while somebody could look at it.
        return [program, *quiet, *network, "--remote-debugging-port=0", folder, place.page(script)]

    return command


def firefox(script: str) -> Command:
    """A Firefox of its own with a page that runs a script."""
    program = packages.program("firefox-esr", "firefox-esr")
    certutil = packages.program("certutil", "libnss3-tools")

    def command(place: Place) -> list[str]:
        profile = place.folder / "profile"
        profile.mkdir()
        # Nothing but the page: no updates, no reports, no look whether the network is there.
        prefs = ("toolkit.telemetry.enabled", "app.update.enabled", "network.captive-portal-service.enabled")
        (profile / "user.js").write_text("".join(f'user_pref("{name}", false);\n' for name in prefs))
        _run([certutil, "-N", "-d", f"sql:{profile}", "--empty-password"])
        authority = ("-n", "loopback", "-t", "C,,", "-i", str(place.authority))
        _run([certutil, "-A", "-d", f"sql:{profile}", *authority])
        return [program, "--headless", "--no-remote", "--profile", str(profile), place.page(script)]

    return command


def webkit(script: str) -> Command:
    """WebKit without a screen, as `cog` has it, with a page that runs a script."""
    program = packages.program("cog", "cog")
    return lambda place: [program, "--platform=headless", "--ignore-tls-errors", place.page(script)]


def node(package: tuple[str, str], script: Path, *beside: Path) -> Command:
    """A script in Node.js, and those that it imports, copied to where `import` finds the package."""
    folder = npm.package(*package)
    for each in (script, *beside):
        copy = folder / each.parent.name / each.name
        copy.parent.mkdir(exist_ok=True)
        made = copy.with_name(f"{copy.name}.{os.getpid()}")
        shutil.copyfile(each, made)
        made.replace(copy)
    return module(folder / script.parent.name / script.name)


def module(script: Path) -> Command:
    """A script in Node.js."""
    program = shutil.which("node")
    if program is None:
        raise PartMissing("Node.js isn't installed")
    return lambda place: [program, str(script), place.stream]


def python(script: Path, *wanted: str) -> Command:
    """A script that needs packages which aren't ours."""

    def make(folder: Path) -> None:
        if uv := shutil.which("uv"):
            install = [uv, "pip", "install", "--python", sys.executable]
        else:
            # Ours may have no pip.
            own = folder.with_name(f"{folder.name}.venv")
            _run([sys.executable, "-m", "venv", "--clear", str(own)])
            install = [str(own / "bin/python"), "-m", "pip", "install"]
        _run([*install, "-q", "--target", str(folder), *wanted])

    folder = _made("python-clients", "\n".join(wanted).encode(), make)
    return lambda place: ["env", f"PYTHONPATH={folder}", sys.executable, str(script), place.stream]


def kotlin(library: tuple[str, ...], main: str, *sources: Path) -> Command:
    """Compiled Kotlin: the first of `library` names the folder of the jars, which are the others."""
    machine = java()
    folder = jars(*library)

    def make(classes: Path) -> None:
        compiler = [machine, "-Xmx600m", "-cp", _class_path(jars(*KOTLIN))]
        compiler += ["org.jetbrains.kotlin.cli.jvm.K2JVMCompiler", "-no-stdlib", "-no-reflect", "-nowarn"]
        _compile([*compiler, "-classpath", _class_path(folder), "-d", str(classes), *map(str, sources)])

    content = b"".join(source.read_bytes() for source in sources)
    classes = _made("kotlin-clients", "\n".join(library).encode() + content, make)

    def command(place: Place) -> list[str]:
        trust = _trust_store(machine, place)
        path = f"{classes}:{_class_path(folder)}"
        # Small, and without the second compiler: there are many at once, and each has little to do.
        thrift = ("-Xmx64m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
        store = (
            f"-Djavax.net.ssl.trustStore={trust}",
            f"-Djavax.net.ssl.trustStorePassword={_TRUST_PASSWORD}",
        )
        return [machine, *thrift, *store, "-cp", path, main, place.stream]

    return command


def go(source: Path, name: str = "") -> Command:
    """A program of a Go module; `name` is its folder there."""
    program = packages.find("go") or packages.program("go", "golang-go")
    content = b"".join(file.read_bytes() for file in sorted(source.rglob("*")) if file.is_file())

    def make(folder: Path) -> None:
        _run([program, "mod", "download"], cwd=source)
        _compile([program, "build", "-o", f"{folder}/", f"./{name}"], cwd=source)

    folder = _made(f"go-{name or source.name}", content, make)
    built = next(folder.iterdir())
    return lambda place: [str(built), place.stream]


def cargo(source: Path, name: str) -> Command:
    """A program of a Rust crate."""
    program = packages.program("cargo", "cargo")
    target = parts_folder() / "rust-clients"
    _run([program, "fetch", "-q", "--locked"], cwd=source)
    how = ("build", "-q", "--locked", "--offline", "--bins", "--target-dir", str(target))
    _compile([program, *how], cwd=source)
    return lambda place: [str(target / "debug" / name), place.stream]


def _made(name: str, content: bytes, make: Callable[[Path], None]) -> Path:
    """The folder that `make` fills once for a content."""
    folder = parts_folder() / f"{name}-{hashlib.sha256(content).hexdigest()[:12]}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f".{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            making = folder.with_name(f"{folder.name}.{os.getpid()}")
            making.mkdir()
            try:
                make(making)
                making.rename(folder)
            finally:
                shutil.rmtree(making, ignore_errors=True)
    return folder


def _class_path(folder: Path) -> str:
    return ":".join(map(str, sorted(folder.glob("*.jar"))))


def _trust_store(machine: str, place: Place) -> Path:
    """nginx's authority as Java wants it."""
    store = place.folder / "trust.p12"
    keytool = str(Path(machine).resolve().with_name("keytool"))
    how = ("-storetype", "PKCS12", "-storepass", _TRUST_PASSWORD, "-keystore", str(store))
    _run([keytool, "-importcert", "-noprompt", "-alias", "loopback", "-file", str(place.authority), *how])
    return store


def _run(command: Sequence[str], *, cwd: Path | None = None) -> None:
    """Raises PartMissing where it fails."""
    try:
        done = subprocess.run(command, cwd=cwd, check=False, capture_output=True, text=True, timeout=_LIMIT_S)
    except subprocess.TimeoutExpired:
        raise PartMissing(f"{command[0]} didn't end within {_LIMIT_S} s") from None
    if done.returncode:
        raise PartMissing(f"{' '.join(command[:4])}…: {(done.stderr or done.stdout)[-1500:].strip()}")


def _compile(command: Sequence[str], *, cwd: Path | None = None) -> None:
    """Raises PartFailed: the sources are ours."""
    try:
        _run(command, cwd=cwd)
    except PartMissing as error:
        raise PartFailed(str(error)) from None
