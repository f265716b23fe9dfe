"""The built-in log's tables on PostgreSQL."""

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from outbox.message import Epoch, Message, Offset, Position
from outbox.process.postgresql import connect, execute, translated
from relay.logs.builtin.address import Address
from relay.logs.builtin.store import Topic, WireHeaders
from relay.logs.cloudevents import carried_headers
from relay.logs.contract import Bounds, Partition, Record
from relay.logs.headers import header_texts

PLANNER = {"enable_seqscan": "off", "enable_bitmapscan": "off", "work_mem": "64MB"}
"""A fresh table has no statistics, and the newest offset of a partition must never be found by sorting all of them."""


class PostgresqlStore:
    """The log's tables, on one connection."""

    def __init__(self, address: Address, *, name: str, statement_seconds: float = 30, lock_seconds: float = 5) -> None:
        place = address.place
        self._record, self._topic = place.sql("log_record"), place.sql("log_topic")
        self._identity = place.sql("log_identity")
        self.connection = connect(
            address.url, name=name, statement_seconds=statement_seconds, lock_seconds=lock_seconds, settings=PLANNER
        )

    def identity(self) -> str:
        """Return the log's uuid, made on first use."""
        self._all(f"insert into {self._identity} (single) values (1) on conflict do nothing")
        return str(self._all(f"select id from {self._identity}")[0]["id"])

    def topics(self, names: Sequence[str]) -> dict[str, Topic]:
        """Return those of the topics that exist."""
        rows = self._all(
            f"select topic_id, name, incarnation, partitions from {self._topic} where name = any(%(names)s)",
            names=list(names),
        )
        return {row["name"]: _topic(row) for row in rows}

    def bounds(self, wanted: Mapping[Partition, Topic]) -> dict[Partition, Bounds]:
        """Return what each partition holds."""
        edge = (
            f'(select r."offset" from {self._record} as r where r.topic_id = p.topic_id and r.partition = p.number'
            ' order by r."offset" {direction} limit 1)'
        )
        parts = list(wanted)
        rows = self._all(
            f"select p.place, coalesce({edge.format(direction='asc')}, 0) as first,"
            f" coalesce({edge.format(direction='desc')} + 1, 0) as end_offset"
            " from unnest(%(topics)s::int[], %(numbers)s::int[]) with ordinality as p(topic_id, number, place)",
            topics=[wanted[part].number for part in parts],
            numbers=[part.number for part in parts],
        )
        return {parts[row["place"] - 1]: Bounds(Offset(row["first"]), Offset(row["end_offset"])) for row in rows}

    def read(
        self, wanted: Sequence[tuple[Partition, Topic, Offset]], *, most_records: int, most_bytes: int
    ) -> dict[Partition, list[Record]]:
        """Return the records from an offset on; see `Store.read`."""
        size = "coalesce(octet_length(payload), 0)"
        rows = self._all(
            "select p.place, r.* from unnest(%(topics)s::int[], %(numbers)s::int[], %(offsets)s::bigint[])"
            " with ordinality as p(topic_id, number, begin_offset, place)"
            " cross join lateral (select run.* from ("
            f'select found.*, sum({size}) over (order by found."offset") - {size} as bytes_before from ('
            f"select * from {self._record} as kept where kept.topic_id = p.topic_id and kept.partition = p.number"
            ' and kept."offset" >= p.begin_offset order by kept."offset" limit %(most)s) as found) as run'
            ' where run.bytes_before < %(most_bytes)s) as r order by p.place, r."offset"',
            topics=[topic.number for _, topic, _ in wanted],
            numbers=[part.number for part, _, _ in wanted],
            offsets=[offset for _, _, offset in wanted],
            most=most_records,
            most_bytes=most_bytes,
        )
        found: dict[Partition, list[Record]] = {}
        for row in rows:
            partition = wanted[row["place"] - 1][0]
            found.setdefault(partition, []).append(_record(partition, row))
        return found

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()

    def _all(self, statement: str, **parameters: Any) -> list[dict[str, Any]]:
        with translated():
            cursor = execute(self.connection, statement, parameters)
            return cursor.fetchall() if cursor.description else []


def _topic(row: Mapping[str, Any]) -> Topic:
    return Topic(row["topic_id"], row["name"], str(row["incarnation"]), row["partitions"])


def _record(partition: Partition, row: Mapping[str, Any]) -> Record:
    identity: UUID = row["id"]
    message = Message(
        id=identity,
        topic=partition.topic,
        key=row["key"],
        type=row["type"],
        payload=row["payload"],
        content_type=row["content_type"],
        headers=carried_headers(header_texts(row["headers"])) if row["headers"] else {},
        source=row["source"],
        time=row["time"],
        sequence=Position(row["sequence"]),
    )
    return Record(partition, Offset(row["offset"]), message, WireHeaders(message, Epoch(row["epoch"])))
