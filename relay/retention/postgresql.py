"""Deleting read entries on PostgreSQL: one message a batch, which reads registrations and checkpoints as it deletes."""

from datetime import timedelta

from sqlalchemy import URL

from outbox.errors import Retryable
from outbox.message import Position
from outbox.process.postgresql import connect, execute, translated
from outbox.tables import Place
from relay.retention.contract import Batch

STATEMENT_SECONDS = 10.0
LOCK_SECONDS = 1.0

# A registration that is being made waits until the batch is over, and the next batch sees it: the lock is a statement
# of its own, so that the DELETE has a snapshot from after it. With an older one it would take entries from the middle
# of what a new relay with `--start earliest` is reading. It also lets those that prune take turns.
_LOCK = "lock table {relay} in share row exclusive mode"

# Why each line stands:
# - readers: one row a registration, with the newest step and nothing wider. A snapshot of another cluster or database
#   says nothing about these transactions, and a relay without one has read nothing: both keep what they match.
# - wanted: "every relay that wants it has read it" is true of an entry that nobody wants, hence `readers > 0`.
# - visible in S0: entries of a window that is not finished, and of a chunk that is open, are not.
_PRUNE = """
with readers as materialized (
    select relay.name, relay.topics, case when relay.cluster = (select system_identifier from pg_control_system())::text
        and relay.database = (select oid from pg_database where datname = current_database())::text
        then newest.snapshot_from::pg_snapshot end as snapshot
    from {relay} as relay left join lateral (
        select snapshot_from from {checkpoint} as step where step.incarnation = relay.incarnation
        order by step.step desc limit 1) as newest on true
), slice as materialized (
    select position, transaction_id, topic,
        created_at < clock_timestamp() - make_interval(secs => %(retain)s) as old
    from {outbox} where position > %(after)s order by position limit %(most)s
), wanted as materialized (
    select topics.topic, readers.name, readers.snapshot from (select distinct topic from slice where old) as topics
    join readers on exists (
        select from unnest(string_to_array(readers.topics, ',')) as pattern where topics.topic = pattern
            or right(pattern, 1) = '*' and starts_with(topics.topic, left(pattern, -1)))
), unread as materialized (
    select slice.position, wanted.name from slice join wanted on wanted.topic = slice.topic
    where slice.old
        and (wanted.snapshot is null or not pg_visible_in_snapshot(slice.transaction_id, wanted.snapshot))
), claimed as materialized (
    select position from slice where old and topic in (select topic from wanted)
), gone as (
    delete from {outbox} where position = any (array(
        select position from claimed where position not in (select position from unread)))
    returning 1
)
select (select count(*) from slice) as seen, coalesce((select max(position) from slice), %(after)s) as last,
    (select count(*) from slice where old) as old, (select count(*) from gone) as deleted,
    (select count(*) from slice where old) - (select count(*) from claimed) as unclaimed,
    (select json_object_agg(name, entries) from (
        select name, count(*) as entries from unread group by name) as held) as unread
"""


class PostgresqlEntries:
    """The outbox's entries; see `Entries`."""

    def __init__(self, url: URL, place: Place, *, name: str) -> None:
        tables = {
            "outbox": place.sql("outbox"),
            "relay": place.sql("relay"),
            "checkpoint": place.sql("relay_checkpoint"),
        }
        # One message: the server locks, deletes and commits, whatever becomes of this client meanwhile.
        self._statement = ";".join(text.format(**tables) for text in (_LOCK, _PRUNE))
        self._connection = connect(
            url,
            name=name,
            statement_seconds=STATEMENT_SECONDS,
            lock_seconds=LOCK_SECONDS,
            # A table without statistics must not be sorted to find its oldest entries.
            settings={"enable_seqscan": "off", "enable_bitmapscan": "off"},
        )

    def prune(self, after: Position, most: int, retain: timedelta) -> Batch:
        """Delete what may go of the next entries; see `Entries.prune`."""
        with translated():
            cursor = execute(
                self._connection, self._statement, {"after": after, "most": most, "retain": retain.total_seconds()}
            )
            cursor.nextset()
            row = cursor.fetchone()
        if row is None:
            raise Retryable("the database gave no answer when entries were to be deleted")
        return Batch(
            row["seen"], Position(row["last"]), row["old"], row["deleted"], row["unclaimed"], row["unread"] or {}
        )

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()
