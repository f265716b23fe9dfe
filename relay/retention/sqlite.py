"""Deleting read entries on SQLite: a short transaction a batch, in which we are the file's one writer."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import URL

from outbox.journal.sqlite import stored_time
from outbox.message import Position
from outbox.process.sqlite import connect, immediate, translated
from outbox.tables import Place
from relay.retention.contract import Batch
from relay.topics import TopicPatterns, parse_topics

BUSY_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Reader:
    """One registered relay: what it wants, and the last position that it has done; None when that is not known here."""

    name: str
    topics: TopicPatterns
    last: int | None


def unread_by(readers: Sequence[Reader], position: int) -> list[str]:
    """Return the readers that have not done a position; all of these want its topic."""
    return [reader.name for reader in readers if reader.last is None or position > reader.last]


class SqliteEntries:
    """The outbox's entries; see `Entries`."""

    def __init__(self, url: URL, place: Place) -> None:
        self._outbox, self._relay = place.sql("outbox"), place.sql("relay")
        self._checkpoint = place.sql("relay_checkpoint")
        self._connection = connect(url, busy_seconds=BUSY_SECONDS)

    def prune(self, after: Position, most: int, retain: timedelta) -> Batch:
        """Delete what may go of the next entries; see `Entries.prune`."""
        before = stored_time(datetime.now(UTC) - retain)
        with translated(), immediate(self._connection):
            slice_of = self._connection.execute(
                f"select position, topic, created_at < ? as old from {self._outbox} where position > ?"
                " order by position limit ?",
                (before, after, most),
            ).fetchall()
            old = [(row["position"], row["topic"]) for row in slice_of if row["old"]]
            readers = self._wanted({topic for _, topic in old})
            late = {position: unread_by(readers[topic], position) for position, topic in old}
            gone = [position for position, topic in old if readers[topic] and not late[position]]
            self._connection.execute(
                f"delete from {self._outbox} where position in (select value from json_each(?))", (json.dumps(gone),)
            )
        return Batch(
            len(slice_of),
            Position(slice_of[-1]["position"] if slice_of else after),
            len(old),
            len(gone),
            sum(not readers[topic] for _, topic in old),
            Counter(name for names in late.values() for name in names),
        )

    def _wanted(self, topics: set[str]) -> Mapping[str, list[Reader]]:
        rows = self._connection.execute(
            f"select r.name, r.topics, case when r.cluster = '' and r.database = '' then (select c.last"
            f" from {self._checkpoint} as c where c.incarnation = r.incarnation order by c.step desc limit 1) end"
            f" as last from {self._relay} as r"
        ).fetchall()
        readers = [Reader(row["name"], parse_topics(row["topics"]), row["last"]) for row in rows]
        return {topic: [reader for reader in readers if reader.topics.match(topic)] for topic in topics}

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()
