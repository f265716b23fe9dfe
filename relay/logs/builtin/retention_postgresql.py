"""Deleting old records on PostgreSQL: a message a batch, and a prefix of one partition each time."""

from collections.abc import Iterator, Sequence
from typing import Any

from outbox.errors import Retryable
from outbox.process.postgresql import connect, execute, translated
from relay.logs.builtin.address import Address
from relay.logs.builtin.postgresql import PLANNER
from relay.logs.builtin.retention import Pruned, Standing

STATEMENT_SECONDS = 10.0
LOCK_SECONDS = 5.0

# Held for one batch by the one that prunes, and shared by a group that makes itself known: so a batch sees all groups
# that have looked, or are about to look, at where a partition begins. Not the appends' lock: they need not wait.
_KEY = "hashtextextended('retention ' || (select id from {identity}), 0)"

# How far the slowest of the topic's groups is; one that has not reported a partition has read nothing of it. A group is
# also known by what its members state, who may have joined before the topic was made.
_SLOWEST = """
select known.consumer_group, coalesce(reached."offset", 0) as reached from (
    select consumer_group from {group_offset} where topic_id = {topic_id}
    union select member.consumer_group from {member} as member where (
        select name from {topic} where topic_id = {topic_id}
    ) in (select json_array_elements_text(member.topics))
) as known
left join {group_offset} as reached on reached.consumer_group = known.consumer_group
    and reached.topic_id = {topic_id} and reached.partition = {partition}
order by 2, 1 limit 1
"""
_EDGE = """
select {columns} from {record} as r where r.topic_id = {topic_id} and r.partition = {partition}{more}
order by r."offset" {direction} limit 1
"""
_OLD = "time < clock_timestamp() - make_interval(secs => {retain})"

# next_unread: the first record that the slowest group has not read, or the first of all when no group is known.
_STANDING = """
select topic.topic_id, topic.name, parts.number as partition, topic.retain_seconds, slowest.consumer_group,
    coalesce(slowest.reached, 0) as reached, first."offset" as first, newest."offset" as newest,
    first.{old_first} as first_is_old, coalesce(next_unread.{old_next}, false) as unread_is_old
from {topic} as topic cross join lateral generate_series(0, topic.partitions - 1) as parts(number)
cross join lateral ({first}) as first cross join lateral ({newest}) as newest
left join lateral ({slowest}) as slowest on true
left join lateral ({next_unread}) as next_unread on true
where topic.retain_seconds is not null order by topic.name, parts.number
"""

# Why each line stands:
# - bounds: without a group that has read the topic there is no row, and nothing goes. The newest record stays, or
#   offsets would begin again.
# - slice: only under the lock. `begin` is the partition's first offset, so what goes is a prefix.
# - upto: the first record that is not old enough ends the prefix, whatever comes behind it.
_TAKE = "select set_config('outbox.retention', pg_try_advisory_xact_lock({key})::text, true)"
_PRUNE = """
with bounds as materialized (
    select least(slowest.reached, newest."offset") as upto, topic.retain_seconds
    from {topic} as topic cross join lateral ({slowest}) as slowest cross join lateral ({newest}) as newest
    where topic.topic_id = %(topic_id)s
), slice as materialized (
    select r."offset", r.{old} as old from bounds cross join lateral (
        select "offset", time from {record} where topic_id = %(topic_id)s and partition = %(partition)s
            and "offset" >= %(begin)s and "offset" < bounds.upto order by "offset" limit %(most)s) as r
    where current_setting('outbox.retention') = 'true'
), prefix as materialized (
    select coalesce(min("offset") filter (where not old), max("offset") + 1) as upto from slice
), gone as (
    delete from {record} where topic_id = %(topic_id)s and partition = %(partition)s
        and "offset" >= %(begin)s and "offset" < (select upto from prefix)
    returning 1
)
select (select count(*) from gone) as deleted, current_setting('outbox.retention') = 'true' as alone
"""
_ENROL = """
with found as materialized (
    select topic_id, name, partitions from {topic} where name = any(%(names)s)
), made as (
    insert into {group_offset} (consumer_group, topic_id, partition, "offset")
    select %(consumer_group)s, found.topic_id, parts.number, 0
    from found cross join lateral generate_series(0, found.partitions - 1) as parts(number)
    order by found.topic_id, parts.number
    on conflict (consumer_group, topic_id, partition) do nothing
)
select name from found
"""


class PostgresqlRetention:
    """See `Retention`."""

    def __init__(self, address: Address) -> None:
        place = address.place
        self._names = {
            name: place.sql(f"log_{name}") for name in ("record", "topic", "group_offset", "member", "identity")
        }
        key = _KEY.format(**self._names)
        self._prune = f"{_TAKE.format(key=key)};{self._prune_text()}"
        self._enrol = f"select pg_advisory_xact_lock_shared({key});{_ENROL.format(**self._names)}"
        self._connection = connect(
            address.url,
            name="log retention",
            statement_seconds=STATEMENT_SECONDS,
            lock_seconds=LOCK_SECONDS,
            settings=PLANNER,
        )

    def _edge(self, part: dict[str, str], columns: str, *, more: str = "", direction: str = "asc") -> str:
        return _EDGE.format(**self._names, **part, columns=columns, more=more, direction=direction)

    def _prune_text(self) -> str:
        part = {"topic_id": "%(topic_id)s", "partition": "%(partition)s"}
        return _PRUNE.format(
            **self._names,
            slowest=_SLOWEST.format(**self._names, **part),
            newest=self._edge(part, 'r."offset"', direction="desc"),
            old=_OLD.format(retain="bounds.retain_seconds"),
        )

    def _standing_text(self) -> str:
        part = {"topic_id": "topic.topic_id", "partition": "parts.number"}
        old = _OLD.format(retain="topic.retain_seconds")
        return _STANDING.format(
            **self._names,
            slowest=_SLOWEST.format(**self._names, **part),
            first=self._edge(part, 'r."offset", r.time'),
            newest=self._edge(part, 'r."offset"', direction="desc"),
            next_unread=self._edge(part, "r.time", more=' and r."offset" >= coalesce(slowest.reached, 0)'),
            old_first=old,
            old_next=old,
        )

    def standing(self) -> Iterator[Standing]:
        """Return how every partition stands that holds records; see `Retention.standing`."""
        with translated():
            rows = execute(self._connection, self._standing_text()).fetchall()
        return (Standing(**row) for row in rows)

    def prune(self, standing: Standing, begin: int, most: int) -> Pruned:
        """Delete the next records of a partition; see `Retention.prune`."""
        row = self._last(
            self._prune,
            {"topic_id": standing.topic_id, "partition": standing.partition, "begin": begin, "most": most},
        ).fetchone()
        if row is None:
            raise Retryable("the log gave no answer when records were to be deleted")
        return Pruned(row["deleted"], row["alone"])

    def enrol(self, group: str, topics: Sequence[str]) -> Sequence[str]:
        """Make a group known; see `RetainingLog.enrol`."""
        rows = self._last(self._enrol, {"consumer_group": group, "names": list(topics)}).fetchall()
        return [row["name"] for row in rows]

    def retentions(self, topics: Sequence[str]) -> dict[str, int | None]:
        """Return for how many seconds topics keep records."""
        with translated():
            rows = execute(
                self._connection,
                f"select name, retain_seconds from {self._names['topic']} where name = any(%(names)s)",
                {"names": list(topics)},
            ).fetchall()
        return {row["name"]: row["retain_seconds"] for row in rows}

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _last(self, message: str, parameters: dict[str, Any]) -> Any:
        """Send one message of two statements; return the cursor at the second."""
        with translated():
            cursor = execute(self._connection, message, parameters)
            cursor.nextset()
            return cursor
