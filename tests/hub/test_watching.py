"""deploy/alerts.yaml and the Grafana dashboard: their queries against a real scrape, and their advice."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, get_args

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from deploy.parts import PartMissing
from deploy.parts.packages import program
from pushsse.errors import CloseReason
from pushsse.metrics import LIMITS, RESUMES
from pushsse.questions import Status
from tests.serving import serving

REPOSITORY = Path(__file__).parents[2]
OPERATIONS = (REPOSITORY / "docs" / "operations.md").read_text()
RULES = [
    rule
    for group in yaml.safe_load((REPOSITORY / "deploy" / "alerts.yaml").read_text())["groups"]
    for rule in group["rules"]
]
DASHBOARD: dict[str, Any] = json.loads((REPOSITORY / "deploy" / "grafana" / "pushsse.json").read_text())
# Prometheus's own, for each target; and what it adds to each sample.
UP = "up"
TARGET = {"job", "instance"}
# What labels may say, where the code has a list of it.
WORDS: dict[tuple[str, str], set[str]] = {
    ("pushsse_endings_total", "reason"): {each.code for each in CloseReason},
    ("pushsse_resumes_total", "outcome"): set(RESUMES),
    ("pushsse_limited_total", "limit"): set(LIMITS),
    ("pushsse_questions_total", "status"): set(get_args(Status)),
}


class Query(NamedTuple):
    """A query, and where it stands."""

    place: str
    text: str


def queries() -> Iterator[Query]:
    for rule in RULES:
        yield Query(rule["alert"], rule["expr"])
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            yield Query(panel["title"], target["expr"])
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            yield Query(variable["name"], variable["query"]["query"])


class Selector(NamedTuple):
    """A metric with the labels that a query asks for: name and text of each."""

    metric: str
    matchers: dict[str, str]


def selectors(query: str) -> list[Selector]:
    found = re.findall(r"\b(pushsse_\w+|up)\b(?:\{([^}]*)\})?", query)
    return [Selector(name, dict(re.findall(r'(\w+)=~?"([^"]*)"', inner))) for name, inner in found]


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def labels(tmp_path_factory: pytest.TempPathFactory, anyio_backend: str) -> dict[str, set[str]]:
    """The labels of each metric, by a real scrape; those of parts that this node hasn't, by the docs."""
    found: dict[str, set[str]] = {UP: set()}
    table = OPERATIONS.split("\n## What to watch\n")[1].split("\n\nThe [catalogue]")[0]
    for name, inner in re.findall(r"`(pushsse_\w+)(?:\{([\w,]+)\})?`", table):
        found.setdefault(name, set()).update(inner.split(",") if inner else ())
    async with serving(tmp_path_factory.mktemp("node")) as node:
        await node.publish("news", 1)
        await node.http.post("/v1/questions?user=ann", json={"text": "How do I switch an event type off?"})
        assert (await node.http.get("/v1/stream?user=ann&since=never")).status_code == 400
        scraped = (await node.http.get("/metrics")).text
    for family in text_string_to_metric_families(scraped):
        for sample in family.samples:
            assert found[sample.name] == set(sample.labels), f"the docs have other labels of {sample.name}"
    return found


@pytest.mark.anyio
async def test_every_query_asks_for_metrics_and_labels_that_are_there(labels: dict[str, set[str]]) -> None:
    for place, text in queries():
        asked = selectors(text)
        assert asked, place
        there = set(TARGET)
        for metric, matchers in asked:
            assert metric in labels, f"{place}: there is no {metric}"
            unknown = set(matchers) - labels[metric] - TARGET
            assert not unknown, f"{place}: {metric} has no {unknown}"
            there |= labels[metric]
        grouped = {name for inner in re.findall(r"\bby \(([^)]*)\)", text) for name in inner.split(", ")}
        shown = set(re.findall(r"{{\s*(?:\$labels\.)?(\w+)\s*}}", text))
        assert grouped | shown <= there, place


def test_every_value_that_a_query_asks_for_comes_up() -> None:
    source = "\n".join(file.read_text() for file in (REPOSITORY / "pushsse").rglob("*.py"))
    looked_at = 0
    for place, text in queries():
        for metric, matchers in selectors(text):
            for label, values in matchers.items():
                if label in TARGET:
                    continue
                for value in values.split("|"):
                    looked_at += 1
                    words = WORDS.get((metric, label))
                    known = value in words if words is not None else f'"{value}"' in source
                    assert known, f"{place}: {metric} has no {label} {value}"
    assert looked_at > 5


def test_legends_and_summaries_show_labels_that_the_query_has() -> None:
    for rule in RULES:
        shown = set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]))
        kept = set(re.findall(r"\w+", " ".join(re.findall(r"^\w+ by \(([^)]*)\)", rule["expr"]))))
        if re.match(r"(sum|max|min)\(", rule["expr"].strip("0123456789* ")):
            assert not shown, rule["alert"]
        elif kept:
            assert shown <= kept, rule["alert"]


def test_every_alert_says_what_to_do() -> None:
    section = OPERATIONS.split("\n## Alerts\n")[1].split("\n## ")[0]
    headings = {heading.lower() for heading in re.findall(r"^### (\w+)$", section, re.MULTILINE)}
    assert len({rule["alert"] for rule in RULES}) == len(RULES)
    led = set()
    for rule in RULES:
        page, _, anchor = rule["annotations"]["runbook"].partition("#")
        assert page == "docs/operations.md"
        assert anchor in headings, rule["alert"]
        assert anchor == rule["alert"].lower()
        led.add(anchor)
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert rule["annotations"]["summary"]
    assert led == headings


def test_what_the_docs_say_to_look_at_is_on_the_dashboard_or_in_an_alert() -> None:
    table = OPERATIONS.split("\n## What to watch\n")[1].split("\n\nThe [catalogue]")[0]
    rows = [row.split("|") for row in table.splitlines() if row.startswith("| `")]
    asked = {selector.metric for query in queries() for selector in selectors(query.text)}
    watched = [set(re.findall(r"`(pushsse_\w+)", row[1])) for row in rows if row[3].strip() != "–"]
    assert [names for names in watched if not names & asked] == []


def test_the_dashboard_has_no_two_panels_in_one_place() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert all(x < 24 for x, _ in cells)
        taken |= cells
    numbers = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(numbers)) == len(numbers)


# What makes each alert fire: series, a sample a minute, in the notation of promtool.
FIRING: dict[str, dict[str, str]] = {
    "PushsseNodeDown": {"up": "0x60"},
    "PushsseRedisAway": {"pushsse_backplane_available": "0x60"},
    "PushsseNodeIsolated": {"pushsse_isolated": "1x60"},
    "PushsseDatabaseAway": {"pushsse_database_available": "0x60"},
    "PushsseDatabaseFails": {"pushsse_database_failures_total": "0+2x60"},
    "PushsseUnfiltered": {"pushsse_unfiltered_total": "0+1x60"},
    "PushsseLogLost": {"pushsse_logs_lost_total": "0x40 1x20"},
    "PushsseLogNotKept": {"pushsse_log_kept": "0x60"},
    "PushsseRedisCuts": {
        "pushsse_backplane_reconnects_total": "0+1x60",
        "pushsse_gaps_filled_total": "0+1x60",
    },
    "PushsseStreamsFell": {"pushsse_connections": "1000x37 100x23"},
    "PushsseStreamsReopen": {"pushsse_streams_opened_total": "0+2000x60", "pushsse_connections": "1000x60"},
    "PushsseStreamsBehind": {"pushsse_streams_behind": "300x60", "pushsse_connections": "1000x60"},
    "PushsseNodeOverloaded": {"pushsse_hearings_waiting": "9000x60"},
    "PushsseStreamsCut": {'pushsse_endings_total{reason="slow"}': "0+120x60"},
    "PushsseNodeFull": {'pushsse_limited_total{limit="streams"}': "0+1x60"},
    "PushsseGaps": {
        'pushsse_resumes_total{outcome="gap"}': "0+10x60",
        'pushsse_resumes_total{outcome="complete"}': "0+100x60",
    },
    "PushsseExpired": {"pushsse_expired_total": "0+120x60"},
    "PushsseKafkaLag": {
        'pushsse_kafka_lag{topic="push.events", partition="0"}': "600x60",
        'pushsse_kafka_lag{topic="push.events", partition="1"}': "600x60",
    },
    "PushssePartitionHeld": {"pushsse_kafka_held_partitions": "1x60"},
    "PushsseDeadLetters": {"pushsse_dead_letters_total": "0x40 1x20"},
    "PushsseDeadLettersRefused": {"pushsse_dead_letters_refused_total": "0x40 1x20"},
    "PushsseFenced": {"pushsse_fenced_total": "0+120x60"},
    "PushsseOutboxStuck": {'pushsse_outbox_lag_seconds{table="outbox"}': "400x60"},
    "PushsseOutboxDead": {'pushsse_outbox_dead_total{table="outbox"}': "0x40 1x20"},
    "PushsseOutcomesLost": {"pushsse_outcomes_lost_total": "0x40 1x20"},
    "PushsseCatalogueFull": {"pushsse_types": "990x60"},
    "PushsseQuestionsFail": {
        'pushsse_questions_total{status="failed"}': "0+30x60",
        'pushsse_questions_total{status="answered"}': "0+60x60",
    },
    "PushsseKeysAway": {"pushsse_keys_available": "0x60"},
    "PushsseSessionsAway": {"pushsse_sessions_available": "0x60"},
    "PushsseOriginRefused": {'pushsse_refusals_total{code="origin_refused"}': "0+30x60"},
    "PushsseKicksFull": {"pushsse_kicked": "95000x60"},
    "PushsseWorkersDie": {"pushsse_worker_restarts_total": "0+1x60"},
}
# A node that is well: counters stand still, or grow where that is what they are for.
WELL = {
    "up": "1x60",
    "pushsse_backplane_available": "1x60",
    "pushsse_database_available": "1x60",
    "pushsse_isolated": "0x60",
    "pushsse_connections": "1000+1x60",
    "pushsse_streams_opened_total": "1000+20x60",
    "pushsse_streams_behind": "5x60",
    "pushsse_hearings_waiting": "40x60",
    'pushsse_endings_total{reason="disconnected"}': "0+19x60",
    'pushsse_endings_total{reason="slow"}': "0+1x60",
    'pushsse_resumes_total{outcome="complete"}': "0+100x60",
    'pushsse_resumes_total{outcome="gap"}': "0+1x60",
    'pushsse_questions_total{status="answered"}': "0+100x60",
    'pushsse_questions_total{status="failed"}': "0+2x60",
    'pushsse_kafka_lag{topic="push.events", partition="0"}': "20x60",
    "pushsse_dead_letters_total": "7x60",
    "pushsse_types": "40x60",
    "pushsse_kicked": "3x60",
}


def test_each_alert_has_series_that_make_it_fire() -> None:
    assert set(FIRING) == {rule["alert"] for rule in RULES}


def promtool(*arguments: str) -> None:
    """Runs it; skips the test where it can't be had, also in CI: nothing else of it needs Prometheus."""
    try:
        found = program("promtool", "prometheus")
    except PartMissing as reason:
        pytest.skip(str(reason))
    done = subprocess.run([found, *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


# `long`, since Debian's package is large.
@pytest.mark.real
@pytest.mark.long
def test_promtool_takes_the_rules_and_the_queries_of_the_dashboard(tmp_path: Path) -> None:
    recorded = [
        {"record": f"panel:{number}", "expr": query.text.replace("$__rate_interval", "5m")}
        for number, query in enumerate(queries())
        if "label_values" not in query.text
    ]
    panels = tmp_path / "panels.yaml"
    panels.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": recorded}]}))
    promtool("check", "rules", str(REPOSITORY / "deploy" / "alerts.yaml"), str(panels))


@pytest.mark.real
@pytest.mark.long
def test_each_alert_fires_when_it_should_and_none_for_a_node_that_is_well(tmp_path: Path) -> None:
    def series(given: dict[str, str]) -> list[dict[str, str]]:
        made = []
        for name, values in given.items():
            metric, _, inner = name.rstrip("}").partition("{")
            labels = ", ".join(filter(None, (inner, 'job="pushsse", instance="one:9000"')))
            made.append({"series": f"{metric}{{{labels}}}", "values": values})
        return made

    def case(given: dict[str, str], expr: str, expected: list[dict[str, object]]) -> dict[str, object]:
        tested = {"expr": expr, "eval_time": "45m", "exp_samples": expected}
        return {"interval": "1m", "input_series": series(given), "promql_expr_test": [tested]}

    def firing(alert: str) -> str:
        return f'count(ALERTS{{alertname="{alert}", alertstate="firing"}})'

    one: list[dict[str, object]] = [{"labels": "{}", "value": 1}]
    tests = [case(given, firing(alert), one) for alert, given in FIRING.items()]
    tests.append(case(WELL, "count(ALERTS)", []))
    file = tmp_path / "tests.yaml"
    rules = str(REPOSITORY / "deploy" / "alerts.yaml")
    file.write_text(yaml.safe_dump({"rule_files": [rules], "evaluation_interval": "1m", "tests": tests}))
    promtool("test", "rules", str(file))
