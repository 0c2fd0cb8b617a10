"""Who answers in the benchmark, within the node: what it says is told by the question's text.

"once": one delta with the time, then the end. "talk 5": twenty deltas a second for so many seconds, each with
the time. "silent": an empty answer. "wait": nothing, for ever.
"""

import asyncio
import time
from collections.abc import AsyncGenerator

from pushsse.questions.answerers.python import Asked

PER_S = 20


async def answer(question: Asked) -> AsyncGenerator[str, None]:
    """Called by the node for each question."""
    word, _, seconds = question.text.partition(" ")
    if word == "wait":
        await asyncio.Event().wait()
    if word == "once":
        yield f"{time.time_ns()} "
        await asyncio.sleep(0.2)
    loop = asyncio.get_running_loop()
    began = loop.time()
    for number in range(int(seconds or 0) * PER_S):
        yield f"{time.time_ns()} and some words of an answer; "
        await asyncio.sleep(max(0.0, began + (number + 1) / PER_S - loop.time()))
