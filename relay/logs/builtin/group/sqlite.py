"""A consumer group's tables on SQLite: each change is one `immediate` transaction, the file's only writer."""

import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from uuid import UUID

from outbox.journal.sqlite import stored_time
from outbox.message import Offset
from outbox.process.sqlite import connect, immediate, translated
from relay.logs.builtin.address import Address
from relay.logs.builtin.group.store import Beat, Holding, Pulse, Roll
from relay.logs.builtin.store import Topic
from relay.logs.contract import Partition

_GONE = "(seen_at < :seen_after or seen_at > :seen_before)"


class SqliteGroup:
    """One group's tables, on one connection. The clock is the host's."""

    def __init__(self, address: Address, group: str, pulse: Pulse) -> None:
        place = address.place
        self._groups, self._members = place.sql("log_group"), place.sql("log_member")
        self._offsets, self._topics = place.sql("log_group_offset"), place.sql("log_topic")
        self._group = group
        self._pulse = pulse
        self._connection = connect(address.url, busy_seconds=0.5 * pulse.gone_seconds)

    def join(self, member: str, topics: Collection[str]) -> int:
        """Become a member; see `GroupStore.join`."""
        now = stored_time(datetime.now(UTC))
        with self._writing():
            self._connection.execute(
                f"insert into {self._groups} (consumer_group, epoch) values (?, 0) on conflict do nothing",
                (self._group,),
            )
            self._connection.execute(
                f"insert into {self._members} (consumer_group, member, topics, joined_at, seen_at)"
                " values (?, ?, ?, ?, ?) on conflict (consumer_group, member)"
                " do update set seen_at = excluded.seen_at, topics = excluded.topics",
                (self._group, member, json.dumps(sorted(topics)), now, now),
            )
            self._raise_epoch()
            return self._epoch()

    def beat(self, member: str) -> Beat | None:
        """Say that the member is alive; see `GroupStore.beat`."""
        with self._writing():
            seen = self._connection.execute(
                f"update {self._members} set seen_at = ? where consumer_group = ? and member = ?",
                (stored_time(datetime.now(UTC)), self._group, member),
            )
            if not seen.rowcount:
                return None
            (others_gone,) = self._connection.execute(
                f"select exists (select 1 from {self._members} where consumer_group = :group and {_GONE})",
                self._bounds(),
            ).fetchone()
            return Beat(self._epoch(), bool(others_gone))

    def remove_gone(self) -> None:
        """Remove members that were not seen for too long; see `GroupStore.remove_gone`."""
        with self._writing():
            removed = self._connection.execute(
                f"delete from {self._members} where consumer_group = :group and {_GONE}", self._bounds()
            )
            if removed.rowcount:
                self._raise_epoch()

    def leave(self, member: str) -> None:
        """Be a member no longer; see `GroupStore.leave`."""
        with self._writing():
            removed = self._connection.execute(
                f"delete from {self._members} where consumer_group = ? and member = ?", (self._group, member)
            )
            if removed.rowcount:
                self._raise_epoch()

    def roll(self) -> Roll:
        """Return who is in the group; see `GroupStore.roll`."""
        with translated():
            # One statement, so one snapshot.
            row = self._connection.execute(
                "select g.epoch, (select json_group_object(member, json(topics))"
                f" from {self._members} where consumer_group = ?1),"
                " (select json_group_array(distinct t.name)"
                f" from {self._offsets} as o join {self._topics} as t using (topic_id) where o.consumer_group = ?1)"
                f" from {self._groups} as g where g.consumer_group = ?1",
                (self._group,),
            ).fetchone()
        if row is None:
            return Roll(0, {})
        members = {member: frozenset(topics) for member, topics in json.loads(row[1]).items()}
        return Roll(row[0], members, frozenset(json.loads(row[2])))

    def take(self, member: str, roll: Roll, wanted: Mapping[Partition, Topic]) -> frozenset[Partition]:
        """Take what is free; see `GroupStore.take`."""
        taken = set()
        others = json.dumps([one for one in roll.members if one != member])
        with self._writing():
            if self._epoch() != roll.epoch:
                return frozenset()
            for partition, topic in wanted.items():
                done = self._connection.execute(
                    f'insert into {self._offsets} (consumer_group, topic_id, partition, "offset", member, epoch)'
                    " values (?, ?, ?, 0, ?, ?) on conflict (consumer_group, topic_id, partition)"
                    " do update set member = excluded.member, epoch = excluded.epoch"
                    " where member is null or member not in (select value from json_each(?))",
                    (self._group, topic.number, partition.number, member, roll.epoch, others),
                )
                if done.rowcount:
                    taken.add(partition)
        return frozenset(taken)

    def give_up(self, member: str, holdings: Mapping[Partition, Holding], offsets: Mapping[Partition, Offset]) -> None:
        """Let others take these partitions; see `GroupStore.give_up`."""
        with self._writing():
            for partition, holding in holdings.items():
                self._report(member, partition, holding, offsets.get(partition, Offset(0)), "member = null,")

    def commit(
        self, member: str, holdings: Mapping[Partition, Holding], offsets: Mapping[Partition, Offset]
    ) -> frozenset[Partition]:
        """Report how far the group has come; see `GroupStore.commit`."""
        with self._writing():
            return frozenset(
                partition
                for partition, offset in offsets.items()
                if self._report(member, partition, holdings[partition], offset)
            )

    def committed(self) -> dict[Partition, Offset]:
        """Return what the group has reported."""
        with translated():
            rows = self._connection.execute(
                f'select t.name, t.incarnation, o.partition, o."offset" from {self._offsets} as o'
                f' join {self._topics} as t using (topic_id) where o.consumer_group = ? and o."offset" > 0',
                (self._group,),
            ).fetchall()
        return {Partition(name, str(UUID(made)), number): Offset(offset) for name, made, number, offset in rows}

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _report(self, member: str, partition: Partition, holding: Holding, offset: Offset, also: str = "") -> bool:
        done = self._connection.execute(
            f'update {self._offsets} set {also} "offset" = max("offset", ?), updated_at = CURRENT_TIMESTAMP'
            " where consumer_group = ? and topic_id = ? and partition = ? and member = ? and epoch = ?",
            (offset, self._group, holding.topic.number, partition.number, member, holding.epoch),
        )
        return done.rowcount > 0

    @contextmanager
    def _writing(self) -> Iterator[None]:
        with translated(), immediate(self._connection):
            yield

    def _epoch(self) -> int:
        row = self._connection.execute(
            f"select epoch from {self._groups} where consumer_group = ?", (self._group,)
        ).fetchone()
        return 0 if row is None else int(row[0])

    def _raise_epoch(self) -> None:
        self._connection.execute(
            f"update {self._groups} set epoch = epoch + 1, updated_at = CURRENT_TIMESTAMP where consumer_group = ?",
            (self._group,),
        )

    def _bounds(self) -> dict[str, str]:
        now, gone = datetime.now(UTC), timedelta(seconds=self._pulse.gone_seconds)
        return {"group": self._group, "seen_after": stored_time(now - gone), "seen_before": stored_time(now + gone)}
