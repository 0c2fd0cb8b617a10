"""`python:PACKAGE:FUNCTION`: a function of the operator's own, found when the process starts.

Called by the answerer and by the format of that name. Deliberate: such a function runs on the node's event
loop. `LoopWatch` measures it, and logs where it holds up every stream of the node.
"""

import importlib
import logging
import sys
import time
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

from pushsse.errors import SettingsError

logger = logging.getLogger(__name__)
_QUIET_S = 60.0


def function(name: str, where: str) -> object:
    """What PACKAGE:FUNCTION names, also in the folder that the process was started in.

    Raises SettingsError, which begins with `where`.
    """
    package, _, path = name.partition(":")
    if not package or not path:
        raise SettingsError(f"{where}: python:{name} isn't python:PACKAGE:FUNCTION")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found: object = attrgetter(path)(importlib.import_module(package))
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"{where}: python:{name}: there is no module {error.name!r}, neither in {here} nor installed"
        ) from None
    except AttributeError:
        raise SettingsError(f"{where}: python:{name}: {package} has no {path}") from None
    except Exception as error:
        # Whatever a module of somebody else's does when it is imported.
        logger.exception("python:%s can't be imported", name)
        raise SettingsError(
            f"{where}: python:{name} can't be imported: {type(error).__name__}: {error}"
        ) from None
    return found


@dataclass(slots=True)
class LoopWatch:
    """Notices where a function holds the event loop for more than `most_s`, and says so once a minute.

    `advice` says what to do instead.
    """

    name: str
    most_s: float
    advice: str
    _quiet_until: float = 0.0

    def ran(self, seconds: float) -> None:
        """So long the function ran without giving way."""
        if seconds < self.most_s or time.monotonic() < self._quiet_until:
            return
        self._quiet_until = time.monotonic() + _QUIET_S
        logger.warning(
            "python: %s held the event loop for %.2f s, and with it every stream of this node: %s",
            self.name,
            seconds,
            self.advice,
        )
