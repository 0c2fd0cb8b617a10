"""What leaves the database, on SQLite and PostgreSQL: old questions, and everything of somebody."""

import asyncio
import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest
from msgspec.structs import replace
from ulid import ULID

from pushsse.backplane.memory import MemoryBackplane
from pushsse.database import Database, Statement
from pushsse.intake import topics_of
from pushsse.kicks import Kicked, Kicks, KickTable
from pushsse.metrics import Metrics
from pushsse.people import StateTable
from pushsse.preferences.store import PreferenceStore
from pushsse.presence import FORGOTTEN_AT_ONCE, SeenTable
from pushsse.questions import CANCELLED, By, Question, Status
from pushsse.questions.conversations import ConversationStore
from pushsse.questions.rows import QuestionDeletion
from pushsse.questions.store import QuestionStore
from pushsse.retention import Forgetting, Remainder, Retention
from pushsse.settings import Settings, load
from pushsse.stream.subscriber import Subscriber
from tests.waiting import eventually

pytestmark = pytest.mark.anyio
NAMES = Statement("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")
PG_NAMES = Statement("SELECT tablename FROM pg_tables WHERE schemaname = current_schema()")
PG_COLUMNS = Statement("""
    SELECT column_name, data_type, is_nullable = 'NO' AND column_default IS NULL AND is_identity = 'NO'
      FROM information_schema.columns
     WHERE table_schema = current_schema() AND table_name = {value[1]}
     ORDER BY ordinal_position""")


def asked(user: str, at: datetime, *, status: Status = "answered") -> Question:
    return Question(
        id=str(ULID.from_datetime(at)),
        user=user,
        conversation=f"of-{user}",
        text="why?",
        status=status,
        asked_at=at,
        updated_at=at,
        deadline_at=at + timedelta(minutes=2),
        answer="because",
    )


async def put(database: Database, question: Question, *, announced: bool = True) -> None:
    """A question in the state that it says."""
    store = QuestionStore(database)
    await store.create(question, key=None, owner="one", lease_s=30, announce_s=30)
    value = Statement(
        "UPDATE pushsse_question SET status = {value[1]}"
        + (", announce_by = NULL" if announced else "")
        + " WHERE id = {value[2]} RETURNING 1"
    )
    await database.rows(int, value, question.status, question.id)


async def left(database: Database) -> list[str]:
    return sorted(await database.rows(str, Statement("SELECT id FROM pushsse_question")))


async def test_questions_go_when_they_are_too_old_and_no_sooner(database: Database) -> None:
    now, metrics = datetime.now(UTC), Metrics()
    old = [asked("ann", now - timedelta(days=200, seconds=at)) for at in range(250)]
    kept = [asked("ann", now - timedelta(days=179)), asked("bo", now)]
    # Not yet ended, and not yet announced: others look after them.
    waiting = asked("ann", now - timedelta(days=300), status="answering")
    unannounced = asked("ann", now - timedelta(days=300))
    for question in (*old, *kept, waiting):
        await put(database, question)
    await put(database, unannounced, announced=False)
    retention = Retention(QuestionDeletion(database), keep_days=180, metrics=metrics)
    assert await retention.sweep() == 250
    assert await left(database) == sorted(one.id for one in (*kept, waiting, unannounced))
    assert metrics.questions_deleted == 250
    assert await retention.sweep() == 0


async def test_with_old_questions_go_their_earlier_answers_and_conversations(database: Database) -> None:
    now, store = datetime.now(UTC), QuestionStore(database)
    old = [asked(user, now - timedelta(days=200)) for user in ("ann", "bo")]
    kept = asked("bo", now)
    for question in (*old, kept):
        await put(database, question)
        again = await store.regenerate(question, owner="one", lease_s=1, timeout_s=1, announce_s=1)
        assert again is not None
        assert await store.end(question.id, CANCELLED, attempt=None, announce_s=1)
        ended = await store.one(question.id)
        assert ended is not None
        await store.announced([ended.id], ended.status)
    retention = Retention(QuestionDeletion(database), keep_days=180, metrics=Metrics())
    assert await retention.sweep() == 2
    assert await database.rows(str, Statement("SELECT question FROM pushsse_earlier_answer")) == [kept.id]
    # Of bo's conversation one question is left.
    assert await database.rows(str, Statement("SELECT id FROM pushsse_conversation")) == ["of-bo"]


async def test_several_nodes_that_delete_together_delete_each_question_once(database: Database) -> None:
    long_ago = datetime.now(UTC) - timedelta(days=200)
    for at in range(300):
        await put(database, asked("ann", long_ago + timedelta(seconds=at)))
    nodes = [Retention(QuestionDeletion(database), keep_days=180, metrics=Metrics()) for _ in range(4)]
    assert sum(await asyncio.gather(*(node.sweep() for node in nodes))) == 300
    assert await left(database) == []


async def test_others_write_while_old_questions_are_deleted(database: Database) -> None:
    long_ago = datetime.now(UTC) - timedelta(days=200)
    for at in range(300):
        await put(database, asked("ann", long_ago + timedelta(seconds=at)))
    store = PreferenceStore(database)
    await store.join(["alarm"], hidden=False)
    loop = asyncio.get_running_loop()
    sweep = asyncio.create_task(
        Retention(QuestionDeletion(database), keep_days=180, metrics=Metrics()).sweep()
    )
    took: list[float] = []
    while not sweep.done():
        began = loop.time()
        await store.change("ann", {"alarm": len(took) % 2 == 0})
        took.append(loop.time() - began)
    assert await sweep == 300
    assert max(took) < 2.0


async def test_without_a_time_limit_nothing_is_deleted(database: Database) -> None:
    await put(database, asked("ann", datetime.now(UTC) - timedelta(days=4_000)))
    retention = Retention(QuestionDeletion(database), keep_days=0, metrics=Metrics())
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(retention.run(), 0.2)
    assert len(await left(database)) == 1


# Forgetting


class NoStreams:
    def subscribers_of(self, user: str) -> tuple[Subscriber, ...]:
        return ()

    def users(self) -> tuple[str, ...]:
        return ()


@dataclass
class Column:
    name: str
    kind: str
    required: bool

    def value(self, user: str) -> str:
        """A literal that fits: the person where the column may name one, and something else elsewhere."""
        if "user" in self.name:
            return f"'{user}'"
        kind = self.kind.lower()
        if "json" in kind:
            return "'[]'"
        if "time" in kind:
            return "'2026-01-01 00:00:00'"
        if "bool" in kind:
            return "true"
        if "int" in kind:
            return str(secrets.randbelow(2**31))
        return f"'{secrets.token_hex(5)}'"


async def tables(database: Database, migrated_url: str) -> dict[str, list[Column]]:
    """All tables that have a column which may name a person."""
    sqlite = migrated_url.startswith("sqlite")
    found = {}
    for table in await database.rows(str, NAMES if sqlite else PG_NAMES):
        if sqlite:
            info = Statement(
                f"SELECT name, type, \"notnull\" AND dflt_value IS NULL FROM pragma_table_info('{table}')"
            )
            columns = await database.rows(Column, info)
        else:
            columns = await database.rows(Column, PG_COLUMNS, table)
        if any("user" in column.name for column in columns):
            found[table] = columns
    return found


async def fill(database: Database, rows: Mapping[str, list[Column]], user: str) -> None:
    """A row about the person in each of the tables."""
    for table, columns in rows.items():
        given = [column for column in columns if column.required or "user" in column.name]
        names = ", ".join(f'"{column.name}"' for column in given)
        values = ", ".join(column.value(user) for column in given)
        await database.rows(int, Statement(f"INSERT INTO {table} ({names}) VALUES ({values}) RETURNING 1"))


async def rows_about(database: Database, rows: Mapping[str, list[Column]], user: str) -> dict[str, int]:
    """In how many rows of each table a person is named, in whatever column."""
    found = {}
    for table, columns in rows.items():
        anywhere = " OR ".join(f'CAST("{column.name}" AS text) LIKE {{value[1]}}' for column in columns)
        count = Statement(f"SELECT count(*) FROM {table} WHERE {anywhere}")
        found[table] = (await database.rows(int, count, f"%{user}%"))[0]
    return found


def forgetting(
    database: Database,
    settings: Settings | None = None,
    topics: Mapping[str, Mapping[str, str]] | None = None,
    *,
    settle_s: float = 0.0,
) -> Forgetting:
    async def ask(asked: Collection[str]) -> Mapping[str, Mapping[str, str]]:
        if topics is None:
            raise OSError("away")
        return {topic: topics[topic] for topic in asked if topic in topics}

    async def find() -> Collection[str]:
        if topics is None:
            raise OSError("away")
        return topics_of(settings or load({})).among(topics)

    kicks = Kicks(
        KickTable(database),
        MemoryBackplane(shards=4, keep_s=60, keep_bytes=65_536, metrics=Metrics()),
        kicked=Kicked(),
        streams=NoStreams(),
        keep_s=86_430,
    )
    keepers = (PreferenceStore(database), QuestionDeletion(database), SeenTable(database))
    return Forgetting(kicks, keepers, settings or load({}), ask, find, backplane_s=4_200, settle_s=settle_s)


async def test_nothing_of_a_forgotten_person_is_in_any_table(database: Database, migrated_url: str) -> None:
    every = await tables(database, migrated_url)
    # As far as they are known here; one more is filled and looked at, too.
    assert set(every) >= {
        "pushsse_category_switch",
        "pushsse_conversation",
        "pushsse_earlier_answer",
        "pushsse_kick",
        "pushsse_person",
        "pushsse_preference_change",
        "pushsse_question",
        "pushsse_seen",
        "pushsse_staff",
        "pushsse_switch",
        "pushsse_switched",
    }
    for user in ("ann-marie", "bo"):
        await fill(database, every, user)
    assert set((await rows_about(database, every, "ann-marie")).values()) == {1}
    forgotten = await forgetting(database).forget("ann-marie")
    assert forgotten.deleted == {
        "person": 1,
        "changes": 1,
        # One of a type, one of a category.
        "switches": 2,
        "switched": 1,
        "questions": 1,
        "conversations": 1,
        "seen": 1,
        "kicks": 1,
    }
    assert set((await rows_about(database, every, "ann-marie")).values()) == {0}
    assert set((await rows_about(database, every, "bo")).values()) == {1}
    again = await forgetting(database).forget("ann-marie")
    # The call's own.
    assert again.deleted == {
        "person": 0,
        "changes": 0,
        "switches": 0,
        "switched": 0,
        "questions": 0,
        "conversations": 0,
        "seen": 0,
        "kicks": 1,
    }


# What may hold a person's name, and what else is as long: of a node, a title, what a client chose for a call.
NAMES_OF_PEOPLE = {"user", "by_name", "released_by", "who"}
OTHERS = {"title", "idempotency_key", "owner"}


async def test_every_column_that_a_name_fits_in_is_known(database: Database, migrated_url: str) -> None:
    wide = [
        (table, column.name)
        for table, columns in (await tables(database, migrated_url)).items()
        for column in columns
        if "128" in column.kind
    ]
    assert {name for _, name in wide} <= NAMES_OF_PEOPLE | OTHERS
    assert wide or not migrated_url.startswith("sqlite")


SIGNED = {
    "pushsse_question": "by_name",
    "pushsse_earlier_answer": "by_name",
    "pushsse_conversation": "released_by",
    "pushsse_switched": "who",
}


@pytest.mark.parametrize("others", [0, 2_500])
async def test_the_name_under_what_somebody_did_for_others_goes_and_the_rest_stays(
    database: Database, migrated_url: str, others: int
) -> None:
    every = await tables(database, migrated_url)
    signed = {table: every[table] for table in SIGNED}
    for number in range(3):
        await fill(database, signed, f"customer-{number}")
    for table, column in SIGNED.items():
        staff = ", by_kind = 'staff'" if column == "by_name" else ""
        sign = f'UPDATE {table} SET {column} = {{value[1]}}{staff} WHERE "user" = {{value[2]}} RETURNING 1'
        for signer, customer in (("sam", "customer-0"), ("samuel", "customer-1")):
            assert await database.rows(int, Statement(sign), signer, customer) == [1]
    # An answerer may be called as somebody.
    bot = """UPDATE pushsse_question SET by_kind = 'bot', by_name = 'sam' WHERE "user" = 'customer-2'
             RETURNING 1"""
    assert await database.rows(int, Statement(bot)) == [1]
    # Whatever is first or last, more of them are looked at than at once.
    now = datetime.now(UTC)
    if others:
        rows = ", ".join(_row(str(ULID.from_datetime(now - timedelta(seconds=at)))) for at in range(others))
        await database.rows(int, Statement(_ROWS.replace("ROWS", rows)), "sam")
    await forgetting(database).forget("sam")
    for table, column in SIGNED.items():
        names = await database.rows(str, Statement(f"SELECT {column} FROM {table}"))
        assert (names.count("sam"), names.count("samuel")) == (int(table == "pushsse_question"), 1), table
        assert len(names) == 3 + (others if table == "pushsse_question" else 0), table


_ROWS = """
    INSERT INTO pushsse_question (id, "user", conversation, text, status, by_kind, by_name, created_at,
        updated_at, deadline_at) VALUES ROWS RETURNING 1"""


def _row(question: str) -> str:
    at = "'2026-01-01 00:00:00'"
    return f"('{question}', 'bo', 'c', 'why?', 'answered', 'staff', {{value[1]}}, {at}, {at}, {at})"


async def test_what_a_call_writes_that_was_let_in_before_the_kick_is_deleted_too(database: Database) -> None:
    kicked = Statement("SELECT count(*) FROM pushsse_kick")

    async def is_kicked() -> bool:
        return await database.rows(int, kicked) == [1]

    forgetting_ann = asyncio.create_task(forgetting(database, settle_s=1.0).forget("ann"))
    await eventually(is_kicked)
    await put(database, asked("ann", datetime.now(UTC)))
    assert (await forgetting_ann).deleted["questions"] == 1
    assert await left(database) == []


async def test_a_message_to_somebody_who_was_forgotten_leaves_no_row(
    database: Database, migrated_url: str
) -> None:
    conversations = ConversationStore(database)
    message = replace(asked("ann", datetime.now(UTC)), text="", by=By("staff", "Bo"))
    assert not await conversations.write(message, key=None, announce_s=1)
    assert set((await rows_about(database, await tables(database, migrated_url), "ann")).values()) == {0}


async def test_somebody_with_many_questions_is_forgotten_whole(database: Database) -> None:
    now = datetime.now(UTC)
    for at in range(250):
        await put(database, asked("ann", now - timedelta(seconds=at)))
    await put(database, asked("bo", now))
    assert (await forgetting(database).forget("ann")).deleted["questions"] == 250
    assert len(await left(database)) == 1


async def test_the_numbers_of_somebody_who_comes_back_go_on(database: Database) -> None:
    store, states = PreferenceStore(database), StateTable(database)
    await store.join(["alarm"], hidden=False)
    [before] = await store.change("ann", {"alarm": False})
    await store.forget("ann")
    state = (await states.read(["ann"]))["ann"]
    assert (state.off, state.pending, state.logged) == (frozenset(), False, None)
    await asyncio.sleep(0.002)
    # What changes nothing makes the row, and leaves nothing to wait for.
    assert await store.change("ann", {"alarm": True}) == []
    state = (await states.read(["ann"]))["ann"]
    assert (state.pending, state.logged) == (False, None)
    [after] = await store.change("ann", {"alarm": False})
    assert after.version > before.version
    assert (after.before, after.after) == ((), ("alarm",))


async def test_the_answer_says_what_runs_out_elsewhere_and_when(database: Database) -> None:
    outbox = '[{"table": "shop.outbox", "database_url": "postgres://db/shop"}]'
    settings = load(
        {}, {"kafka_bootstrap": "k:9092", "answerer": "kafka:", "log_keep_s": 7_200, "outbox": outbox}
    )
    topics = {
        "push.events": {"retention.ms": "604800000", "cleanup.policy": "delete"},
        "push.events.dlq": {"retention.ms": "-1", "cleanup.policy": "delete"},
        "push.questions": {"retention.ms": "1000", "cleanup.policy": "compact,delete"},
    }
    now = datetime.now(UTC)
    remaining = (await forgetting(database, settings, topics).forget("ann")).remaining

    def within_s(entry: Remainder) -> int | None:
        if entry.until is None:
            return None
        return round((datetime.fromisoformat(entry.until) - now).total_seconds() / 60) * 60

    assert {entry.topic: within_s(entry) for entry in remaining if entry.where == "kafka"} == {
        "push.events": 604_800,
        "push.events.dlq": None,
        "push.questions": None,
        "push.answers": None,
        "push.answers.dlq": None,
    }
    assert "staff" in remaining[0].detail
    # As long as a token can live, and until each node has come to it.
    kick_s = 60 * round((86_430 + 300 + 200 * 15 * 1.25) / 60)
    assert [(entry.where, within_s(entry)) for entry in remaining if entry.where != "kafka"] == [
        ("log", 7_200),
        ("backplane", 4_200),
        ("nodes", kick_s),
        ("database", kick_s),
        ("database", None),
        ("outbox", None),
        ("database", None),
        ("backups", None),
        ("logs", None),
    ]


async def test_topics_of_a_pattern_are_named_each(database: Database) -> None:
    sources = '[{"topics": ["orders", "alarm-.*"], "format": "headers"}]'
    settings = load({}, {"kafka_bootstrap": "k:9092", "kafka": sources})
    config = {"retention.ms": "604800000"}
    names = ("push.events", "orders", "alarm-1", "alarm-2", "alarm-2.dlq", "other")
    remaining = (await forgetting(database, settings, dict.fromkeys(names, config)).forget("ann")).remaining
    found = [(entry.topic, entry.until is not None) for entry in remaining if entry.where == "kafka"]
    assert found == [
        ("push.events", True), ("push.events.dlq", False), ("orders", True), ("orders.dlq", False),
        ("alarm-1", True), ("alarm-1.dlq", False), ("alarm-2", True), ("alarm-2.dlq", True),
    ]  # fmt: skip
    # Kafka is away.
    remaining = (await forgetting(database, settings).forget("ann")).remaining
    [pattern] = [entry for entry in remaining if entry.topic == "alarm-.*"]
    assert (pattern.where, pattern.until) == ("kafka", None)
    assert "pattern" in pattern.detail


async def test_old_times_are_forgotten_in_portions(database: Database) -> None:
    table = SeenTable(database)
    old, new = datetime(2020, 1, 1, tzinfo=UTC), datetime(2026, 1, 1, tzinfo=UTC)
    for start in range(0, 1_100, 100):
        await table.note({f"user-{start + i}": old for i in range(100)})
    await table.note({"ann": old, "bo": old})
    await table.note({"ann": new})
    assert await table.last(("ann", "bo", "cy")) == {"ann": new, "bo": old}
    assert await table.forget_old(new) == FORGOTTEN_AT_ONCE
    assert await table.forget_old(new) == 101
    assert await table.forget_old(new) == 0
    assert await table.last(("ann", "bo")) == {"ann": new}
    assert await table.forget("ann") == {"seen": 1}
    assert await table.last(("ann",)) == {}
