"""A group's ids as retention sees them; one file a dialect answers."""

from dataclasses import dataclass
from datetime import datetime
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Looked:
    """What came of one slice: how many ids are gone, and when the newest in it was received, up to the time asked."""

    deleted: int
    newest: datetime | None


class Ids(Protocol):
    """The table `inbox`, on a connection of its own, walked from end to end in slices: it has no index by time."""

    def alone(self) -> bool:
        """Return whether no other member of the group prunes; as long as the connection lasts."""
        ...

    def clock(self) -> datetime:
        """Return the time by the database's clock, which is the one that `received_at` comes from."""
        ...

    def slices(self) -> range:
        """Return where slices begin; each ends where the next begins."""
        ...

    def prune(self, begin: int, *, before: datetime | None, upto: datetime) -> Looked:
        """Delete the group's ids in a slice that were received before a time; with None, only look.

        Concurrent: with handlers and with others that prune. Again: no effect.
        """
        ...

    def close(self) -> None:
        """Close the connection."""
        ...
