"""Reading an outbox on SQLite: one writer at a time, so positions are in commit order, if they are never used again."""

import sqlite3
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from uuid import UUID

from outbox.errors import MessageAtFault
from outbox.message import Entry, Message, Position
from outbox.process.sqlite import translated
from outbox.tables import Place
from relay.checkpoint import Checkpoint
from relay.logs.headers import header_texts
from relay.reader.contract import Chunk, Limits
from relay.topics import TopicPatterns

SPARSE = 100
"""A transaction looks at so many positions for each entry that it may give: it holds up the writers of its file."""
COLUMNS = "position, id, source, topic, key, type, payload, content_type, headers, created_at"


@dataclass(frozen=True, slots=True)
class Selection:
    """What comes next: behind the checkpoint, up to a position."""

    checkpoint: Checkpoint
    upto: Position


class SqliteReader:
    """Reads one outbox on one connection."""

    def __init__(self, connection: sqlite3.Connection, place: Place, topics: TopicPatterns) -> None:
        self._connection = connection
        self._outbox = place.sql("outbox")
        self._topics, self._bound = topic_condition(topics)

    def look(self, checkpoint: Checkpoint, limits: Limits) -> tuple[Checkpoint, Selection | None]:
        """Return what comes next; see `Reader.look`."""
        with translated():
            (newest,) = self._connection.execute(f"select max(position) from {self._outbox}").fetchone()
        if newest is None or newest <= checkpoint.last:
            return checkpoint, None
        return checkpoint, Selection(checkpoint, Position(min(newest, checkpoint.last + limits.entries * SPARSE)))

    def within(self, checkpoint: Checkpoint, last: Position) -> Selection:
        """Return what lies behind the checkpoint up to a position."""
        return Selection(checkpoint, last)

    def expect(self, checkpoint: Checkpoint, limits: Limits) -> None:
        """Do nothing: there is no server that could begin."""

    def fetch(self, selection: Selection, limits: Limits) -> Chunk:
        """Return the entries of a selection; see `Reader.fetch`."""
        checkpoint = selection.checkpoint
        entries: list[Entry] = []
        size = 0
        with translated():
            rows = self._connection.execute(
                f"select {COLUMNS} from {self._outbox} where position > :last and position <= :upto{self._topics}"
                " order by position limit :most",
                {"last": checkpoint.last, "upto": selection.upto, "most": limits.entries, **self._bound},
            )
            for row in rows:
                try:
                    entry = _entry(row)
                except ValueError as error:
                    if not entries:
                        raise _fault(row, error) from None
                    break
                entries.append(entry)
                size += len(entry.message.payload or b"")
                if size >= limits.bytes:
                    break
            last = entries[-1].position if entries else selection.upto
        return Chunk(entries, replace(checkpoint, last=last, position=last))


def _fault(row: sqlite3.Row, error: ValueError) -> MessageAtFault:
    return MessageAtFault(
        f"message {_identity(row['id'])} of topic {row['topic']!r} (position {row['position']}) cannot be moved:"
        f" {error}; delete its row in the outbox, and write the message anew"
    )


def _identity(stored: object) -> UUID:
    if isinstance(stored, bytes) and len(stored) == 16:  # noqa: PLR2004 - a UUID's bytes
        return UUID(bytes=stored)
    return UUID(str(stored))


def _bytes(stored: object) -> bytes | None:
    """Return a payload as bytes; SQLite keeps what a writer bound, a text too."""
    if stored is None or isinstance(stored, bytes):
        return stored
    return str(stored).encode()


def _time(stored: object) -> datetime:
    time = datetime.fromisoformat(str(stored))
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)


def _entry(row: sqlite3.Row) -> Entry:
    return Entry(
        Position(row["position"]),
        Message(
            id=_identity(row["id"]),
            topic=row["topic"],
            key=None if row["key"] is None else str(row["key"]),
            type=str(row["type"]),
            payload=_bytes(row["payload"]),
            content_type=str(row["content_type"]),
            headers=header_texts(row["headers"]),
            source=row["source"],
            time=_time(row["created_at"]),
            sequence=Position(row["position"]),
        ),
    )


def topic_condition(topics: TopicPatterns) -> tuple[str, dict[str, str]]:
    """Return a condition on `topic`, beginning with AND, and what it binds. GLOB tells upper from lower case."""
    if topics.everything:
        return "", {}
    bound = {f"topic_{n}": name for n, name in enumerate(topics.names)}
    # A topic has no character that is special in a GLOB but for `[`, which the topic's rule does not allow.
    prefixes = {f"prefix_{n}": f"{prefix}*" for n, prefix in enumerate(topics.prefixes)}
    parts = [f"topic = :{name}" for name in bound] + [f"topic glob :{name}" for name in prefixes]
    return f" and ({' or '.join(parts)})", bound | prefixes
