"""What handles the records: one hand, a segment of a partition at a time, or as many as `--concurrency` says."""

from collections.abc import Collection, Mapping
from typing import Protocol

from inbox.claims import Claim
from outbox.message import Offset
from relay.logs.contract import Batch, Consumer, Partition


class Track(Protocol):
    """The state of one partition, as far as the loop has to know it."""

    @property
    def partition(self) -> Partition:
        """Whose."""
        ...

    @property
    def claim(self) -> Claim:
        """The newest claim as far as known."""
        ...

    @property
    def stale(self) -> bool:
        """Whether the claim has to be read again before anything else."""
        ...

    @property
    def reason(self) -> str | None:
        """Why the partition stopped; None while it goes on."""
        ...

    @property
    def is_full(self) -> bool:
        """Whether the partition is to be paused."""
        ...

    def offer(self, batch: Batch) -> None:
        """Take the next batch."""
        ...

    def is_through(self, goal: Offset) -> bool:
        """Return whether all below `goal` is handled and claimed, or as much of it as can be."""
        ...


class Hands(Protocol):
    """Handles the records of the partitions that a member has. Used by the loop's thread alone."""

    @property
    def lanes(self) -> Mapping[Partition, Track]:
        """The partitions."""
        ...

    @property
    def is_free(self) -> bool:
        """Whether the loop's own connection has nothing in hand."""
        ...

    def take(self, partition: Partition, claim: Claim) -> None:
        """Begin with a partition, at its newest claim."""
        ...

    def begin(self, consumer: Consumer) -> None:
        """Begin what is due."""
        ...

    def settle(self, timeout_seconds: float) -> None:
        """See what became of what is in hand; wait for it when there is nothing else to do."""
        ...

    def is_supplied(self, now: float) -> bool:
        """Return whether there is enough to go on with when something in hand has ended."""
        ...

    def spare_seconds(self, now: float, most: float) -> float:
        """Return how long a poll may wait for records."""
        ...

    def finish(self, partitions: Collection[Partition]) -> None:
        """Wait until nothing of these partitions is in hand, and what was handled is claimed."""
        ...

    def drop(self, partitions: Collection[Partition]) -> None:
        """Forget these partitions; nothing of them is in hand."""
        ...

    def close(self) -> None:
        """Let nothing go on behind our back, and let go of connections."""
        ...
