"""A consumer group's tables on PostgreSQL: each change is one autocommit statement, bound by the client."""

from collections.abc import Collection, Mapping
from typing import Any

from psycopg.types.json import Json

from outbox.message import Offset
from outbox.process.postgresql import connect, execute, translated
from relay.logs.builtin.address import Address
from relay.logs.builtin.group.store import Beat, Holding, Pulse, Roll
from relay.logs.builtin.store import Topic
from relay.logs.contract import Partition

PLANNER = {"enable_seqscan": "off"}
"""Fresh tables have no statistics."""

_GONE = (
    "(m.seen_at < clock_timestamp() - make_interval(secs => %(gone)s)"
    " or m.seen_at > clock_timestamp() + make_interval(secs => %(gone)s))"
)

# Each reads the CTE before it, so that the group's row is locked first: who waits for it, sees what was done before.
_JOIN = """
with locked as (
    insert into {group} as g (consumer_group, epoch) values (%(group)s, 1)
    on conflict (consumer_group) do update set epoch = g.epoch + 1, updated_at = clock_timestamp()
    returning epoch
), joined as (
    insert into {member} (consumer_group, member, topics, joined_at, seen_at)
    select %(group)s, %(member)s, %(stated)s, clock_timestamp(), clock_timestamp() from locked
    on conflict (consumer_group, member) do update set seen_at = excluded.seen_at, topics = excluded.topics
    returning 1
)
select epoch from locked cross join joined
"""
_BEAT = """
with beat as (
    update {member} set seen_at = clock_timestamp() where consumer_group = %(group)s and member = %(member)s returning 1
)
select g.epoch, exists (
    select from {member} as m where m.consumer_group = %(group)s and m.member <> %(member)s and {gone}
) as others_gone
from {group} as g cross join beat where g.consumer_group = %(group)s
"""
# `gone` is looked at again under the lock of the member's row: one that has just beaten stays.
_REMOVE = """
with locked as (
    select epoch from {group} where consumer_group = %(group)s for update
), removed as (
    delete from {member} as m using locked where m.consumer_group = %(group)s and ({which}) returning 1
)
update {group} set epoch = epoch + 1, updated_at = clock_timestamp()
where consumer_group = %(group)s and exists (select from removed)
"""
_ROLL = """
select g.epoch,
    (select coalesce(json_object_agg(m.member, m.topics), '{{}}') from {member} as m where m.consumer_group = %(group)s)
        as members,
    (select coalesce(json_agg(distinct t.name), '[]') from {offset} as o join {topic} as t using (topic_id)
        where o.consumer_group = %(group)s) as topics
from {group} as g where g.consumer_group = %(group)s
"""
# The lock of the group's row keeps `roll` true until this ends: nobody joins meanwhile, so an owner that is not in it
# is no member, however long the statement waited for its row. The first look keeps rows of live owners unlocked.
_TAKE = """
with locked as (
    select epoch from {group} where consumer_group = %(group)s and epoch = %(epoch)s for share
)
insert into {offset} as o (consumer_group, topic_id, partition, "offset", member, epoch)
select %(group)s, wanted.topic_id, wanted.number, 0, %(member)s, locked.epoch
from locked cross join unnest(%(topics)s::int[], %(numbers)s::int[]) as wanted (topic_id, number)
where not exists (
    select from {offset} as held
    where held.consumer_group = %(group)s and held.topic_id = wanted.topic_id and held.partition = wanted.number
        and held.member <> %(member)s and held.member = any(%(members)s)
)
order by wanted.topic_id, wanted.number
on conflict (consumer_group, topic_id, partition) do update set member = excluded.member, epoch = excluded.epoch
where o.member is null or o.member = excluded.member or not (o.member = any(%(members)s))
returning o.topic_id, o.partition
"""
_HELD = (
    "o.consumer_group = %(group)s and o.topic_id = ours.topic_id and o.partition = ours.number"
    " and o.member = %(member)s and o.epoch = ours.epoch"
)
_OURS = (
    "unnest(%(topics)s::int[], %(numbers)s::int[], %(epochs)s::bigint[]{more}) as ours (topic_id, number, epoch{name})"
)
_GIVE_UP = """
update {offset} as o set member = null, "offset" = greatest(o."offset", ours.reached), updated_at = clock_timestamp()
from {ours} where {held}
"""
_COMMIT = """
update {offset} as o set "offset" = greatest(o."offset", ours.reached), updated_at = clock_timestamp()
from {ours} where {held}
returning o.topic_id, o.partition
"""
_COMMITTED = """
select t.name, t.incarnation, o.partition, o."offset" as reached from {offset} as o join {topic} as t using (topic_id)
where o.consumer_group = %(group)s and o."offset" > 0
"""


class PostgresqlGroup:
    """One group's tables, on one connection."""

    def __init__(self, address: Address, group: str, pulse: Pulse) -> None:
        names = {name: address.place.sql(f"log_{name}") for name in ("group", "member", "topic")}
        names["offset"] = address.place.sql("log_group_offset")
        ours = _OURS.format(more=", %(offsets)s::bigint[]", name=", reached")
        self._join = _JOIN.format(**names)
        self._beat = _BEAT.format(**names, gone=_GONE)
        self._remove_gone = _REMOVE.format(**names, which=_GONE)
        self._leave = _REMOVE.format(**names, which="m.member = %(member)s")
        self._roll = _ROLL.format(**names)
        self._take = _TAKE.format(**names)
        self._give_up = _GIVE_UP.format(**names, ours=ours, held=_HELD)
        self._commit = _COMMIT.format(**names, ours=ours, held=_HELD)
        self._committed = _COMMITTED.format(**names)
        self._group = group
        self._pulse = pulse
        self._connection = connect(
            address.url,
            name=f"inbox-group {group}",
            statement_seconds=0.5 * pulse.gone_seconds,
            lock_seconds=0.3 * pulse.gone_seconds,
            settings=PLANNER,
        )

    def join(self, member: str, topics: Collection[str]) -> int:
        """Become a member; see `GroupStore.join`."""
        return int(self._all(self._join, member=member, stated=Json(sorted(topics)))[0]["epoch"])

    def beat(self, member: str) -> Beat | None:
        """Say that the member is alive; see `GroupStore.beat`."""
        rows = self._all(self._beat, member=member, gone=self._pulse.gone_seconds)
        return Beat(rows[0]["epoch"], rows[0]["others_gone"]) if rows else None

    def remove_gone(self) -> None:
        """Remove members that were not seen for too long; see `GroupStore.remove_gone`."""
        self._all(self._remove_gone, gone=self._pulse.gone_seconds)

    def leave(self, member: str) -> None:
        """Be a member no longer; see `GroupStore.leave`."""
        self._all(self._leave, member=member)

    def roll(self) -> Roll:
        """Return who is in the group; see `GroupStore.roll`."""
        rows = self._all(self._roll)
        if not rows:
            return Roll(0, {})
        members = {member: frozenset(topics) for member, topics in rows[0]["members"].items()}
        return Roll(rows[0]["epoch"], members, frozenset(rows[0]["topics"]))

    def take(self, member: str, roll: Roll, wanted: Mapping[Partition, Topic]) -> frozenset[Partition]:
        """Take what is free; see `GroupStore.take`."""
        rows = self._all(
            self._take,
            member=member,
            epoch=roll.epoch,
            members=list(roll.members),
            topics=[topic.number for topic in wanted.values()],
            numbers=[partition.number for partition in wanted],
        )
        return _found(rows, wanted)

    def give_up(self, member: str, holdings: Mapping[Partition, Holding], offsets: Mapping[Partition, Offset]) -> None:
        """Let others take these partitions; see `GroupStore.give_up`."""
        self._all(self._give_up, **_columns(member, holdings, [offsets.get(partition) for partition in holdings]))

    def commit(
        self, member: str, holdings: Mapping[Partition, Holding], offsets: Mapping[Partition, Offset]
    ) -> frozenset[Partition]:
        """Report how far the group has come; see `GroupStore.commit`."""
        ours = {partition: holdings[partition] for partition in offsets}
        rows = self._all(self._commit, **_columns(member, ours, list(offsets.values())))
        return _found(rows, {partition: holding.topic for partition, holding in ours.items()})

    def committed(self) -> dict[Partition, Offset]:
        """Return what the group has reported."""
        return {
            Partition(row["name"], str(row["incarnation"]), row["partition"]): Offset(row["reached"])
            for row in self._all(self._committed)
        }

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _all(self, statement: str, **parameters: Any) -> list[dict[str, Any]]:
        with translated():
            cursor = execute(self._connection, statement, {"group": self._group, **parameters})
            return cursor.fetchall() if cursor.description else []


def _columns(member: str, holdings: Mapping[Partition, Holding], offsets: list[Any]) -> dict[str, Any]:
    return {
        "member": member,
        "topics": [holding.topic.number for holding in holdings.values()],
        "numbers": [partition.number for partition in holdings],
        "epochs": [holding.epoch for holding in holdings.values()],
        "offsets": offsets,
    }


def _found(rows: list[dict[str, Any]], asked: Mapping[Partition, Topic]) -> frozenset[Partition]:
    found = {(row["topic_id"], row["partition"]) for row in rows}
    return frozenset(partition for partition, topic in asked.items() if (topic.number, partition.number) in found)
