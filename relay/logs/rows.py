"""Entries as the rows that the database gave: what a producer of many messages takes without making objects of them."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import NamedTuple, overload
from uuid import UUID

from outbox.message import Entry, Message, Position


class Row(NamedTuple):
    """One entry in the columns of the outbox.

    Attributes:
        position: its position.
        id: the message's id as text: lower case, with hyphens.
        source: None where the relay fills it in.
        topic: where it goes.
        key: None without one.
        type: empty where it is the topic.
        payload: None is a tombstone.
        content_type: of the payload.
        headers: a mapping of texts, or None.
        time: when it was stored: RFC 3339, UTC, ending in Z; None where that cannot be said so.
    """

    position: int
    id: str
    source: str | None
    topic: str
    key: str | None
    type: str
    payload: bytes | None
    content_type: str
    headers: Mapping[str, str] | None
    time: str | None


class Rows(Sequence[Entry]):
    """A chunk of rows; an entry is made of one when it is asked for.

    Attributes:
        rows: in order, each with the columns of a `Row`; plain tuples will do, and are what a driver makes fastest.
    """

    __slots__ = ("rows",)

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, place: int) -> Entry: ...
    @overload
    def __getitem__(self, place: slice) -> "Rows": ...
    def __getitem__(self, place: int | slice) -> "Entry | Rows":
        if isinstance(place, slice):
            return Rows(self.rows[place])
        return entry_of(self.rows[place])

    def __iter__(self) -> Iterator[Entry]:
        return map(entry_of, self.rows)


def rows_of(chunk: Sequence[Entry]) -> Sequence[Row]:
    """Return a chunk's rows, whatever kind of chunk it is."""
    return chunk.rows if isinstance(chunk, Rows) else [_row_of(entry) for entry in chunk]


def entry_of(row: Row) -> Entry:
    """Return the entry of a row."""
    position, identity, source, topic, key, kind, payload, content_type, headers, time = row[:10]
    return Entry(
        Position(position),
        Message(
            id=UUID(identity),
            topic=topic,
            key=key,
            type=kind,
            payload=payload,
            content_type=content_type,
            headers=headers or {},
            source=source,
            time=None if time is None else datetime.fromisoformat(time),
            sequence=Position(position),
        ),
    )


def _row_of(entry: Entry) -> Row:
    message = entry.message
    return Row(
        entry.position,
        str(message.id),
        message.source,
        message.topic,
        message.key,
        message.type,
        message.payload,
        message.content_type,
        message.headers or None,
        None if message.time is None else message.time.isoformat(),
    )
