"""The format `python:`: what a function may return, what it may not, and records that are several events."""

import json
import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import pytest

from pushsse.backplane import BROADCAST, Draft, log_of
from pushsse.backplane.memory import MemoryBackplane
from pushsse.dispatcher import Dispatcher, SwitchedOff
from pushsse.errors import InvalidInput, SettingsError
from pushsse.intake import EventHandler, Made, PythonFormat, python_format
from pushsse.metrics import Metrics
from tests.intake.kit import drafter
from tests.intake.test_decode import Given, body


def made(name: str) -> PythonFormat:
    return python_format(f"tests.intake.decoders:{name}", "kafka 1: format", drafter(refused="refused"))


def told(text: str) -> Made | None:
    return made("as_told")(Given(text.encode()), "owner")


def refusal(text: str) -> tuple[str, str]:
    with pytest.raises(InvalidInput) as error:
        told(text)
    return error.value.violations[0].at, error.value.violations[0].detail


def test_a_dict_is_an_event() -> None:
    draft = made("one")(Given(b'{"n": 1}'), "owner")
    assert isinstance(draft, Draft)
    assert (body(draft)["id"], body(draft)["message"], draft.once) == ("orders-2-5", {"n": 1}, "")


def test_a_dict_may_only_take_others_away() -> None:
    draft = told("{'type': 'order', 'to': 'all', 'withdraw': 'order-981'}")
    assert isinstance(draft, Draft)
    assert (draft.publication.name, draft.publication.collapse) == ("pushsse.withdraw", "order-981")


def test_none_and_nothing_skip_a_record_and_one_without_a_value_is_the_functions_to_skip() -> None:
    assert told("None") is None
    assert told("[]") is None
    assert made("one")(Given(None), "owner") is not None


def test_several_events_of_a_record_have_ids_of_their_own() -> None:
    drafts = told(
        '[{"type": "a", "message": 1, "to": "all"}, {"type": "a", "message": 2, "to": "all", "id": "x"}]'
    )
    assert isinstance(drafts, list)
    assert [body(each)["id"] for each in drafts] == ["orders-2-5.1", "x"]
    # Known by the record's place, and by the producer's own id.
    assert [each.once for each in drafts] == ["", "a|x"]


@pytest.mark.parametrize(
    ("text", "at", "detail"),
    [
        ("7", "python", "returned int, not a dict, a list of dicts, or None"),
        ("'text'", "python", "returned str"),
        ("[7]", "python[0]", "returned int"),
        ("{7: 1}", "python", "a key that is int"),
        ("{'type': 'a', 'to': 'all'}", "python.message", "is required"),
        (
            "{'message': 1, 'type': 'a', 'to': 'all', 'collapse': 'k', 'withdraw': 'k'}",
            "python.withdraw",
            "beside",
        ),
        ("{'message': 1, 'to': 'all'}", "python.type", "is required"),
        ("{'message': {1, 2}.__class__, 'to': 'all', 'type': 'a'}", "python.message", "isn't JSON"),
        ("{'message': '\\ud800', 'to': 'all', 'type': 'a'}", "python.message", "isn't JSON"),
        ("{'message': 1, 'to': 'everybody', 'type': 'a'}", "python.to", "everybody"),
        ("[{'message': 1, 'to': 'all', 'type': 'a', 'typ': 1}]", "python[0].typ", "isn't known here"),
        ("[{'message': 1, 'to': 'all', 'type': 'a'}] * 101", "python", "101 events for one record"),
        (
            "[{'message': 1, 'to': {'users': ['u%d' % n for n in range(6000)]}, 'type': 'a'}] * 2",
            "python",
            "12000 people for one record",
        ),
        ("1 / 0", "python", "raised ZeroDivisionError: division by zero"),
    ],
)
def test_what_a_function_may_not_return_is_named(text: str, at: str, detail: str) -> None:
    found = refusal(text)
    assert (found[0], detail in found[1]) == (at, True), found


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("tests.intake.decoders:nope", "tests.intake.decoders has no nope"),
        ("no_such_module:decode", "there is no module 'no_such_module'"),
        ("tests.intake.decoders", "isn't python:PACKAGE:FUNCTION"),
        ("tests.intake.decoders:NO_FUNCTION", "is int, not a function"),
        ("tests.intake.decoders:asynchronous", "has to be a plain function"),
        ("tests.intake.decoders:generating", "has to be a plain function"),
        ("tests.intake.decoders:without_a_record", "has to take one argument"),
    ],
)
def test_what_is_no_such_function_refuses_the_start(name: str, error: str) -> None:
    with pytest.raises(SettingsError, match=f"^kafka 1: format: python:.*{error}"):
        python_format(name, "kafka 1: format", drafter())


def test_a_function_that_holds_the_loop_is_logged_once_in_a_while(caplog: pytest.LogCaptureFixture) -> None:
    decode = made("as_told")
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            decode(Given(b"__import__('time').sleep(0.03)"), "owner")
    [line] = [record.message for record in caplog.records if "held the event loop" in record.message]
    assert line.startswith("python: tests.intake.decoders:as_told held the event loop for 0.")


@dataclass
class Switches:
    """Nobody has anything off."""

    noticed: list[str] = field(default_factory=list)

    async def off_among(self, users: Sequence[str], types: Sequence[str]) -> SwitchedOff:
        return frozenset()

    def off_among_nowait(self, users: Sequence[str], name: str) -> SwitchedOff | None:
        return frozenset()

    def notice(self, names: Iterable[str]) -> None:
        self.noticed += names


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_record_of_several_events_is_applied_whole_and_once() -> None:
    metrics = Metrics()
    backplane = MemoryBackplane(shards=4, keep_s=3600, keep_bytes=1024**2, metrics=metrics)
    switches = Switches()
    dispatcher = Dispatcher(backplane=backplane, switches=switches, types=switches, metrics=metrics)
    decode = made("several")
    handler = EventHandler(decode, dispatcher)
    async with backplane:
        await backplane.claim("orders", 2, "owner")

        async def numbers(log: str) -> list[int]:
            page = await backplane.read({log: 0}, limit=100)
            bodies = [entry.publication.body.removeprefix(b"data: ") for entry in page.entries]
            return [json.loads(each)["message"]["n"] for each in bodies]

        records = [Given(b"1", offset=offset, timestamp=round(time.time() * 1000)) for offset in (5, 6)]
        for _ in range(2):
            # The second time is that of a node that took the partition over before the offset was committed.
            items = [item for record in records if (item := decode(record, "owner")) is not None]
            await handler.apply(items)
        assert await numbers(BROADCAST) == [1, 3, 1, 3]
        assert await numbers(log_of("ann", 4)) == [0, 2, 4, 0, 2, 4]
        expected = [0, 2, 4, 0, 2, 4] if log_of("ann", 4) == log_of("bo", 4) else [2, 2]
        assert await numbers(log_of("bo", 4)) == expected
    assert metrics.fenced == metrics.appended
