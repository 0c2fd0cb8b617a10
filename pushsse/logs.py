"""Logging set-up: one line an entry, to standard error, with ids and never payloads or tokens."""

import asyncio
import logging

FORMAT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"


def configure(level: str) -> None:
    """Sets the process's logging up; called once by the command line."""
    logging.basicConfig(level=level.upper(), format=FORMAT, force=True)
    # Its access log has the query string in it, and with it tickets and users.
    logging.getLogger("uvicorn.access").disabled = True
    logging.getLogger("uvicorn.error").addFilter(_is_news)
    # uvicorn's own words at start and stop say less than ours.
    for noisy in ("httpx", "httpcore", "tortoise", "uvicorn"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # While Kafka is away it says so several times a second; the intake says it once.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)


def _is_news(record: logging.LogRecord) -> bool:
    """Whether nothing else says it. uvicorn's words on requests that are cut as the process ends, and on a
    start that failed for a reason that `app` has logged, are left out.
    """
    if record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError):
        return False
    text = record.getMessage()
    ours = text.startswith("Traceback") and text.rstrip().rpartition("\n")[2].startswith("pushsse.errors.")
    return not ours and not text.startswith("Application startup failed")
