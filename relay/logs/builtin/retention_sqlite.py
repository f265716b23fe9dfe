"""Deleting old records on SQLite: a short transaction a batch, in which we are the file's one writer."""

import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta

from outbox.journal.sqlite import stored_time
from outbox.process.sqlite import connect, immediate, translated
from relay.logs.builtin.address import Address
from relay.logs.builtin.retention import Pruned, Standing

BUSY_SECONDS = 1.0


class SqliteRetention:
    """See `Retention`."""

    def __init__(self, address: Address) -> None:
        place = address.place
        self._record, self._topic = place.sql("log_record"), place.sql("log_topic")
        self._offset, self._member = place.sql("log_group_offset"), place.sql("log_member")
        self._connection = connect(address.url, busy_seconds=BUSY_SECONDS)

    def standing(self) -> Iterator[Standing]:
        """Return how every partition stands that holds records; see `Retention.standing`."""
        with translated():
            topics = self._connection.execute(
                f"select topic_id, name, partitions, retain_seconds from {self._topic}"
                " where retain_seconds is not null order by name"
            ).fetchall()
            for topic in topics:
                for number in range(topic["partitions"]):
                    one = self._standing(topic["topic_id"], topic["name"], number, topic["retain_seconds"])
                    if one is not None:
                        yield one

    def _standing(self, topic_id: int, name: str, number: int, retain_seconds: int) -> Standing | None:
        place = (topic_id, number)
        first = self._record_from(place, 0)
        newest = self._newest(place)
        if first is None or newest is None:
            return None
        group, reached = self._slowest(place) or (None, 0)
        unread = self._record_from(place, reached)
        before = _before(retain_seconds)
        return Standing(
            topic_id,
            name,
            number,
            retain_seconds,
            group,
            reached,
            first[0],
            newest,
            first[1] < before,
            unread is not None and unread[1] < before,
        )

    def _record_from(self, place: tuple[int, int], offset: int) -> tuple[int, str] | None:
        row = self._connection.execute(
            f'select "offset", time from {self._record} where topic_id = ? and partition = ? and "offset" >= ?'
            ' order by "offset" limit 1',
            (*place, offset),
        ).fetchone()
        return None if row is None else (row["offset"], row["time"])

    def _newest(self, place: tuple[int, int]) -> int | None:
        row = self._connection.execute(
            f'select max("offset") as newest from {self._record} where topic_id = ? and partition = ?', place
        ).fetchone()
        newest: int | None = row["newest"]
        return newest

    def _slowest(self, place: tuple[int, int]) -> tuple[str, int] | None:
        """Return the group furthest behind; one that has not reported a partition has read nothing of it.

        A group is also known by what its members state, who may have joined before the topic was made.
        """
        row = self._connection.execute(
            f'select known.consumer_group, coalesce(o."offset", 0) as reached from (select consumer_group'
            f" from {self._offset} where topic_id = ?1 union select m.consumer_group from {self._member} as m"
            f" where (select name from {self._topic} where topic_id = ?1) in (select value from json_each(m.topics))"
            f") as known left join {self._offset} as o"
            " on o.consumer_group = known.consumer_group and o.topic_id = ?1 and o.partition = ?2"
            " order by 2, 1 limit 1",
            place,
        ).fetchone()
        return None if row is None else (row["consumer_group"], row["reached"])

    def prune(self, standing: Standing, begin: int, most: int) -> Pruned:
        """Delete the next records of a partition; see `Retention.prune`."""
        place = (standing.topic_id, standing.partition)
        with translated(), immediate(self._connection):
            now = self._standing(standing.topic_id, standing.name, standing.partition, standing.retain_seconds)
            if now is None or not now.prunable:
                return Pruned(0, alone=True)
            upto = min(now.reached, now.newest, begin + most)
            young = self._connection.execute(
                f'select min("offset") as young from {self._record}'
                ' where topic_id = ? and partition = ? and "offset" >= ? and "offset" < ? and time >= ?',
                (*place, begin, upto, _before(standing.retain_seconds)),
            ).fetchone()["young"]
            deleted = self._connection.execute(
                f'delete from {self._record} where topic_id = ? and partition = ? and "offset" >= ? and "offset" < ?',
                (*place, begin, upto if young is None else young),
            ).rowcount
        return Pruned(deleted, alone=True)

    def enrol(self, group: str, topics: Sequence[str]) -> Sequence[str]:
        """Make a group known; see `RetainingLog.enrol`."""
        with translated(), immediate(self._connection):
            rows = self._connection.execute(
                f"select topic_id, name, partitions from {self._topic} where name in (select value from json_each(?))",
                (json.dumps(list(topics)),),
            ).fetchall()
            self._connection.executemany(
                f'insert into {self._offset} (consumer_group, topic_id, partition, "offset") values (?, ?, ?, 0)'
                " on conflict (consumer_group, topic_id, partition) do nothing",
                [(group, row["topic_id"], number) for row in rows for number in range(row["partitions"])],
            )
        return [row["name"] for row in rows]

    def retentions(self, topics: Sequence[str]) -> dict[str, int | None]:
        """Return for how many seconds topics keep records."""
        with translated():
            rows = self._connection.execute(
                f"select name, retain_seconds from {self._topic} where name in (select value from json_each(?))",
                (json.dumps(list(topics)),),
            ).fetchall()
        return {row["name"]: row["retain_seconds"] for row in rows}

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


def _before(retain_seconds: int) -> str:
    return stored_time(datetime.now(UTC) - timedelta(seconds=retain_seconds))
