"""The outbox's tables in PostgreSQL: their SQL, what nodes read and write there, and what `doctor` asks.

Used by the outbox's service and by the command line. An application writes rows into TABLE; TABLE_bucket says
which node has which part of the keys, and what is in its hands; TABLE_taker says which nodes are there.
Deliberate: rows are neither locked nor remembered by the highest id seen. A row that was locked and skipped
would be overtaken by the next one of its key, and an id that commits late would be passed over for ever.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import NamedTuple

import msgspec

from pushsse.database import Database, Statement
from pushsse.settings import OutboxSource

# NOTIFY's channel of all outboxes; what is sent is the name of the table, without its schema.
CHANNEL = "pushsse_outbox"
BUCKETS = 32
# The frame of an event has 48 KiB, and an event that comes by HTTP or by Kafka 1 MiB.
_MOST_MESSAGE_BYTES = 65_536
_MOST_RECIPIENTS_BYTES = 1024**2
# Of one batch in memory, as text; a single row may have more.
_BATCH_BYTES = 4 * 1024**2
_ERROR_CHARACTERS = 500
_MOST_COUNTED = 100_000
_QUERY_S = 5.0
_CONNECTIONS = 3


class Bucket(NamedTuple):
    """A bucket that a taker has: its rows in hand have the positions from `base` on, in the order of `ids`.

    `round` counts the changes of this row: a statement that comes late changes nothing.
    """

    number: int
    epoch: str
    base: int
    round: int
    ids: tuple[int, ...]


class OutboxRow(NamedTuple):
    """What an application wrote. A text that is longer than any event's is None.

    `ts` is text, since PostgreSQL has times that Python hasn't.
    """

    id: int
    bucket: int
    type: str
    message: str | None
    description: str
    recipients: str | None
    event_id: str | None
    ts: str | None
    ttl_s: int | None
    campaign: str | None
    collapse: str | None
    withdraw: str | None
    traceparent: str | None
    created_at: datetime


class Waiting(NamedTuple):
    """How many rows wait (100,000 stands for more), and the age of the oldest, in seconds."""

    depth: int
    lag_s: float


class Holding(NamedTuple):
    """A bucket as its taker knows it: the base and the round that the next change of it has to find."""

    number: int
    base: int
    round: int


def names(table: str) -> Mapping[str, str]:
    """The quoted names that a statement needs: of the table, and of the two beside it."""
    schema, _, name = table.rpartition(".")
    prefix = f'"{schema}".' if schema else ""
    return {
        "rows": f'{prefix}"{name}"',
        "buckets": f'{prefix}"{name}_bucket"',
        "takers": f'{prefix}"{name}_taker"',
        "notify": f'{prefix}"{name}_notify"',
        "check": f'"{name}_says"',
        "index": f'"{name}_waiting"',
        "dead_index": f'"{name}_dead"',
        "trigger": f'"{name}_notify"',
    }


_SCHEMA = """\
-- The outbox {table} of pushsse. Run it as the owner of the schema; where the table is there, it adds what an
-- older release didn't have.
-- An application needs INSERT on {rows} alone; pushsse needs what the GRANTs at the end say.
BEGIN;

CREATE TABLE IF NOT EXISTS {rows} (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    key         text,                       -- rows with the same key are delivered in the order of their ids
    type        text NOT NULL,              -- 'order.paid'
    message     json,                       -- json, not jsonb: the client gets these very bytes
    description text NOT NULL DEFAULT '',   -- one line for people
    recipients  json NOT NULL,              -- '"all"', or '{{"users": ["ann", "bo"]}}'
    event_id    text,                       -- the event's id; without one TABLE-ID
    ts          timestamptz,                -- when it happened; without one created_at
    ttl_s       integer,                    -- seconds that it is worth from then on
    campaign    text,
    collapse    text,                       -- takes the place of earlier events with this key
    withdraw    text,                       -- takes events with this key away; such a row needs no message
    traceparent text,
    created_at  timestamptz NOT NULL DEFAULT now(),
    -- What follows is pushsse's.
    status      text NOT NULL DEFAULT 'waiting' CHECK (status IN ('waiting', 'done', 'dead')),
    error       text,
    ended_at    timestamptz,
    -- What keeps rows in order: the key, else the only recipient, else one for everybody.
    bucket      smallint NOT NULL GENERATED ALWAYS AS ((hashtext(coalesce(
        key, CASE WHEN recipients #> '{{users,1}}' IS NULL THEN (recipients #> '{{users,0}}')::text END, 'all'
    )) & {mask})::smallint) STORED
)
-- Rows come and go: without frequent vacuuming each look passes over those that have gone.
WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000);
DO $$
BEGIN
    IF NOT EXISTS (
        SELECT FROM pg_constraint WHERE conrelid = '{rows}'::regclass AND conname = '{check_name}'
    ) THEN
        ALTER TABLE {rows}
            ADD COLUMN IF NOT EXISTS withdraw text,
            ADD COLUMN IF NOT EXISTS traceparent text,
            ALTER COLUMN message DROP NOT NULL,
            ADD CONSTRAINT {check} CHECK (message IS NOT NULL OR withdraw IS NOT NULL) NOT VALID;
    END IF;
END $$;
CREATE INDEX IF NOT EXISTS {index} ON {rows} (bucket, id) WHERE status = 'waiting';
CREATE INDEX IF NOT EXISTS {dead_index} ON {rows} (id) WHERE status = 'dead';

-- Which node has which bucket, and which rows are in its hands.
CREATE TABLE IF NOT EXISTS {buckets} (
    bucket smallint PRIMARY KEY,
    epoch  text NOT NULL DEFAULT replace(gen_random_uuid()::text, '-', ''),
    taker  text,
    base   bigint NOT NULL DEFAULT 0,
    round  bigint NOT NULL DEFAULT 0,
    ids    bigint[] NOT NULL DEFAULT '{{}}'
) WITH (fillfactor = 50);
INSERT INTO {buckets} (bucket) SELECT generate_series(0, {mask}) ON CONFLICT DO NOTHING;

-- Which nodes are there.
CREATE TABLE IF NOT EXISTS {takers} (
    name  text PRIMARY KEY,
    until timestamptz NOT NULL
) WITH (fillfactor = 50);

-- Once per statement, not per row.
CREATE OR REPLACE FUNCTION {notify}() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('{channel}', TG_TABLE_NAME);
    RETURN NULL;
END $$;
DROP TRIGGER IF EXISTS {trigger} ON {rows};
CREATE TRIGGER {trigger} AFTER INSERT ON {rows}
    FOR EACH STATEMENT EXECUTE FUNCTION {notify}();

COMMIT;

-- For a user of pushsse's that isn't the owner of these tables:
-- GRANT SELECT, UPDATE, DELETE ON {rows} TO pushsse;
-- GRANT SELECT, UPDATE ON {buckets} TO pushsse;
-- GRANT SELECT, INSERT, UPDATE, DELETE ON {takers} TO pushsse;
"""


def sql(table: str) -> str:
    """What `pushsse outbox sql` prints: the tables, the index and the trigger of one outbox."""
    named = names(table)
    check_name = named["check"].strip('"')
    return _SCHEMA.format(table=table, mask=BUCKETS - 1, channel=CHANNEL, check_name=check_name, **named)


# For the length of a transaction. PostgreSQL keeps the plan that it made while the table was empty.
# By that one it would read all of 100,000 rows for each bucket.
# No JIT, since a plan for which there is no index counts as one that costs a lot.
# Pages out of order count as free, or it would look for a bucket's rows among the ids of all buckets, in the
# order of the pages, and pass 31 rows of others for each one.
_BY_INDEX = """
    SELECT set_config('enable_seqscan', 'off', true), set_config('enable_bitmapscan', 'off', true),
           set_config('jit', 'off', true), set_config('random_page_cost', '0', true)"""
# A node is there for so long after its last word. Behind a %s are the names of tables.
_RENEW = """
    INSERT INTO %(takers)s (name, until)
    VALUES ({value[1]}, clock_timestamp() + CAST({value[2]}::text AS interval))
    ON CONFLICT (name) DO UPDATE SET until = EXCLUDED.until"""
_FORGET = "DELETE FROM %(takers)s WHERE until < clock_timestamp() - interval '1 minute'"
_OTHERS = "SELECT count(*) FROM %(takers)s WHERE until > clock_timestamp() AND name <> {value[1]}"
_MINE = """
    SELECT bucket, epoch, base, round, ids FROM %(buckets)s WHERE taker = {value[1]} ORDER BY bucket"""
# Two nodes that look at the same moment take different ones: SKIP LOCKED passes over what the other takes.
_TAKE_OVER = """
    UPDATE %(buckets)s b SET taker = {value[1]}, round = b.round + 1
      FROM (SELECT f.bucket FROM %(buckets)s f
             WHERE f.taker IS NULL OR NOT EXISTS (
                   SELECT FROM %(takers)s t WHERE t.name = f.taker AND t.until > clock_timestamp())
             ORDER BY random() LIMIT {value[2]} FOR UPDATE OF f SKIP LOCKED) free
     WHERE b.bucket = free.bucket
    RETURNING b.bucket, b.epoch, b.base, b.round, b.ids"""
_RELEASE = """
    UPDATE %(buckets)s SET taker = NULL, round = round + 1
     WHERE taker = {value[1]} AND bucket = ANY (CAST({value[2]}::text AS smallint[]))"""
_LEAVE = "UPDATE %(buckets)s SET taker = NULL, round = round + 1 WHERE taker = {value[1]}"
_GONE = "DELETE FROM %(takers)s WHERE name = {value[1]}"

# Ends rows of buckets that are still the taker's, and holds these buckets until the transaction's end.
_END = """
    WITH held AS MATERIALIZED (
        SELECT b.bucket FROM %(buckets)s b
          JOIN unnest(CAST({value[2]}::text AS smallint[]), CAST({value[3]}::text AS bigint[]))
               AS mine (bucket, round) ON b.bucket = mine.bucket AND b.round = mine.round
         WHERE b.taker = {value[1]} ORDER BY b.bucket FOR UPDATE OF b),
    dead AS (
        UPDATE %(rows)s r SET status = 'dead', error = d.error, ended_at = now()
          FROM unnest(CAST({value[5]}::text AS bigint[]),
                      ARRAY (SELECT jsonb_array_elements_text({json[6]}))) AS d (id, error)
         WHERE r.id = d.id AND r.bucket IN (SELECT bucket FROM held)),
    done AS (%(done)s)
    SELECT bucket FROM held"""
_DELETE = """
    DELETE FROM %(rows)s r WHERE r.id = ANY (CAST({value[4]}::text AS bigint[]))
       AND r.bucket IN (SELECT bucket FROM held)"""
_MARK = """
    UPDATE %(rows)s r SET status = 'done', error = NULL, ended_at = now()
     WHERE r.id = ANY (CAST({value[4]}::text AS bigint[])) AND r.bucket IN (SELECT bucket FROM held)"""
# Takes the first rows of each bucket, and writes them down beside it: before anything of them is published.
# Each bucket's first rows come before any second ones, so that a bucket that is full holds up no other.
_TAKE = """
    WITH mine AS MATERIALIZED (
        SELECT * FROM unnest(CAST({value[2]}::text AS smallint[]), CAST({value[3]}::text AS bigint[]),
                             CAST({value[4]}::text AS bigint[]), CAST({value[5]}::text AS boolean[]))
                      AS m (bucket, base, round, ends)),
    first AS (
        SELECT r.id, r.place FROM mine CROSS JOIN LATERAL (
            SELECT w.id, row_number() OVER (ORDER BY w.id) AS place FROM (
                SELECT id FROM %(rows)s
                 WHERE bucket = mine.bucket AND status = 'waiting' ORDER BY id LIMIT {value[7]}) w) r
         ORDER BY r.place, r.id LIMIT {value[6]}),
    -- As such, or the rows would be looked up once for each bucket.
    found AS MATERIALIZED (
        SELECT * FROM (
            SELECT %(columns)s,
                   sum(coalesce(octet_length(r.message::text), 0) + octet_length(r.recipients::text))
                   OVER (ORDER BY first.place, r.id)
                   - coalesce(octet_length(r.message::text), 0) - octet_length(r.recipients::text) AS before
              FROM first JOIN %(rows)s r ON r.id = first.id %(later)s) sized
         WHERE before < %(batch_bytes)s),
    taken AS MATERIALIZED (SELECT bucket, array_agg(id ORDER BY id) AS ids FROM found GROUP BY bucket),
    kept AS (
        UPDATE %(buckets)s b SET base = m.base, round = b.round + 1, ids = coalesce(t.ids, '{{}}')
          FROM mine m LEFT JOIN taken t ON t.bucket = m.bucket
         WHERE b.bucket = m.bucket AND b.taker = {value[1]} AND b.round = m.round
           AND (m.ends OR t.ids IS NOT NULL)
        RETURNING b.bucket)
    SELECT kept.bucket, %(found)s FROM kept LEFT JOIN found ON found.bucket = kept.bucket ORDER BY found.id"""
_COLUMNS = f"""r.id, r.bucket, r.type,
    CASE WHEN octet_length(r.message::text) <= {_MOST_MESSAGE_BYTES} THEN r.message::text END AS message,
    r.description,
    CASE WHEN octet_length(r.recipients::text) <= {_MOST_RECIPIENTS_BYTES} THEN r.recipients::text END
        AS recipients,
    r.event_id,
    CASE WHEN r.ts >= '1970-01-01' AND r.ts < '10000-01-01'
         THEN to_char(r.ts AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') ELSE r.ts::text END AS ts,
    r.ttl_s, r.campaign, r.collapse,
    (SELECT withdraw FROM (SELECT r.*) AS o) AS withdraw,
    (SELECT traceparent FROM (SELECT r.*) AS o) AS traceparent,
    CASE WHEN r.created_at >= '1970-01-01' AND r.created_at < '9999-01-01' THEN r.created_at ELSE now() END
        AS created_at"""  # nosec B608 # numbers of this module
# A table of an older release lacks these columns: their names, looked for in the row first, are found here.
_LATER = "CROSS JOIN (SELECT NULL::text AS withdraw, NULL::text AS traceparent) AS later"
_READ = """
    SELECT %(columns)s FROM %(rows)s r %(later)s
     WHERE r.id = ANY (CAST({value[1]}::text AS bigint[])) ORDER BY r.id"""
_WAITING = """
    SELECT (SELECT count(*) FROM (SELECT FROM %(rows)s WHERE status = 'waiting' LIMIT %(counted)s) w),
           coalesce(extract(epoch FROM clock_timestamp() - (
               SELECT min(o.created_at) FROM %(buckets)s b CROSS JOIN LATERAL (
                   SELECT created_at FROM %(rows)s
                    WHERE bucket = b.bucket AND status = 'waiting' ORDER BY id LIMIT 1) o
                WHERE isfinite(o.created_at))), 0)::float8"""
_TELL = "SELECT pg_notify({value[1]}, {value[2]})"
_DEAD = "SELECT count(*) FROM (SELECT FROM %(rows)s WHERE status = 'dead' LIMIT %(counted)s) d"
_TABLES = """
    SELECT name, to_regclass(name) IS NOT NULL
      FROM unnest(ARRAY ['%(rows)s', '%(buckets)s', '%(takers)s']) AS name"""
_FOUND_COLUMNS = """
    SELECT attname, format_type(atttypid, NULL) FROM pg_attribute
     WHERE attrelid = '%(rows)s'::regclass AND attnum > 0 AND NOT attisdropped"""
_RIGHTS = """
    SELECT name, "right" FROM (VALUES
        ('%(rows)s', 'SELECT'), ('%(rows)s', 'UPDATE'), ('%(rows)s', 'DELETE'),
        ('%(buckets)s', 'SELECT'), ('%(buckets)s', 'UPDATE'),
        ('%(takers)s', 'SELECT'), ('%(takers)s', 'INSERT'), ('%(takers)s', 'UPDATE'), ('%(takers)s', 'DELETE')
    ) AS needed (name, "right") WHERE NOT has_table_privilege(name, "right")"""
_TRIGGERED = """
    SELECT count(*) FROM pg_trigger WHERE tgrelid = '%(rows)s'::regclass AND NOT tgisinternal
       AND tgenabled <> 'D' AND tgname = '%(trigger_name)s'"""
_BUCKETS = "SELECT count(*) FROM %(buckets)s"
_WANTED = {
    "id": "bigint",
    "key": "text",
    "type": "text",
    "message": "json",
    "description": "text",
    "recipients": "json",
    "event_id": "text",
    "ts": "timestamp with time zone",
    "ttl_s": "integer",
    "campaign": "text",
    "collapse": "text",
    "withdraw": "text",
    "traceparent": "text",
    "created_at": "timestamp with time zone",
    "status": "text",
    "error": "text",
    "ended_at": "timestamp with time zone",
    "bucket": "smallint",
}
# What an older release's tables don't have.
LATER = ("withdraw", "traceparent")
_json = msgspec.json.Encoder()


class _Statements:
    """The statements of one table. Each is prepared once, by its text."""

    def __init__(self, source: OutboxSource) -> None:
        given = {
            **names(source.table),
            "columns": _COLUMNS,
            "later": _LATER,
            "found": ", ".join(f"found.{name}" for name in OutboxRow._fields),
            "batch_bytes": _BATCH_BYTES,
            "counted": _MOST_COUNTED,
            "trigger_name": f"{source.table.rpartition('.')[2]}_notify",
        }
        given["done"] = (_DELETE if source.keep == "delete" else _MARK) % given

        def made(text: str) -> Statement:
            return Statement(text % given)

        self.renew, self.forget, self.others, self.mine = map(made, (_RENEW, _FORGET, _OTHERS, _MINE))
        self.take_over, self.release, self.leave, self.gone = map(made, (_TAKE_OVER, _RELEASE, _LEAVE, _GONE))
        self.by_index = made(_BY_INDEX)
        self.end, self.take, self.read, self.waiting = map(made, (_END, _TAKE, _READ, _WAITING))
        self.tell, self.dead, self.tables, self.columns = map(made, (_TELL, _DEAD, _TABLES, _FOUND_COLUMNS))
        self.rights, self.triggered, self.buckets = map(made, (_RIGHTS, _TRIGGERED, _BUCKETS))


class EndedRows(NamedTuple):
    """What became of the rows in hand: those that the log has, and those that can't be events, and why."""

    done: Sequence[int] = ()
    dead: Mapping[int, str] = {}


class OutboxTables:
    """One outbox's tables, over connections of their own. All of it raises DatabaseUnavailable."""

    def __init__(self, source: OutboxSource, url: str) -> None:
        self.table = source.table
        self.database = Database(url, timeout_s=_QUERY_S, pool_size=_CONNECTIONS)
        self._sql = _Statements(source)

    async def renew(self, taker: str, *, lease_s: float) -> None:
        """The taker is there for `lease_s` from now."""
        await self.database.rows(str, self._sql.renew, taker, f"{lease_s} seconds")

    async def others(self, taker: str) -> int:
        """How many other takers are there; those that are long gone are forgotten."""
        await self.database.rows(str, self._sql.forget)
        return (await self.database.rows(int, self._sql.others, taker))[0]

    async def mine(self, taker: str) -> list[Bucket]:
        """The taker's buckets, and what the tables say is in its hands."""
        return await self.database.rows(_bucket, self._sql.mine, taker)

    async def take_over(self, taker: str, most: int) -> list[Bucket]:
        """Takes up to `most` buckets that no taker has who is there."""
        return await self.database.rows(_bucket, self._sql.take_over, taker, most)

    async def release(self, taker: str, buckets: Iterable[int]) -> None:
        """Gives buckets back; what is in hand stays written beside them for the next taker."""
        await self.database.rows(str, self._sql.release, taker, _array(buckets))

    async def leave(self, taker: str) -> None:
        """Gives all buckets back, and goes."""
        await self.database.rows(str, self._sql.leave, taker)
        await self.database.rows(str, self._sql.gone, taker)

    async def take(
        self,
        taker: str,
        holdings: Sequence[Holding],
        ended: Mapping[int, EndedRows],
        *,
        most: int,
        most_of_one: int,
    ) -> tuple[set[int], list[OutboxRow]]:
        """Ends the rows in hand, by bucket, and takes the next, in one transaction.

        Returns the buckets whose state has changed, and the rows in the order of their ids. A bucket of
        `ended` that isn't among those has another taker. When it raises, it may have happened or not.
        """
        given = (
            taker,
            _array(each.number for each in holdings),
            _array(each.base for each in holdings),
            _array(each.round for each in holdings),
            _array(str(each.number in ended).lower() for each in holdings),
            most,
            most_of_one,
        )
        ending = [each for each in holdings if each.number in ended]
        dead = {id_: error for each in ended.values() for id_, error in each.dead.items()}
        async with self.database.transaction() as session:
            await session.rows(_nothing, self._sql.by_index)
            if ended:
                await session.rows(
                    int,
                    self._sql.end,
                    taker,
                    _array(each.number for each in ending),
                    _array(each.round for each in ending),
                    _array(id_ for each in ended.values() for id_ in each.done),
                    _array(dead),
                    _json.encode([error[:_ERROR_CHARACTERS] for error in dead.values()]).decode(),
                )
            return _taken(await session.rows(_pair, self._sql.take, *given))

    async def read(self, ids: Iterable[int]) -> list[OutboxRow]:
        """Rows by their ids, in this order; without those that aren't there any more."""
        return await self.database.rows(OutboxRow, self._sql.read, _array(ids))

    async def waiting(self) -> Waiting:
        """How many rows wait, and for how long."""
        async with self.database.transaction() as session:
            await session.rows(_nothing, self._sql.by_index)
            return (await session.rows(Waiting, self._sql.waiting))[0]

    async def tell(self, text: str) -> None:
        """Sends a notification, over any connection."""
        await self.database.rows(str, self._sql.tell, CHANNEL, text)

    # For `doctor`

    async def dead(self) -> int:
        """How many rows are dead; 100,000 stands for more."""
        return (await self.database.rows(int, self._sql.dead))[0]

    async def faults(self) -> list[str]:
        """What keeps nodes from reading the outbox, and what to do."""
        rows = self.database.rows
        make = f"run `pushsse outbox sql --table {self.table} | psql …`"
        if missing := [name for name, there in await rows(_there, self._sql.tables) if not there]:
            return [f"{', '.join(missing)} isn't there: {make}"]
        found = [
            f"{name} may not be {_DONE[right]}: GRANT {right} ON {name} TO …"
            for name, right in await rows(_two, self._sql.rights)
        ]
        columns = dict(await rows(_two, self._sql.columns))
        for name, kind in _WANTED.items():
            if name not in columns:
                if name not in LATER:
                    found.append(f"has no column {name}: {make} into an empty schema, and compare")
            elif columns[name] != kind:
                found.append(f"{name} is {columns[name]}, and has to be {kind}")
        if not found and (count := (await rows(int, self._sql.buckets))[0]) != BUCKETS:
            found.append(f"has {count} of {BUCKETS} rows in its table of buckets: {make}")
        return found

    async def lacks(self) -> list[str]:
        """The columns that a table of an older release doesn't have, and can do without."""
        columns = dict(await self.database.rows(_two, self._sql.columns))
        return [name for name in LATER if name not in columns]

    async def is_triggered(self) -> bool:
        """Whether an INSERT wakes the nodes."""
        return (await self.database.rows(int, self._sql.triggered))[0] > 0


_DONE = {"SELECT": "read", "INSERT": "written", "UPDATE": "changed", "DELETE": "deleted from"}


def _array(values: Iterable[object]) -> str:
    """An array's text. A list would be taken for one of texts."""
    return "{" + ",".join(map(str, values)) + "}"


def _bucket(number: int, epoch: str, base: int, round_: int, ids: list[int]) -> Bucket:
    return Bucket(number, epoch, base, round_, tuple(ids))


def _pair(kept: int, *columns: object) -> tuple[int, OutboxRow | None]:
    return kept, None if columns[0] is None else OutboxRow(*columns)  # type: ignore[arg-type]


def _taken(found: Sequence[tuple[int, OutboxRow | None]]) -> tuple[set[int], list[OutboxRow]]:
    return {kept for kept, _ in found}, [row for _, row in found if row is not None]


def _nothing(*_: str) -> None:
    """What a statement returns that is run for its effect."""


def _there(name: str, there: bool) -> tuple[str, bool]:
    return name, there


def _two(one: str, other: str) -> tuple[str, str]:
    return one, other
