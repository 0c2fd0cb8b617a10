"""An answerer for the client's tests: it says what it is asked to say, word by word, when it may."""

import asyncio
from collections.abc import AsyncIterator

from pushsse.questions.answerers.python import Asked


class Gate:
    """Opened by a test: no word comes before that. Each test has a loop of its own."""

    def __init__(self) -> None:
        self._open = asyncio.Event()

    def clear(self) -> None:
        """Closes it."""
        self._open = asyncio.Event()

    def set(self) -> None:
        """Opens it."""
        self._open.set()

    async def wait(self) -> None:
        """Waits until it is open."""
        await self._open.wait()


go_on = Gate()


async def answer(question: Asked) -> AsyncIterator[object]:
    """`say: a b c` says three words, `wait: a b c` waits after the first, `fail:` fails."""
    how, _, text = question.text.partition(": ")
    if how == "fail":
        yield {"error": "no idea"}
        return
    for number, word in enumerate(text.split()):
        if number == 1 and how == "wait":
            yield {"status": "thinking"}
            await go_on.wait()
        yield f"{word} "
    yield {"source": {"title": "A book", "url": "/book"}}
