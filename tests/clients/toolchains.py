"""Where clients come from: registries and Debian's packages. What can't be had raises PartMissing."""

import shutil
from pathlib import Path

from deploy.parts import PartMissing, packages
from tests.clients.client import Command, Place
from tests.deployed import npm

_CHROMIUM = ("chromium", "chromium-browser", "google-chrome")


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


def node(package: tuple[str, str], script: Path) -> Command:
    """A script in Node.js, beside the package that it imports."""
    folder = npm.package(*package)
    # Where `import` finds it.
    beside = folder / script.parent.name
    beside.mkdir(exist_ok=True)
    copy = beside / script.name
    made = beside / f"{script.name}.new"
    shutil.copyfile(script, made)
    made.replace(copy)
    return module(copy)


def module(script: Path) -> Command:
    """A script in Node.js."""
    program = shutil.which("node")
    if program is None:
        raise PartMissing("Node.js isn't installed")
    return lambda place: [program, str(script), place.stream]
