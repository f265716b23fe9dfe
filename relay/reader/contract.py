"""The contract of reading an outbox in commit order; one file a dialect."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar

from outbox.message import Entry, Position
from relay.checkpoint import Checkpoint

MOST_ENTRIES = 5_000
MOST_BYTES = 8_000_000
"""Bounds of a chunk: whichever is reached first, and always at least one entry."""
MOST_ENTRIES_PRODUCED = 20_000
"""For a broker: a transaction costs it the same however much is in it. More than so many take too much memory (P6)."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How much one chunk may hold.

    Attributes:
        entries: so many entries.
        bytes: so many bytes of payload.
        most: what `entries` never exceeds.
    """

    entries: int = MOST_ENTRIES
    bytes: int = MOST_BYTES
    most: int = MOST_ENTRIES

    def halved(self) -> "Limits":
        """Return half of it: for a chunk that took too long."""
        return replace(self, entries=max(1, self.entries // 2), bytes=max(1, self.bytes // 2))

    def doubled(self) -> "Limits":
        """Return twice as much, up to the most."""
        return replace(self, entries=min(self.most, self.entries * 2), bytes=min(MOST_BYTES, self.bytes * 2))


@dataclass(frozen=True, slots=True)
class Query:
    """The next chunk as a SELECT, for a log that appends inside the same database.

    Attributes:
        select: gives position, id, source, topic, key, type, payload, content_type, headers, created_at.
        parameters: what `select` and `state` bind.
        state: SQL expressions for the columns of the next checkpoint, over `tally` (entries, last).
    """

    select: str
    parameters: Mapping[str, object]
    state: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Chunk:
    """The next entries, and where the relay stands when all of them are done."""

    entries: Sequence[Entry]
    after: Checkpoint


Selection = TypeVar("Selection")


class Reader(Protocol, Generic[Selection]):
    """Reads one outbox on one connection; holds nothing that outlives the connection."""

    def look(self, checkpoint: Checkpoint, limits: Limits) -> tuple[Checkpoint, Selection | None]:
        """Return what comes next after the checkpoint, or the checkpoint moved over nothing.

        None: nothing is to be read at the moment; the checkpoint that comes back sees as much and may be newer. It is
        not saved by itself: the next step saves it.

        Raises:
            Retryable: the connection is lost; forget it, and everything read from it.
        """
        ...

    def within(self, checkpoint: Checkpoint, last: Position) -> Selection:
        """Return what lies behind the checkpoint up to a position, in the checkpoint's own window.

        Raises:
            Retryable: the connection is lost.
        """
        ...

    def expect(self, checkpoint: Checkpoint, limits: Limits) -> None:
        """Say what is to be read next, before something else is done: the server may begin with it. A hint only.

        Raises:
            Retryable: the connection is lost.
        """
        ...

    def fetch(self, selection: Selection, limits: Limits) -> Chunk:
        """Return the entries of a selection, in the order in which they are to be produced.

        Raises:
            MessageAtFault: the first entry cannot be made a message (its headers are no object).
            Retryable: the connection is lost.
        """
        ...
