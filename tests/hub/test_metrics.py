"""What is counted: each way in which a stream begins and ends, and whether the docs have every metric."""

import re
from pathlib import Path

import pytest

from pushsse.build import build
from pushsse.errors import CloseReason
from pushsse.metrics import LIMITS, RESUMES, Metrics
from pushsse.settings import load
from pushsse.stream.frame import Resume
from tests.hub.running_hub import running_hub

REPOSITORY = Path(__file__).parents[2]
OPERATIONS = (REPOSITORY / "docs" / "operations.md").read_text()


@pytest.mark.anyio
@pytest.mark.parametrize("reason", CloseReason, ids=lambda reason: reason.code)
async def test_each_ending_is_counted_once_under_its_reason(reason: CloseReason) -> None:
    async with running_hub() as node:
        metrics = node.hub.metrics
        assert f'pushsse_endings_total{{reason="{reason.code}"}} 0.0' in metrics.exposition().decode()
        sink = await node.open("ann")
        if reason is CloseReason.DISCONNECTED:
            sink.subscriber.gone()
        else:
            sink.subscriber.end(reason)
        # The first ending wins.
        sink.subscriber.end(CloseReason.SHUTDOWN)
        sink.subscriber.gone()
        assert {code: count for code, count in metrics.endings.items() if count} == {reason.code: 1}
        assert f'pushsse_endings_total{{reason="{reason.code}"}} 1.0' in metrics.exposition().decode()


@pytest.mark.anyio
@pytest.mark.parametrize("outcome", Resume, ids=lambda outcome: outcome.value)
async def test_each_way_to_resume_is_counted(outcome: Resume) -> None:
    assert {each.value for each in Resume} == set(RESUMES)
    async with running_hub() as node:
        metrics = node.hub.metrics
        assert f'pushsse_resumes_total{{outcome="{outcome.value}"}} 0.0' in metrics.exposition().decode()
        place = ""
        if outcome is not Resume.NEW:
            first = await node.open("ann")
            await node.publish("news", "1")
            await node.settled()
            place = first.frames[-1][2]
            metrics.resumes["new"] = 0
        await node.open("ann", place if outcome is not Resume.GAP else f"zzzz{place[4:]}")
        assert {each: count for each, count in metrics.resumes.items() if count} == {outcome.value: 1}


def test_the_limits_that_are_counted_are_those_of_the_docs() -> None:
    table = OPERATIONS.split("\n## Limits\n")[1].split("\n\n**")[0]
    named = [re.fullmatch(r".*\| `(\w+)` \|", row) for row in table.splitlines()]
    documented = [found[1] for found in named if found is not None]
    assert sorted(set(documented) - {"limit"}) == sorted(LIMITS)
    exposed = Metrics().exposition().decode()
    for limit in LIMITS:
        assert f'pushsse_limited_total{{limit="{limit}"}} 0.0' in exposed


def test_the_docs_have_every_metric_and_no_other() -> None:
    table = OPERATIONS.split("\n## What to watch\n")[1].split("\n\nThe [catalogue]")[0]
    rows = [row.split("|")[1] for row in table.splitlines() if row.startswith("| `")]
    documented = {name for row in rows for name in re.findall(r"`(pushsse_\w+)(?:\{[\w,]+\})?`", row)}
    node = build(load({}, {"database_url": "sqlite://:memory:"}))
    families = [family for family in node.metrics.collect() if family.name != "pushsse_kafka_lag"]
    exposed = {f"{each.name}_total" if each.type == "counter" else each.name for each in families}
    # Of parts that are not in this node: Kafka, servers of keys and sessions, the embedded log, workers.
    elsewhere = {
        "pushsse_kafka_lag",
        "pushsse_kafka_held_partitions",
        "pushsse_keys_available",
        "pushsse_sessions_available",
        "pushsse_log_kept",
        "pushsse_outcomes_total",
        "pushsse_outcomes_lost_total",
        "pushsse_workers",
        "pushsse_workers_unanswered",
        "pushsse_worker_restarts_total",
    }
    assert documented - elsewhere == exposed - elsewhere
    source = "\n".join(file.read_text() for file in (REPOSITORY / "pushsse").rglob("*.py"))
    gauges = set(re.findall(r"gauge\(\s*\"(\w+)\"", source))
    assert {f"pushsse_{name}" for name in gauges} <= documented | elsewhere
    assert elsewhere <= documented
