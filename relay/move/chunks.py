"""What forms the chunks of a numbered mover, and forms them again: the contract, and chunks of entries."""

import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from outbox.errors import Permanent
from outbox.message import Entry, Position
from relay.checkpoint import Checkpoint, OpenChunk
from relay.logs.rows import rows_of
from relay.reader.contract import Limits, Reader

Content = TypeVar("Content")


@dataclass(frozen=True, slots=True)
class Formed(Generic[Content]):
    """A chunk that was read.

    Attributes:
        bounds: how far it reaches, and what it holds.
        content: what the log's producer takes.
        after: where the relay stands when it is done.
    """

    bounds: OpenChunk
    content: Content
    after: Checkpoint

    def handed_over(self) -> "Formed[None]":
        """Return what is remembered of it on its way: memory is for the one that is read meanwhile."""
        return Formed(self.bounds, None, self.after)


class Ahead(NamedTuple):
    """What lies ahead of a checkpoint.

    Attributes:
        checkpoint: where the chunk begins; without one, the checkpoint moved over nothing.
        chunk: the next one; None when there is nothing, or nothing of ours in the part that was looked at.
        empty: there was nothing to be read.
    """

    checkpoint: Checkpoint
    chunk: Formed[Any] | None
    empty: bool = False


class Chunks(Protocol):
    """Reads chunks from one outbox, on the relay's own connection."""

    def form(self, checkpoint: Checkpoint, limits: Limits) -> Ahead:
        """Read the next chunk behind the checkpoint; never an empty one.

        Raises:
            MessageAtFault: the next message cannot be moved.
            TimedOut: it takes too long; ask for less.
            Retryable: the connection is lost.
        """
        ...

    def expect(self, checkpoint: Checkpoint, limits: Limits) -> None:
        """Say what `form` will be asked for next; see `Reader.expect`.

        Raises:
            Retryable: the connection is lost.
        """
        ...

    def again(self, checkpoint: Checkpoint, bounds: OpenChunk) -> Formed[Any]:
        """Read a chunk that was begun earlier: what lies behind the checkpoint, within its bounds.

        Raises:
            Permanent: it is no longer what it was.
            Retryable: the connection is lost.
        """
        ...


class EntryChunks:
    """Chunks of entries: for a log that takes them one by one."""

    def __init__(self, reader: Reader[Any]) -> None:
        self._reader = reader

    def form(self, checkpoint: Checkpoint, limits: Limits) -> Ahead:
        """Read the next chunk; see `Chunks.form`."""
        checkpoint, selection = self._reader.look(checkpoint, limits)
        if selection is None:
            return Ahead(checkpoint, None, empty=True)
        chunk = self._reader.fetch(selection, limits)
        if not chunk.entries:
            return Ahead(chunk.after, None)
        return Ahead(checkpoint, Formed(bounds_of(chunk.entries), chunk.entries, chunk.after))

    def expect(self, checkpoint: Checkpoint, limits: Limits) -> None:
        """Say what is next; see `Chunks.expect`."""
        self._reader.expect(checkpoint, limits)

    def again(self, checkpoint: Checkpoint, bounds: OpenChunk) -> Formed[Sequence[Entry]]:
        """Read an open chunk; see `Chunks.again`."""
        chunk = self._reader.fetch(
            self._reader.within(checkpoint, bounds.last), Limits(bounds.entries + 1, sys.maxsize)
        )
        if not chunk.entries or bounds_of(chunk.entries) != bounds:
            raise changed(bounds, len(chunk.entries))
        return Formed(bounds, chunk.entries, checkpoint.behind(bounds.last))


def bounds_of(entries: Sequence[Entry]) -> OpenChunk:
    """Return the bounds of a chunk of entries."""
    rows = rows_of(entries)
    ids = "".join([row[1] for row in rows])
    digest = hashlib.blake2b(ids.encode(), digest_size=8).digest()
    return OpenChunk(Position(rows[-1][0]), len(rows), int.from_bytes(digest, "big", signed=True))


def changed(bounds: OpenChunk, entries: int) -> Permanent:
    """Return the error for an open chunk that is not found again as it was."""
    return Permanent(
        f"the chunk up to position {bounds.last} was begun with {bounds.entries} messages and is not found again"
        f" ({entries} now): entries were deleted or their ids changed while it was on its way. Bring back its rows, or"
        " let this relay go with `relay forget NAME` and start it anew: --start earliest sends all that the outbox has"
        " once more (an inbox recognises repeats by their ids), latest leaves it out"
    )
