"""The built-in log's tables on SQLite: one file, several processes."""

import json
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID, uuid4

from sqlalchemy import URL

from outbox.journal.sqlite import stored_time
from outbox.message import Entry, Epoch, Message, Offset, Position
from outbox.process.sqlite import connect, immediate, translated
from relay.logs.builtin.address import Address
from relay.logs.builtin.store import Topic, WireHeaders
from relay.logs.cloudevents import carried_headers
from relay.logs.contract import Bounds, Partition, Record
from relay.logs.headers import header_texts
from relay.logs.partition import partition_of


class SqliteStore:
    """The log's tables, on one connection."""

    def __init__(self, address: Address, *, connection: sqlite3.Connection | None = None) -> None:
        self._address = address
        place = address.place
        self._record, self._topic = place.sql("log_record"), place.sql("log_topic")
        self._identity = place.sql("log_identity")
        self.connection = connection or connect(address.url)

    def identity(self) -> str:
        """Return the log's uuid, made on first use."""
        with translated(), immediate(self.connection):
            self.connection.execute(
                f"insert into {self._identity} (single, id) values (1, ?) on conflict do nothing", (uuid4().hex,)
            )
        with translated():
            (identity,) = self.connection.execute(f"select id from {self._identity}").fetchone()
        return str(UUID(identity))

    def topics(self, names: Sequence[str]) -> dict[str, Topic]:
        """Return those of the topics that exist."""
        with translated():
            rows = self.connection.execute(
                f"select topic_id, name, incarnation, partitions from {self._topic}"
                " where name in (select value from json_each(?))",
                (json.dumps(list(names)),),
            ).fetchall()
        return {
            row["name"]: Topic(row["topic_id"], row["name"], str(UUID(row["incarnation"])), row["partitions"])
            for row in rows
        }

    def make_topics(self, names: Iterable[str]) -> None:
        """Make topics that do not exist; inside the caller's transaction."""
        self.connection.executemany(
            f"insert into {self._topic} (name, incarnation, partitions, retain_seconds) values (?, ?, ?, ?)"
            " on conflict (name) do nothing",
            [(name, uuid4().hex, self._address.partitions, self._address.retain_seconds) for name in sorted(names)],
        )

    def append(self, entries: Sequence[Entry], epoch: Epoch, source: str) -> None:
        """Append entries, inside the caller's `immediate` transaction, which makes it the file's only writer."""
        names = {entry.message.topic for entry in entries}
        self.make_topics(names)
        topics = self.topics(sorted(names))
        heads: dict[tuple[int, int], int] = {}
        rows = []
        for entry in entries:
            message = entry.message
            topic = topics[message.topic]
            partition = partition_of(message.key, message.id, topic.partitions)
            place = (topic.number, partition)
            if place not in heads:
                heads[place] = self._head(*place)
            rows.append((*place, heads[place], *_columns(entry, epoch, source)))
            heads[place] += 1
        self.connection.executemany(
            f'insert into {self._record} (topic_id, partition, "offset", sequence, epoch, id, source, "key", type,'
            " content_type, time, headers, payload) values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            rows,
        )

    def _head(self, topic: int, partition: int) -> int:
        row = self.connection.execute(
            f'select max("offset") from {self._record} where topic_id = ? and partition = ?', (topic, partition)
        ).fetchone()
        return 0 if row[0] is None else int(row[0]) + 1

    def bounds(self, wanted: Mapping[Partition, Topic]) -> dict[Partition, Bounds]:
        """Return what each partition holds."""
        found = {}
        with translated():
            for part, topic in wanted.items():
                first, last = self.connection.execute(
                    f'select (select min("offset") from {self._record} where topic_id = ?1 and partition = ?2),'
                    f' (select max("offset") from {self._record} where topic_id = ?1 and partition = ?2)',
                    (topic.number, part.number),
                ).fetchone()
                found[part] = Bounds(Offset(0), Offset(0)) if last is None else Bounds(Offset(first), Offset(last + 1))
        return found

    def read(
        self, wanted: Sequence[tuple[Partition, Topic, Offset]], *, most_records: int, most_bytes: int
    ) -> dict[Partition, list[Record]]:
        """Return the records from an offset on; see `Store.read`."""
        found: dict[Partition, list[Record]] = {}
        with translated():
            for part, topic, offset in wanted:
                rows = self.connection.execute(
                    f'select * from {self._record} where topic_id = ? and partition = ? and "offset" >= ?'
                    ' order by "offset" limit ?',
                    (topic.number, part.number, offset, most_records),
                )
                size = 0
                for row in rows:
                    found.setdefault(part, []).append(_record(part, row))
                    size += len(row["payload"] or b"")
                    if size >= most_bytes:
                        break
        return found

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()


def same_file(one: URL, other: URL) -> bool:
    """Return whether two URLs name one SQLite file."""
    paths = [Path(url.database or "") for url in (one, other)]
    return all(path.exists() for path in paths) and paths[0].samefile(paths[1])


def _columns(entry: Entry, epoch: Epoch, source: str) -> tuple[object, ...]:
    message = entry.message
    return (
        entry.position,
        epoch,
        message.id.hex,
        message.source if message.source is not None else source,
        message.key,
        message.type or message.topic,
        message.content_type,
        stored_time(message.time or datetime.now(UTC)),
        json.dumps(dict(message.headers)) if message.headers else None,
        message.payload,
    )


def _record(partition: Partition, row: sqlite3.Row) -> Record:
    message = Message(
        id=UUID(row["id"]),
        topic=partition.topic,
        key=row["key"],
        type=row["type"],
        payload=row["payload"],
        content_type=row["content_type"],
        headers=carried_headers(header_texts(row["headers"])) if row["headers"] else {},
        source=row["source"],
        time=datetime.fromisoformat(row["time"]).replace(tzinfo=UTC),
        sequence=Position(row["sequence"]),
    )
    return Record(partition, Offset(row["offset"]), message, WireHeaders(message, Epoch(row["epoch"])))
