"""The plain data at the bottom: what the application writes, and what the relay reads back."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import NewType
from uuid import UUID

Position = NewType("Position", int)
"""An entry's number in its outbox; drawn when the entry is inserted."""
Offset = NewType("Offset", int)
"""Where a record stands in its partition."""
Epoch = NewType("Epoch", int)
"""The number of a lease; a higher one fences a lower one."""


@dataclass(frozen=True, slots=True)
class Message:
    """What the application writes and a handler gets back.

    Attributes:
        id: UUIDv7 from `write`; with `source` it says who the message is (deduplication).
        topic: where it goes: 1 to 249 of `[A-Za-z0-9._-]`, not `.` or `..`.
        key: messages of one topic and key keep their commit order; None promises no order.
        type: what happened; the topic when the writer gave none.
        payload: the bytes as stored; None is a tombstone.
        content_type: the media type of the payload.
        headers: the user's own, and `traceparent`, `ce_correlationid`, `ce_causationid` where set.
        source: who wrote it, None where the relay is to fill in `/outbox/<installation>`.
        time: when the database stored it (aware); None before that.
        sequence: the outbox position; None before it is stored, or for foreign records.
    """

    id: UUID
    topic: str
    key: str | None
    type: str
    payload: bytes | None
    content_type: str
    headers: Mapping[str, str] = field(default_factory=dict)
    source: str | None = None
    time: datetime | None = None
    sequence: Position | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """A message in the outbox, with its position."""

    position: Position
    message: Message
