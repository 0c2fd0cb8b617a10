"""Tables [[kafka]] of pushsse.toml: what is refused before anything starts, and what the error names."""

import json
from pathlib import Path

import pytest

from pushsse import build
from pushsse.errors import SettingsError
from pushsse.intake import topics_of
from pushsse.settings import Settings, load

KAFKA = {"PUSHSSE_KAFKA_BOOTSTRAP": "localhost:9092"}


def loaded(tmp_path: Path, text: str, **more: str) -> Settings:
    file = tmp_path / "pushsse.toml"
    file.write_text(text)
    return load({**KAFKA, **more}, file=file)


def refused(tmp_path: Path, text: str, **more: str) -> str:
    with pytest.raises(SettingsError) as error:
        build.check(loaded(tmp_path, text, **more))
    return str(error.value)


def test_tables_of_the_file_are_sources_in_their_order(tmp_path: Path) -> None:
    text = """
[[kafka]]
topics = ["orders", "alarm-.*"]
format = "headers"
start = "earliest"

[[kafka]]
name = "chat"
topics = ["chat"]
"""
    first, second = loaded(tmp_path, text).kafka
    assert (first.topics, first.format, first.start) == (("orders", "alarm-.*"), "headers", "earliest")
    assert (first.label, second.label, second.format) == ("orders,alarm-.*", "chat", "pushsse")


def test_a_variable_has_the_tables_as_a_json_list() -> None:
    tables = json.dumps([{"topics": ["orders"], "format": "headers"}])
    [source] = load({**KAFKA, "PUSHSSE_KAFKA": tables}).kafka
    assert source.format == "headers"
    with pytest.raises(SettingsError, match=r"PUSHSSE_KAFKA: .* isn't a JSON list of tables"):
        load({**KAFKA, "PUSHSSE_KAFKA": "orders"})
    with pytest.raises(SettingsError, match="kafka 1 of PUSHSSE_KAFKA: format: 'avro' is none of"):
        load({**KAFKA, "PUSHSSE_KAFKA": json.dumps([{"topics": ["orders"], "format": "avro"}])})


@pytest.mark.parametrize(
    ("table", "error"),
    [
        (
            'topics = ["a"]\nformat = "avro"',
            "kafka 2 in .*: format \\(line 7\\): 'avro' is none of pushsse, ",
        ),
        ('topics = ["a"]\nstart = "soon"', "start \\(line 7\\): 'soon' isn't an age"),
        ('format = "headers"', "kafka 2 in .*: topics \\(line 5\\): table missing required field"),
        ("topics = []", "topics \\(line 6\\): expected `array` of length >= 1"),
        ('topics = ["a"]\ntopic = "b"', "kafka 2 in .*: topic \\(line 7\\): table contains unknown field"),
        ('topics = ["a"]\nlines = {}', "lines .*: table contains unknown field"),
        ('topics = ["a*("]', "topics \\(line 6\\): 'a\\*\\(' is neither a topic's name nor a pattern: .*"),
        ('topics = ["orders"]', "topics \\(line 6\\): 'orders' is named twice"),
        ('topics = ["push.events"]', "'push.events' is PUSHSSE_KAFKA_TOPIC"),
        ('topics = ["push.answers"]', "'push.answers' has the questions or answers"),
        ('topics = ["a"]\nname = "orders"', "name \\(line 7\\): there is another source called 'orders'"),
        ('topics = ["a"]\n[kafka.map]\ntype = "x"', "map \\(line 7\\): format 'pushsse' has no map"),
        (
            'topics = ["a"]\nformat = "mapped"\nmap = {type = "x(", to = "key"}',
            "map.type \\(line 8\\): 'x\\('",
        ),
        (
            'topics = ["a"]\nformat = "mapped"\nmap = 7',
            "map \\(line 8\\): expected `a table|map .*: expected",
        ),
        (
            'topics = ["a"]\nformat = "python:no_such_module:f"',
            "format \\(line 7\\): python:no_such_module:f: there is",
        ),
        ('topics = ["a"]\nformat = "headers:x"', "'headers:x' is none of"),
    ],
)
def test_a_bad_table_is_named_with_its_key_and_line(tmp_path: Path, table: str, error: str) -> None:
    text = f'# sources\n[[kafka]]\ntopics = ["orders"]\n\n[[kafka]]\n{table}\n'
    with pytest.raises(SettingsError, match=error):
        build.check(loaded(tmp_path, text))


@pytest.mark.parametrize(
    ("topics", "dlq", "named"),
    [
        ('"push.*"', "", "push.answers.dlq"),
        ('".*"', "", "push.answers.dlq"),
        ('"orders", "orders.*"', "", "orders.dlq"),
        ('"dead.*"', "dead-ones", "dead-ones"),
        ('"dead-ones"', "dead-ones", "dead-ones"),
        ('"orders.dlq"', "", "orders.dlq"),
        # Of a topic that is named nowhere, however the pattern is written.
        ("'x[.]dlq'", "", "x.dlq"),
        (r"'x\.dlq'", "", "x.dlq"),
        (r"'^shop.*\.dlq$'", "", "shop0.dlq"),
        (r"'(a|b)-\w+[.]dlq'", "", "a-0.dlq"),
        (r"'(?:a|b)+[.](dlq)'", "", "a.dlq"),
        (r"'shop-\d{2,4}[.]dlq'", "", "shop-00.dlq"),
        (r"'[a-z]+[.]dlq'", "", "a.dlq"),
    ],
)
def test_a_pattern_that_matches_a_dead_letter_topic_refuses_the_start(
    tmp_path: Path, topics: str, dlq: str, named: str
) -> None:
    text = f"[[kafka]]\ntopics = [{topics}]\n"
    error = refused(tmp_path, text, PUSHSSE_KAFKA_DLQ_TOPIC=dlq)
    assert named in error
    assert "dead-letter topic" in error
    assert "topics (line 2)" in error


@pytest.mark.parametrize("pattern", ["orders-.*", r"x(\.dlq)?", "[a-z.]+x", r"x\.dlq-of-ours", "(x|x[.]dlq)"])
def test_a_pattern_that_matches_more_than_dead_letter_topics_is_read_without_them(
    tmp_path: Path, pattern: str
) -> None:
    settings = loaded(tmp_path, f"[[kafka]]\ntopics = ['{pattern}']\n")
    build.check(settings)
    assert not any(topics_of(settings).among(["orders-1.dlq", "x.dlq", "a.dlq"]))


def test_tables_need_a_kafka(tmp_path: Path) -> None:
    error = refused(tmp_path, '[[kafka]]\ntopics = ["orders"]\n', PUSHSSE_KAFKA_BOOTSTRAP="")
    assert "needs PUSHSSE_KAFKA_BOOTSTRAP" in error
