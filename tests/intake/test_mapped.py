"""The format `mapped`: what expressions make of records, and what is refused, at the start and later."""

import contextlib
import json
import time
from pathlib import Path
from typing import Any

import jmespath
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jmespath.exceptions import JMESPathError
from jmespath.visitor import TreeInterpreter

from pushsse import build
from pushsse.backplane import Draft
from pushsse.errors import InvalidInput, SettingsError
from pushsse.intake import MAX_VALUE_BYTES
from pushsse.intake.mapped import MAX_STEPS, MappedFormat, compiled, evaluation
from pushsse.settings import KafkaMap, KafkaSource, load
from tests.intake.kit import drafter
from tests.intake.test_decode import Given, body

ORDER = {"orderNo": "A-981", "status": "paid", "buyerId": "ann", "notify": True, "total": 12.5}
ORDERS = {
    "when": "value.notify",
    "type": "join('.', ['order', value.status])",
    "to": "value.buyerId",
    "id": "join('-', [value.orderNo, value.status])",
}


def mapped(**expressions: str) -> MappedFormat:
    table = KafkaSource(topics=("orders",), format="mapped", map=KafkaMap(**expressions), where="kafka 1")
    return MappedFormat(compiled(table), drafter(refused="refused"))


def simple(**expressions: str) -> MappedFormat:
    return mapped(**({"type": "'order'", "to": "'all'"} | expressions))


def decoded(decode: MappedFormat, value: object, **more: Any) -> Draft:
    draft = decode(Given(value if isinstance(value, bytes) else json.dumps(value).encode(), **more), "owner")
    assert draft is not None
    return draft


def refusal(decode: MappedFormat, value: object) -> tuple[str, str]:
    with pytest.raises(InvalidInput) as error:
        decoded(decode, value)
    [violation] = error.value.violations
    return violation.at, violation.detail


def test_a_record_becomes_the_event_that_the_expressions_say() -> None:
    draft = decoded(mapped(**ORDERS), ORDER)
    assert draft.publication.users == ("ann",)
    assert draft.once == "order.paid|A-981-paid"
    found = body(draft)
    assert (found["type"], found["id"], found["message"]) == ("order.paid", "A-981-paid", ORDER)


@pytest.mark.parametrize("notify", [False, None, "", [], {}])
def test_a_record_whose_when_is_false_is_skipped(notify: object) -> None:
    assert mapped(**ORDERS)(Given(json.dumps(ORDER | {"notify": notify}).encode()), "owner") is None


def test_a_record_without_a_value_is_skipped() -> None:
    assert mapped(**ORDERS)(Given(None), "owner") is None


def test_a_message_that_a_path_leads_to_is_the_bytes_that_were_sent() -> None:
    value = b'{"a": {"b": {"n": 1.10, "big": 12345678901234567890.5}}, "c": 1}'
    for expression, sent in [("value", value), ("value.a.b", b'{"n": 1.10, "big": 12345678901234567890.5}')]:
        draft = decoded(simple(message=expression), value)
        assert b'"message":' + sent in draft.publication.body
    assert body(decoded(simple(message="{c: value.c}"), value))["message"] == {"c": 1}
    assert body(decoded(simple(message="value.c"), b"\xef\xbb\xbf" + value))["message"] == 1


@pytest.mark.parametrize(
    ("to", "value", "users"),
    [
        ("'all'", {}, None),
        ("value.public && 'all' || value.user", {"public": True}, None),
        ("value.public && 'all' || value.user", {"user": "ann"}, ("ann",)),
        ("value.user", {"user": 42}, ("42",)),
        ("value.users", {"users": ["ann", 7]}, ("ann", "7")),
        ("value.to", {"to": {"users": ["ann"]}}, ("ann",)),
        ("value.members[*].name", {"members": [{"name": "ann"}, {"name": "bo"}]}, ("ann", "bo")),
        ("key", {}, ("ann",)),
        ("headers.user", {}, ("bo",)),
    ],
)
def test_people_are_named_in_many_ways(to: str, value: object, users: tuple[str, ...] | None) -> None:
    draft = decoded(simple(to=to), value, key=b"ann", headers=[("user", b"bo")])
    assert draft.publication.users == users


def test_somebody_called_all_is_one_person() -> None:
    assert decoded(simple(to="value.user"), {"user": "all"}).publication.users == ("all",)


@pytest.mark.parametrize("when", ["2026-11-23T08:00:00Z", 1795420800, 1795420800000, "1795420800000"])
def test_times_are_texts_seconds_or_milliseconds(when: object) -> None:
    assert body(decoded(simple(ts="value.at"), {"at": when}))["ts"] == "2026-11-23T08:00:00Z"


def test_other_members_have_their_kinds() -> None:
    decode = simple(ttl_s="value.ttl", desc="value.n", campaign="topic", ts="timestamp")
    draft = decoded(decode, {"ttl": "60", "n": 7})
    assert draft.publication.expires_ms == 1_700_000_060_000
    assert body(draft)["desc"] == "7"


@pytest.mark.parametrize(
    ("expressions", "value", "at", "details"),
    [
        ({"type": "value.kind"}, {"a": 1}, "map.type", ["`value.kind` gives null", '{"a": 1}']),
        ({"type": "value.kind"}, {"kind": ""}, "map.type", ['gives ""']),
        ({"type": "value.kind"}, {"kind": True}, "map.type", ["gives true, which is no text"]),
        ({"type": "value.kind"}, {"kind": "a b"}, "$.type", ["isn't an event type"]),
        ({"to": "value.user"}, {}, "map.to", ["`value.user` gives null"]),
        ({"to": "value.user"}, {"user": []}, "$.to.users", ["length >= 1"]),
        ({"to": "value.user"}, {"user": [None]}, "$.to.users[0]", ["got null"]),
        ({"type": "join('.', value.parts)"}, {"parts": [1]}, "map.type", ["fails: In function join()"]),
        ({"when": "value.a < 'x'"}, {"a": 1}, "map.when", ["`value.a < 'x'` fails", "'<' not supported"]),
        ({"message": "value.part"}, {"x": 1}, "map.message", ["`value.part` gives null"]),
        ({"ts": "value.at"}, {"at": "yesterday"}, "$.ts", ["isn't a time with a zone"]),
        ({"ts": "value.at"}, {"at": 1e300}, "map.ts", ["no time"]),
        ({"ttl_s": "value.ttl"}, {"ttl": "soon"}, "map.ttl_s", ["no number of seconds"]),
        ({"desc": "value.a"}, {"a": "\x00"}, "$.a", ["NUL"]),
    ],
)
def test_what_expressions_get_wrong_is_a_dead_letter_with_what_they_saw(
    expressions: dict[str, str], value: object, at: str, details: list[str]
) -> None:
    found = refusal(simple(**expressions), value)
    assert found[0] == at
    for detail in details:
        assert detail in found[1]


def test_a_record_of_a_schema_registry_is_named_as_one() -> None:
    at, detail = refusal(simple(), b"\0\0\0\0\x07\x02a")
    assert at == "value"
    assert "schema registry" in detail
    assert "python:" in detail


@pytest.mark.parametrize(
    ("expressions", "error"),
    [
        ({"type": "value."}, "map.type: 'value.' isn't JMESPath"),
        ({"type": "nope(value)"}, "map.type: 'nope\\(value\\)': there is no function nope\\(\\), only abs"),
        ({"type": "join('.')"}, "join\\(\\) takes 2 arguments, not 1"),
        ({"type": "status"}, "a record has no 'status', it has key, value, .*; write value.status"),
        ({"type": "value.a || order.paid"}, "a record has no 'order'"),
        ({"to": ""}, "map.to: is missing"),
        ({"type": ""}, "map.type: is missing"),
    ],
)
def test_a_map_that_cant_work_is_refused_at_once(expressions: dict[str, str], error: str) -> None:
    with pytest.raises(SettingsError, match=error):
        simple(**expressions)


def test_the_start_is_refused_with_the_line_of_the_expression(tmp_path: Path) -> None:
    file = tmp_path / "pushsse.toml"
    file.write_text(
        'kafka_bootstrap = "localhost:9092"\n[[kafka]]\ntopics = ["orders"]\nformat = "mapped"\n'
        '[kafka.map]\nto = "value.user"\ntype = "value.["\n'
    )
    with pytest.raises(SettingsError, match=r"kafka 1 in .*: map.type \(line 7\): 'value.\[' isn't JMESPath"):
        build.check(load({}, file=file))
    file.write_text(file.read_text().replace("type =", "tipe ="))
    with pytest.raises(
        SettingsError, match=r"kafka 1 in .*: map.tipe \(line 7\): table contains unknown field"
    ):
        load({}, file=file)


NAMES = st.sampled_from(["a", "b", "c"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.sampled_from(["", "x", "all", "1"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=12,
)
EXPRESSIONS = st.recursive(
    st.sampled_from(["a", "a.b", "b.c.a", "@", "'x'", "`1`", "`[1]`", "a[0]", "a[*].b", "a[?b].c", "*"]),
    lambda inner: (
        st.builds("{} || {}".format, inner, inner)
        | st.builds("({}) && ({})".format, inner, inner)
        | st.builds("!({})".format, inner)
        | st.builds("({}) == ({})".format, inner, inner)
        | st.builds("({}) != ({})".format, inner, inner)
        | st.builds("({}) < ({})".format, inner, inner)
        | st.builds("[{}, {}]".format, inner, inner)
        | st.builds("{{k: {}}}".format, inner)
        | st.builds("join('-', {})".format, inner)
        | st.builds("to_string({})".format, inner)
        | st.builds("not_null({}, {})".format, inner, inner)
        | st.builds("({}) | ({})".format, inner, inner)
        | st.builds("a[?{}]".format, inner)
        | st.builds("map(&{}, a)".format, inner)
    ),
    max_leaves=5,
)


@given(EXPRESSIONS, VALUES)
def test_expressions_give_what_jmespath_gives(text: str, value: object) -> None:
    def given_by(evaluate: Any) -> object:
        try:
            return repr(evaluate(value))
        except (JMESPathError, TypeError) as error:
            # jmespath's own interpreter compares a text with a number, and fails.
            return type(error)

    compiled_once = jmespath.compile(text)
    ours = given_by(evaluation(compiled_once.parsed, TreeInterpreter()))
    assert ours == given_by(compiled_once.search)


HOSTILE = {
    "too long": b'{"a":"' + b"x" * MAX_VALUE_BYTES + b'"}',
    "zeros": b'{"a":[' + b"0," * 131_000 + b"0]}",
    "commas in a text": b'{"a":"' + b"," * 262_000 + b'"}',
    "quotes in a text": b'{"a":"' + b'\\",' * 87_000 + b'"}',
    "quotes without an end": b'{"a":"' + b'"\\' * 131_000,
    "objects": b'{"a":[' + b'{"b":1},' * 9_900 + b"0]}",
    "members": b'{"a":{' + b",".join(b'"%d":1' % n for n in range(19_990)) + b"}}",
    "deep": b'{"a":[' + b",".join([b"[" * 80 + b"]" * 80] * 240) + b"]}",
    "numbers": b'{"a":[' + b"0," * 19_980 + b"0]}",
    "long numbers": b'{"a":[' + b",".join([b"9" * 4000] * 60) + b"]}",
    "broken at its end": b'{"a":[' + b"0," * 19_980 + b"0]",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_no_value_holds_the_loop(name: str) -> None:
    decode = simple(
        type="not_null(value.a[*].b | [0], 'order')",
        desc="to_string(length(value.a[?b] || `[]`))",
        message="value.a[?b].b",
    )
    assert len(HOSTILE[name]) <= MAX_VALUE_BYTES or name == "too long"
    spent_s = []
    for _ in range(5):
        began = time.thread_time()
        with contextlib.suppress(InvalidInput):
            decoded(decode, HOSTILE[name])
        spent_s.append(time.thread_time() - began)
    assert min(spent_s) < 0.02


def test_expressions_have_so_many_steps_for_one_record() -> None:
    decode = simple(desc="to_string(length(value[*].a))")
    assert body(decoded(decode, [{"a": 1}] * (MAX_STEPS // 4)))["desc"] == str(MAX_STEPS // 4)
    at, detail = refusal(decode, [{"a": 1}] * MAX_STEPS)
    assert at == "map.desc"
    assert f"more than {MAX_STEPS} steps" in detail
    # The next record has all of them again.
    decoded(decode, [{"a": 1}])


def test_a_map_may_say_what_an_event_replaces_or_takes_away() -> None:
    decode = simple(collapse="value.open && value.order || ''", withdraw="!(value.open) && value.order || ''")
    made = decoded(decode, {"open": True, "order": 981})
    assert made.publication.collapse == "981"
    made = decoded(decode, {"open": False, "order": 981})
    assert (made.publication.name, made.publication.collapse) == ("pushsse.withdraw", "981")
