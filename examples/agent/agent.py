"""A small agent for pushsse's `python:` answerer: it runs in the node's process and needs nothing else.

    cd examples/agent && PUSHSSE_ANSWERER=python:agent:answer pushsse serve
    pushsse ask "Where is my order 17?" --user ann

Put your own in the place of `tools`: LangGraph's `astream`, Pydantic AI's `run_stream`, or any client of a
model. What it yields is shown as it comes.
"""

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Any

ORDERS = {"17": ("on its way", "2026-12-01"), "18": ("being packed", "2026-12-03")}


async def answer(question: Any) -> AsyncIterator[str | dict[str, Any]]:
    """Answers one question. `question.turns` are the conversation's last ones, the oldest first."""
    if re.search(r"\b(human|person|agent|人工)\b", question.text, re.IGNORECASE):
        yield {"handover": "they asked for a person"}
        return
    number = order_in(question.text) or next(
        (found for turn in reversed(question.turns) if (found := order_in(turn.question))), None
    )
    if number is None:
        # The next answerer is asked; without one, the person gets these suggestions.
        yield {"suggestions": ["Where is my order 17?", "Where is my order 18?"]}
        yield {"unsure": True}
        return
    yield {"status": f"looking up order {number}…"}
    found = await look_up(number)
    if found is None:
        yield f"There is no order {number}."
        return
    state, day = found
    for word in f"Your order {number} is {state}. It arrives on {day}.".split(" "):
        yield f"{word} "
        await asyncio.sleep(0.05)
    yield {"source": {"title": f"Order {number}", "url": f"/orders/{number}"}}
    yield {"data": {"name": "order", "data": {"number": number, "state": state, "arrives": day}}}


def order_in(text: str) -> str | None:
    """The number of an order that a text is about."""
    found = re.search(r"\border\D{0,20}(\d{1,9})\b", text, re.IGNORECASE)
    return found[1] if found else None


async def look_up(number: str) -> tuple[str, str] | None:
    """A tool: a database or another service, awaited, so that nobody else has to wait."""
    await asyncio.sleep(0.3)
    return ORDERS.get(number)
