"""Logging set-up: one line an entry, to standard error, with ids and never payloads or tokens."""

import asyncio
import logging
from typing import Any

from pushsse.visible import visible

FORMAT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"


def configure(level: str) -> None:
    """Sets the process's logging up; called once by the command line."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter(FORMAT))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # Its access log has the query string in it, and with it tickets and users.
    logging.getLogger("uvicorn.access").disabled = True
    logging.getLogger("uvicorn.error").addFilter(_is_news)
    # uvicorn's own words at start and stop say less than ours.
    for noisy in ("httpx", "httpcore", "tortoise", "uvicorn"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # While Kafka is away it says so several times a second; the intake says it once.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)


class _Formatter(logging.Formatter):
    """An entry is one line, but for tracebacks: no text from elsewhere can look like another entry."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """With control characters escaped."""
        # uvicorn passes a traceback as the message.
        record.message = visible(record.message, lines=record.message.startswith("Traceback"))
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:
        """With control characters escaped, but for line ends."""
        return visible(super().formatException(ei), lines=True)


def _is_news(record: logging.LogRecord) -> bool:
    """Whether nothing else says it. uvicorn's words on requests that are cut as the process ends, and on a
    start that failed for a reason that `app` has logged, are left out.
    """
    if record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError):
        return False
    text = record.getMessage()
    ours = text.startswith("Traceback") and text.rstrip().rpartition("\n")[2].startswith("pushsse.errors.")
    return not ours and not text.startswith("Application startup failed")
