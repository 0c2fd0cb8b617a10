"""A message passes as the bytes that were sent, and what can't be JSON, or would break a stream, doesn't."""

import json
import math
import random
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from pushsse import event, strictjson
from pushsse.errors import InvalidInput, NotJson

NUMBERS = [
    "0.1000",
    "1234567890.123456789",
    "0.12345678901234567890",
    "1e3",
    "-0",
    "-0.0",
    "1E+2",
    "1e-400",
    "9" * 4300,
    "0." + "1" * 20_000,
    "18446744073709551616",
]


def body(message: str | bytes, **more: object) -> bytes:
    message = message.encode() if isinstance(message, str) else message
    members = {"type": "a", "to": "all"} | more
    return json.dumps(members).encode()[:-1] + b', "message": ' + message + b"}"


def line(found: event.Event) -> bytes:
    return event.publication(found, event_id="x", at=datetime.now(UTC), max_age_s=60).body


def sent(found: event.Event) -> bytes:
    class Data(msgspec.Struct):
        message: msgspec.Raw

    data = msgspec.json.decode(line(found).removeprefix(b"data: "), type=Data)
    return bytes(data.message)


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("shape", ["%s", "[%s]", '{"a": {"b" : %s}}'])
def test_numbers_pass_to_the_last_digit(number: str, shape: str) -> None:
    message = shape % number
    assert sent(event.decode(body(message))) == message.encode()
    # Also where the event is read the long way, for a member that is left out.
    assert sent(event.decode(body(message, later=1), ignored=lambda _: None)) == message.encode()
    assert sent(event.decode(body(message, later="x" * 100_000), ignored=lambda _: None)) == message.encode()


@pytest.mark.parametrize("more", [{}, {"ts": "2016-12-31T23:59:60Z"}])
def test_line_ends_between_values_become_blanks(more: dict[str, object]) -> None:
    found = event.decode(body('{\r\n  "a":\n 1.0,\n"b\\n": "\\r\\n"\r}', **more))
    assert sent(found) == b'{    "a":  1.0, "b\\n": "\\r\\n" }'
    assert line(found).count(b"\n") == 1


def test_a_member_given_twice_counts_as_its_last() -> None:
    found = event.decode(b'{"type":"a","message":1.0,"to":"all","mess\\u0061ge":2.0}')
    assert sent(found) == b"2.0"


@pytest.mark.parametrize(
    ("message", "refusal"),
    [
        (b'"\\ud800"', InvalidInput),
        (b'"\\ud800\\u0041"', InvalidInput),
        (b'["\\udc00"]', InvalidInput),
        (b'{"\\ud800": 1}', InvalidInput),
        (b'{"a\\u0000": 1}', InvalidInput),
        (b'"\\u0000"', InvalidInput),
        (b'"\\\\\\u0000"', InvalidInput),
        (b'{"a": "\\u0000", "a": 1}', InvalidInput),
        (b'{"a": ' + b"[" * 65 + b"]" * 65 + b', "a": 1}', InvalidInput),
        (b'"a\x00b"', NotJson),
        (b'"a\nb"', NotJson),
        (b'"\xff"', NotJson),
        (b'"\xed\xa0\x80"', NotJson),
        (b'{"\xc0\x80": 1}', NotJson),
        (b"NaN", NotJson),
        (b"-Infinity", NotJson),
        (b"01", NotJson),
        (b"1.", NotJson),
        (b"+1", NotJson),
        (b"[1,]", NotJson),
        (b"1e400", InvalidInput),
        (b"9" * 4301, InvalidInput),
        (b"[" * 65 + b"]" * 65, InvalidInput),
        (b'{"a":' * 65 + b"1" + b"}" * 65, InvalidInput),
        (b"[" * 20_000 + b"]" * 20_000, InvalidInput),
        (b'"' + b"x" * 50_000 + b'"', InvalidInput),
        (b'"' + b"x" * 900_000 + b'"', InvalidInput),
    ],
)
@pytest.mark.parametrize("more", [{}, {"later": 1}, {"later": "x" * 100_000}])
def test_what_would_break_a_stream_is_refused(
    message: bytes, refusal: type[InvalidInput], more: dict[str, object]
) -> None:
    with pytest.raises(InvalidInput) as refused:
        event.decode(body(message, **more), ignored=lambda _: None)
    if len(message) < 10_000:
        assert type(refused.value) is refusal or len(str(more)) > 10_000


@pytest.mark.parametrize("member", ["desc", "campaign", "key"])
def test_nul_is_refused_in_every_text(member: str) -> None:
    with pytest.raises(InvalidInput, match=rf"\$\.{member}: has a NUL"):
        event.decode(body("1", **{member: "a\0b"}))


@pytest.mark.parametrize(
    "message",
    [
        b"[" * 64 + b"1.0" + b"]" * 64,
        b"[" + b'{"[": "[{"},' * 200 + b"[]]",
        b'["\\\\u0000", "\\"[[{{"]',
    ],
)
def test_what_only_looks_like_it_passes(message: bytes) -> None:
    assert sent(event.decode(body(message))) == message


def test_a_body_of_too_many_people_is_refused_and_of_many_taken() -> None:
    people = [f"person-{number}" for number in range(10_001)]
    assert event.decode(body("1.0", to={"users": people[1:]})).users == tuple(people[1:])
    with pytest.raises(InvalidInput, match="people, over 10000"):
        event.decode(body("1", to={"users": people}))


@pytest.mark.parametrize(
    "name", ["", "a b", "a\u3000", "\t", "a\x7f", "\u200b", "\ufeffa", "é\u202e", "x" * 129, "é" * 129]
)
@pytest.mark.parametrize("others", ["person-{}", "人{}"])
def test_one_bad_name_among_many_is_named_as_among_few(name: str, others: str) -> None:
    many = [others.format(number) + "x" * 100 for number in range(2_000)]
    at = 1_234
    said = []
    for people, place in (([*many[:3], name, *many[:3]], 3), ([*many[:at], name, *many[at:]], at)):
        with pytest.raises(InvalidInput) as refused:
            event.decode(body("1", to={"users": people}))
        [violation] = refused.value.violations
        assert violation.at == f"$.to.users[{place}]"
        said.append(violation.detail)
    assert said[0] == said[1]


@pytest.mark.parametrize("to", [{"users": []}, {"users": ["ann"], "groups": []}, "every", 1, {"users": 1}])
def test_another_audience_is_refused_in_a_long_body_as_in_a_short_one(to: object) -> None:
    for blanks in (0, 70_000):
        with pytest.raises(InvalidInput) as refused:
            event.decode(body("1", to=to) + b" " * blanks)
        [violation] = refused.value.violations
        assert violation.at.startswith("$.to")


def accepted(message: bytes) -> object:
    """What the standard library reads, by the rules of the interface; raises ValueError."""
    value = json.loads(message.decode(), parse_constant=_no)
    pairs = json.loads(message.decode(), object_pairs_hook=lambda members: [list(each) for each in members])
    waiting: list[tuple[Any, int]] = [(pairs, 1)]
    while waiting:
        each, depth = waiting.pop()
        if isinstance(each, list):
            if depth > 64 * 2:
                raise ValueError("deep")
            waiting += [(inner, depth + 1) for inner in each]
        elif isinstance(each, str):
            each.encode()
            if "\0" in each:
                raise ValueError("NUL")
        elif isinstance(each, float) and not math.isfinite(each):
            raise ValueError("range")
    return value


def _no(constant: str) -> None:
    raise ValueError(constant)


def made_up(chance: random.Random, depth: int = 0) -> str:
    kind = chance.randrange(8 if depth < 4 else 5)
    blank = chance.choice(["", "", " ", "\n", "\t", "\r\n"])
    if kind == 0:
        return chance.choice(["true", "false", "null", *NUMBERS[:8]])
    if kind == 1:
        digits = "".join(chance.choices("0123456789", k=chance.randint(1, 30)))
        return chance.choice(["", "-"]) + digits + chance.choice(["", ".5", "e3", "E-7", "e", ".", "e999"])
    if kind < 5:
        pieces = [
            "a",
            "é",
            "张",
            "\\n",
            "\\u0041",
            "\\ud83d\\ude00",
            "\\ud800",
            "\\udc00",
            "\\u0000",
            "\\\\",
            '\\"',
        ]
        weights = [9, 5, 5, 5, 5, 5, 1, 1, 1, 5, 5]
        return '"' + "".join(chance.choices(pieces, weights, k=chance.randint(0, 6))) + '"'
    inner = [made_up(chance, depth + 1) for _ in range(chance.randint(0, 3))]
    if kind < 7:
        return "[" + blank + f",{blank}".join(inner) + "]"
    return "{" + ",".join(f'{blank}"{chance.choice("abc")}"{blank}:{each}' for each in inner) + blank + "}"


@pytest.mark.parametrize("seed", range(6))
def test_what_passes_is_what_was_sent_and_what_the_standard_library_reads(seed: int) -> None:
    chance = random.Random(seed)
    passed = 0
    for _ in range(3000):
        message = bytearray(made_up(chance).encode())
        if chance.random() < 0.4 and message:
            at = chance.randrange(len(message))
            message[at : at + chance.randint(0, 2)] = bytes([chance.choice(b'"\\[]{}:,0e.-\x00\xff\xc3 n')])
        given = bytes(message)
        try:
            wanted, is_json = accepted(given), True
        except (ValueError, RecursionError):
            wanted, is_json = None, False
        try:
            found = sent(event.decode(body(given)))
        except InvalidInput:
            assert not is_json, given
            continue
        # A mutation may end the message and begin another member.
        if is_json:
            passed += 1
            assert found == given.strip().translate(bytes.maketrans(b"\r\n", b"  ")), given
            assert json.loads(found) == wanted
        else:
            accepted(found)
    assert passed > 300


def cpu_s(work: Callable[[], object]) -> float:
    def once() -> float:
        began = time.process_time()
        with pytest.raises(InvalidInput):
            work()
        return time.process_time() - began

    return min(once() for _ in range(3))


@pytest.mark.parametrize(
    "make",
    [
        lambda many: b'{"' + b"k" * many + b'":[' + b'{"a":"b"},' * (many // 10) + b'"\\u0000"]}',
        lambda many: b"[" * 60 + b'"a",' * (many // 2) + b'"\\u0000"' + b"]" * 60,
        lambda many: b'"' + "é".encode() * many + b'\\ud800"',
    ],
    ids=["a long name over many values", "many texts far inside", "a long text"],
)
def test_refusing_costs_as_much_as_there_is(make: Callable[[int], bytes]) -> None:
    few, many = make(4_000), make(32_000)
    assert cpu_s(lambda: strictjson.loads(many)) < 24 * cpu_s(lambda: strictjson.loads(few)) + 0.002
