"""Sources: which topics are theirs, the format `headers`, and the counts of what became of records."""

from dataclasses import replace

import pytest

from pushsse.errors import InvalidInput
from pushsse.intake import Sources, sources_of, topics_of
from pushsse.kafka import TopicGroup, Topics
from pushsse.metrics import Metrics
from pushsse.settings import KafkaSource, Settings
from tests.intake.kit import drafter
from tests.intake.test_decode import Given, body, event

NOW_MS = 1_700_000_000_000
HEADERS = [("pushsse-type", b"order.paid"), ("pushsse-to", b"ann, bo")]


def made(*tables: KafkaSource, metrics: Metrics | None = None) -> Sources:
    settings = Settings(kafka_bootstrap="localhost:9092", kafka=tables)
    return sources_of(
        settings, metrics=metrics or Metrics(), drafter=drafter(refused="refused"), now_ms=lambda: NOW_MS
    )


def headers(**more: str) -> Given:
    given = dict(HEADERS) | {
        f"pushsse-{name.replace('_', '-')}": text.encode() for name, text in more.items()
    }
    return Given(b'{"n": 1.10}', headers=list(given.items()))


HEADER_SOURCE = KafkaSource(topics=("orders",), format="headers")


def test_headers_say_the_rest_and_the_value_is_the_message_to_the_last_digit() -> None:
    draft = made(HEADER_SOURCE)(headers(id="o-1", ttl_s="60", desc="paid"), "owner")
    assert draft is not None
    assert not isinstance(draft, list)
    assert b'"message":{"n": 1.10}' in draft.publication.body
    assert draft.publication.users == ("ann", "bo")
    assert draft.publication.expires_ms == NOW_MS + 60_000
    assert draft.once == "order.paid|o-1"
    assert body(draft)["desc"] == "paid"


def test_a_text_of_that_content_type_is_a_json_string() -> None:
    given = replace(headers(to="all"), value=b'say "hello"')
    given = replace(given, headers=[*given.headers, ("content-type", b"text/plain; charset=utf-8")])
    draft = made(HEADER_SOURCE)(given, "owner")
    assert body(draft)["message"] == 'say "hello"'  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "at"),
    [
        (Given(b"1", headers=[("pushsse-to", b"all")]), "header pushsse-type"),
        (Given(b"1", headers=[("pushsse-type", b"a")]), "header pushsse-to"),
        (headers(to='["ann"'), "header pushsse-to"),
        (headers(to="[" + '"a",' * 200_000 + '"a"]'), "header pushsse-to"),
        (Given(b"1", headers=[*HEADERS, *[("x", b"")] * 100]), "headers"),
        (headers(to=""), "$.to.users"),
        (headers(ttl_s="soon"), "header pushsse-ttl-s"),
        (headers(ttl_s="0"), "$.ttl_s"),
        (headers(type="or der"), "$.type"),
        (headers(type="ping"), "$.type"),
        (headers(to=",".join(f"u{n}" for n in range(10_001))), "header pushsse-to"),
        (headers(to=",".join([*(f"u{n}" for n in range(50)), "a b"])), "$.to.users[50]"),
        (Given(b"no json", headers=HEADERS), "$.message"),
        (Given(b"1", headers=[*HEADERS, ("pushsse-id", b"\xff")]), "header pushsse-id"),
    ],
)
def test_what_headers_lack_or_get_wrong_is_named(given: Given, at: str) -> None:
    with pytest.raises(InvalidInput) as error:
        made(HEADER_SOURCE)(given, "owner")
    assert error.value.violations[0].at == at


def test_records_are_counted_by_source_and_by_what_became_of_them() -> None:
    metrics = Metrics()
    decode = made(HEADER_SOURCE, metrics=metrics)
    decode(headers(), "owner")
    decode(replace(headers(ttl_s="1"), timestamp=NOW_MS - 1000), "owner")
    decode(Given(None), "owner")
    with pytest.raises(InvalidInput):
        decode(Given(b"1"), "owner")
    decode(Given(event(), topic="push.events"), "owner")
    counts = metrics.sources["orders"]
    assert (counts.mapped, counts.expired, counts.skipped, counts.dead) == (1, 1, 1, 1)
    text = metrics.exposition().decode()
    assert 'pushsse_source_records_total{outcome="dead",source="orders"} 1.0' in text
    assert 'pushsse_source_records_total{outcome="mapped",source="push.events"} 1.0' in text


def test_no_pattern_matches_a_dead_letter_topic_or_one_of_our_own() -> None:
    settings = Settings(
        kafka_bootstrap="localhost:9092",
        kafka=(KafkaSource(topics=("alarm-.*", "push\\.(?!events).*")),),
    )
    found = topics_of(settings).among(
        [
            "alarm-fire",
            "alarm-fire.dlq",
            "an-alarm-",
            "push.events",
            "push.answers",
            "push.outcomes",
            "push.events.dlq",
            "push.x",
        ]
    )
    assert found == {"alarm-fire", "push.events", "push.x"}


def test_a_topic_belongs_to_the_first_source_that_has_it_and_a_name_goes_before_patterns() -> None:
    found = Topics((TopicGroup(("a.*",), "latest"), TopicGroup(("ab",), "earliest")), "dead")
    assert (found.group_of("ab"), found.group_of("ac"), found.group_of("b")) == (1, 0, None)
    assert found.start_of("ab") == "earliest"
    assert found.dead_letters_of("ab") == "dead"
    assert found.missing({"ac"}) == ["ab"]
