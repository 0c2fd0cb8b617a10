"""The format `cloudevents`: what the SDK makes is read in both modes, and what is missing is named."""

import base64
import json
import time
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from cloudevents.core.bindings import kafka
from cloudevents.core.v1.event import CloudEvent

from pushsse.backplane import Draft
from pushsse.errors import InvalidInput
from pushsse.intake.cloudevents import CloudEventsFormat
from pushsse.intake.mapped import compiled
from pushsse.settings import KafkaMap, KafkaSource
from tests.intake.kit import drafter
from tests.intake.test_decode import Given, body

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
ATTRIBUTES = {
    "type": "com.shop.order.paid",
    "source": "/shop/orders",
    "id": "981",
    "subject": "order-981",
    "time": datetime(2026, 11, 23, 8, tzinfo=UTC),
    "pushsseto": "ann,bo",
    "traceparent": TRACE,
}
DATA = {"orderNo": "A-981", "total": 12.5}


def cloud_event(data: Any = DATA, **more: Any) -> CloudEvent:
    attributes = {name: value for name, value in (ATTRIBUTES | more).items() if value is not None}
    return CloudEvent(attributes, data)


def given(message: kafka.KafkaMessage) -> Given:
    return Given(message.value, key=None, headers=list(message.headers.items()))


def structured(**attributes: object) -> Given:
    """As JSON, without the SDK, which refuses what these tests are about."""
    whole = {"specversion": "1.0", "data": DATA, "pushsseto": "ann"} | ATTRIBUTES
    whole |= {"time": "2026-11-23T08:00:00Z"} | attributes
    value = json.dumps({name: each for name, each in whole.items() if each is not None}).encode()
    return Given(value, headers=[("Content-Type", b"application/cloudevents+json; charset=UTF-8")])


def binary(value: bytes = b"1", **headers: bytes | None) -> Given:
    whole: dict[str, bytes | None] = {
        "ce_specversion": b"1.0",
        "ce_type": b"order",
        "ce_source": b"/shop",
        "ce_id": b"1",
        "ce_pushsseto": b"ann",
    }
    whole |= {name.replace("content_type", "content-type"): each for name, each in headers.items()}
    return Given(value, headers=[(name, each) for name, each in whole.items() if each is not None])


def decoded(record: Given, **expressions: str) -> Draft:
    draft = decode(**expressions)(record, "owner")
    assert draft is not None
    return draft


def decode(**expressions: str) -> CloudEventsFormat:
    if not expressions:
        return CloudEventsFormat(drafter(refused="refused"))
    table = KafkaSource(topics=("orders",), format="cloudevents", map=KafkaMap(**expressions))
    return CloudEventsFormat(drafter(refused="refused"), compiled(table, required=()))


@pytest.mark.parametrize("to_message", [kafka.to_structured_event, kafka.to_binary_event])
def test_what_the_sdk_makes_is_an_event_in_both_modes(to_message: Any) -> None:
    draft = decoded(given(to_message(cloud_event())))
    assert draft.publication.users == ("ann", "bo")
    assert draft.publication.trace == TRACE
    assert draft.once == "|12|/shop/orders|981"
    assert body(draft) == {
        "id": "/shop/orders|981",
        "type": "com.shop.order.paid",
        "message": DATA,
        "desc": "order-981",
        "ts": "2026-11-23T08:00:00Z",
    }


@pytest.mark.parametrize("to_message", [kafka.to_structured_event, kafka.to_binary_event])
@pytest.mark.parametrize(
    ("data", "media", "message"),
    [
        ("hello", "text/plain", "hello"),
        (b"<a/>", "text/xml", "<a/>"),
        (b'{"n": 1}', "application/vnd.shop+json", {"n": 1}),
        (b'{"n": 1}', None, {"n": 1}),
        (None, None, None),
    ],
)
def test_data_is_json_or_text_by_its_media_type(
    to_message: Any, data: object, media: str | None, message: object
) -> None:
    draft = decoded(given(to_message(cloud_event(data, datacontenttype=media))))
    assert body(draft)["message"] == message


@pytest.mark.parametrize(
    ("pushsseto", "users"),
    [
        ("all", None),
        ("ann", ("ann",)),
        ("ann, bo", ("ann", "bo")),
        ('["ann","bo"]', ("ann", "bo")),
        ('{"users":["all"]}', ("all",)),
        (["ann", "bo"], ("ann", "bo")),
    ],
)
def test_the_audience_is_an_extension(pushsseto: object, users: tuple[str, ...] | None) -> None:
    assert decoded(structured(pushsseto=pushsseto)).publication.users == users
    if isinstance(pushsseto, str):
        assert decoded(binary(ce_pushsseto=pushsseto.encode())).publication.users == users


def test_a_structured_one_without_its_content_type_is_recognized_by_its_specversion() -> None:
    assert decoded(replace(structured(), headers=())).publication.name == "com.shop.order.paid"


@pytest.mark.parametrize("name", ["specversion", "id", "source", "type"])
@pytest.mark.parametrize("value", [None, ""])
def test_a_required_attribute_that_is_missing_is_named(name: str, value: str | None) -> None:
    header: dict[str, Any] = {f"ce_{name}": None if value is None else value.encode()}
    for record, place in (
        (structured(**{name: value}), f"$.{name}"),
        (binary(**header), f"header ce_{name}"),
    ):
        with pytest.raises(InvalidInput) as error:
            decoded(record)
        assert error.value.violations[0].at == place
        assert ("missing" if value is None else "empty") in error.value.violations[0].detail


@pytest.mark.parametrize(
    ("record", "at", "detail"),
    [
        (structured(specversion="0.3"), "$.specversion", "only 1.0"),
        (structured(id=7), "$.id", "expected `str"),
        (structured(time="yesterday"), "$.time", "isn't a time with a zone"),
        (structured(type="a/b"), "$.type", "isn't an event type"),
        (structured(pushsseto=None), "$.pushsseto", "a map with `to`"),
        (structured(pushsseto="a b"), "$.pushsseto", "isn't a person's name"),
        (structured(expirytime="2026-11-23T07:00:00Z"), "$.expirytime", "isn't after time"),
        (structured(expirytime="soon"), "$.expirytime", "RFC 3339"),
        (structured(expirytime="0001-01-01T00:00:00Z"), "$.expirytime", "must lie between 1970"),
        (structured(time=None, expirytime="0001-01-01T00:00:00Z"), "$.expirytime", "must lie between 1970"),
        (structured(time=None, expirytime="0001-01-01T00:00:00+14:00"), "$.expirytime", "must lie"),
        (structured(time=None, expirytime="9999-12-31T23:59:59-14:00"), "$.expirytime", "must lie"),
        (structured(time="1960-01-01T00:00:00Z"), "$.time", "must lie between 1970"),
        (binary(ce_time=b"1960-01-01T00:00:00Z"), "header ce_time", "must lie between 1970"),
        (structured(type="refused"), "$.type", "isn't in the catalogue"),
        (binary(ce_type=b"refused"), "header ce_type", "isn't in the catalogue"),
        (structured(subject="a\0b"), "$.subject", "has a NUL character, got"),
        (structured(partitionkey="a\0b"), "$.partitionkey", "has a NUL character, got"),
        (structured(partitionkey="k" * 257), "$.partitionkey", "256"),
        (structured(data=None, data_base64="*"), "$.data_base64", "isn't base64"),
        (structured(data="x" * 50_000), "data", "over 49152"),
        (structured(data="x" * 49_000), "data", "over 49152"),
        (structured(data="\x00"), "data", "NUL"),
        (binary(b"{", content_type=b"application/json"), "data", "isn't JSON"),
        (binary(content_type=b"application/avro"), "datacontenttype", "python:PACKAGE:FUNCTION"),
        (binary(ce_id=b"\xff"), "header ce_id", "isn't UTF-8"),
        (Given(b"1", headers=[("ce_x", b"1")] * 101), "headers", "there are 101, over 100"),
        (Given(b"{}"), "$", "neither a header ce_specversion nor"),
        (
            Given(b"[]", headers=[("content-type", b"application/cloudevents-batch+json")]),
            "content-type",
            "only",
        ),
        (Given(b"x", headers=[("content-type", b"application/cloudevents+avro")]), "content-type", "avro"),
        (Given(b"\0\0\0\0\x07ab"), "value", "schema registry"),
    ],
)
def test_what_is_wrong_is_named(record: Given, at: str, detail: str) -> None:
    with pytest.raises(InvalidInput) as error:
        decoded(record)
    assert (error.value.violations[0].at, detail in error.value.violations[0].detail) == (at, True)


def test_numbers_of_the_data_keep_their_digits() -> None:
    value = b'{"specversion":"1.0","type":"a","source":"s","id":"1","pushsseto":"all","data":{"n": 1.10}}'
    assert b'"message":{"n": 1.10}' in decoded(Given(value)).publication.body
    assert b'"message":{"n": 1.10}' in decoded(binary(b'{"n": 1.10}')).publication.body


def test_expirytime_ends_it_to_the_millisecond() -> None:
    end = datetime(2026, 11, 23, 8, 0, 1, 500_000, tzinfo=UTC)
    draft = decoded(structured(expirytime="2026-11-23T08:00:01.5Z"))
    assert draft.publication.expires_ms == int(end.timestamp() * 1000)


def test_one_that_expired_before_it_came_has_expired() -> None:
    draft = decoded(replace(structured(time=None, expirytime="2020-01-01T00:00:00Z")))
    assert draft.publication.expires_ms == int(datetime(2020, 1, 1, tzinfo=UTC).timestamp() * 1000)


@pytest.mark.parametrize("end", ["1970-01-01T00:00:00Z", "1970-01-01T00:00:00.5Z", "1970-01-01T00:00:01Z"])
def test_one_that_expired_as_time_began_has_expired(end: str) -> None:
    draft = decoded(structured(time=None, expirytime=end))
    assert draft.publication.expires_ms == int(datetime.fromisoformat(end).timestamp() * 1000)


def test_times_of_a_leap_second_are_taken() -> None:
    draft = decoded(structured(time="2016-12-31T23:59:60Z", expirytime="2017-06-30T18:59:60.5-05:00"))
    assert b'"ts":"2016-12-31T23:59:59.999999Z"' in draft.publication.body
    end = datetime(2017, 6, 30, 23, 59, 59, 999_000, tzinfo=UTC)
    assert draft.publication.expires_ms == int(end.timestamp() * 1000)


@pytest.mark.parametrize(
    ("source", "event_id"), [("s" * 200, "1"), ("a|b", "c"), ("a", "\n"), ("é\u200b", "1")]
)
def test_a_source_that_is_no_part_of_an_id_gives_a_digest(source: str, event_id: str) -> None:
    draft = decoded(structured(source=source, id=event_id))
    assert len(str(body(draft)["id"])) == 32
    assert draft.once == f"|{len(source)}|{source}|{event_id}"


def test_source_and_id_are_what_it_is_known_by_and_cant_be_mixed_up() -> None:
    one, other = decoded(structured(source="a|b", id="c")), decoded(structured(source="a", id="b|c"))
    assert one.once != other.once
    assert body(one)["id"] != body(other)["id"]
    assert decoded(structured(type="x")).once == decoded(structured(type="y")).once


@pytest.mark.parametrize("to_message", [kafka.to_structured_event, kafka.to_binary_event])
def test_a_map_goes_before_the_attributes_and_sees_both_modes_alike(to_message: Any) -> None:
    record = given(to_message(cloud_event(DATA | {"buyer": "cy", "notify": True}, pushsseto=None)))
    mapping = {
        "when": "value.data.notify",
        "to": "value.data.buyer",
        "type": "'order'",
        "id": "value.subject",
    }
    draft = decoded(record, **mapping)
    assert draft.publication.users == ("cy",)
    assert draft.once == "order|order-981"
    assert (body(draft)["type"], body(draft)["ts"]) == ("order", "2026-11-23T08:00:00Z")
    assert decode(**mapping | {"when": "value.data.nothing"})(record, "owner") is None
    assert body(decoded(record, to="value.data.buyer", message="value.data.total"))["message"] == 12.5


def test_a_map_doesnt_make_a_cloudevent_of_what_is_none() -> None:
    with pytest.raises(InvalidInput) as error:
        decoded(structured(id=None), to="'all'")
    assert error.value.violations[0].at == "$.id"


@pytest.mark.parametrize(
    "value",
    [
        b'{"specversion":"1.0","x":[' + b"0," * 500_000 + b"0]}",
        b'{"specversion":"1.0",' + b'"id":"1",' * 100_000 + b'"id":"1"}',
        b'{"specversion":"1.0","data_base64":"' + base64.b64encode(b"x" * 700_000) + b'"}',
        b'{"specversion":"1.0","pushsseto":[' + b'"a",' * 200_000 + b'"a"]}',
        b'{"specversion":"1.0","type":"a","source":"s","id":"1","pushsseto":"' + b"a," * 500_000 + b'"}',
    ],
)
def test_no_cloudevent_holds_the_loop(value: bytes) -> None:
    spent_s = []
    for _ in range(5):
        began = time.thread_time()
        with pytest.raises(InvalidInput):
            decoded(Given(value))
        spent_s.append(time.thread_time() - began)
    assert min(spent_s) < 0.02


def test_extensions_have_the_key_that_an_event_replaces_or_takes_away() -> None:
    decode = CloudEventsFormat(drafter=drafter())
    made = decode(structured(type="order", pushssecollapse="order-981"), "me")
    assert made is not None
    assert made.publication.collapse == "order-981"
    assert b'"collapse":"order-981"' in made.publication.body
    made = decode(binary(ce_pushssewithdraw=b"order-981"), "me")
    assert made is not None
    assert (made.publication.name, made.publication.collapse) == ("pushsse.withdraw", "order-981")
    with pytest.raises(InvalidInput) as refused:
        decode(structured(type="order", pushssecollapse="x" * 129), "me")
    assert "pushssecollapse" in str(refused.value)
