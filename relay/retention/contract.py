"""What retention asks of the outbox's database; one file a dialect answers."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Protocol

from outbox.message import Position


@dataclass(frozen=True, slots=True)
class Batch:
    """What came of one batch: so many entries in reading order, looked at and deleted by one statement.

    Attributes:
        seen: how many entries there were to look at.
        last: the position of the last of them.
        old: how many of them are past the retention.
        deleted: how many of these are gone now.
        unclaimed: how many stay because no relay's topics match them.
        unread: how many stay because of a relay, by its name. An entry may stay because of several.
    """

    seen: int
    last: Position
    old: int
    deleted: int
    unclaimed: int
    unread: Mapping[str, int]


@dataclass(slots=True)
class Kept:
    """What one pass had to leave, though it is past its retention."""

    deleted: int = 0
    unclaimed: int = 0
    unread: dict[str, int] = field(default_factory=dict)

    def add(self, batch: Batch) -> None:
        """Count one batch."""
        self.deleted += batch.deleted
        self.unclaimed += batch.unclaimed
        for relay, entries in batch.unread.items():
            self.unread[relay] = self.unread.get(relay, 0) + entries


class Entries(Protocol):
    """The outbox's entries, on a connection of their own."""

    def prune(self, after: Position, most: int, retain: timedelta) -> Batch:
        """Look at the next entries behind a position, and delete those of them that may go.

        An entry may go when it is older than `retain` by the database's clock, at least one relay's topics match it,
        and every such relay has it behind its saved checkpoint, in this cluster and database. All of that is read by
        the statement that deletes. Concurrent: with writers, with relays and with others that prune. Again: no effect.

        Raises:
            Retryable: the database does not answer, or a lock was not to be had soon.
        """
        ...

    def close(self) -> None:
        """Close the connection."""
        ...
