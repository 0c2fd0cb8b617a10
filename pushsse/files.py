"""Says that a process is out of open files, and what to do: once a minute, not once a connection.

Used by the server. Each stream takes one file. Deliberate: uvloop closes a connection that it has no file for
without a word, and asyncio logs a traceback for each try; so one is looked for, and the other held back.
"""

import asyncio
import errno
import logging
import os
import resource
import time
from collections.abc import Callable
from typing import Any

log = logging.getLogger(__name__)
_OUT = (errno.EMFILE, errno.ENFILE)
_EVERY_S = 60.0


class OpenFiles:
    """The open files of one process; `streams` says how many of them are streams."""

    def __init__(self, streams: Callable[[], int]) -> None:
        self._streams = streams
        self._said_at: float | None = None

    def check(self) -> None:
        """Looks whether one more file could be opened."""
        try:
            os.close(os.dup(2))
        except OSError as error:
            if error.errno in _OUT:
                self._say(error)

    def hear(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """What the loop has to say of errors that nobody awaits; that there are no files is said here."""
        error = context.get("exception")
        if isinstance(error, OSError) and error.errno in _OUT:
            self._say(error)
        else:
            loop.default_exception_handler(context)

    def _say(self, error: OSError) -> None:
        now = time.monotonic()
        if self._said_at is not None and now < self._said_at + _EVERY_S:
            return
        self._said_at = now
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if error.errno == errno.ENFILE:
            whose = "this machine has none left (fs.file-max)"
        else:
            whose = f"this process may have {limit}, and {self._streams()} of them are streams"
        log.error(
            "out of open files: %s; new connections are refused until some are closed;"
            " raise the limit (ulimit -n, LimitNOFILE= in systemd) or set PUSHSSE_MAX_STREAMS",
            whose,
        )
