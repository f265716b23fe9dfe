"""Logs whose records somebody of ours has to delete; a broker does so itself, and has none of this."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol, runtime_checkable

from outbox.process.durations import shown_duration
from outbox.process.pace import Pace


@dataclass(frozen=True, slots=True)
class Unread:
    """Records that are past their retention and stay, because somebody has not read them.

    Attributes:
        topic: whose.
        retain: for how long its records are kept.
        records: how many have not been read; those that are not past their retention yet are counted too.
        group: the group that is furthest behind; None when no group has ever read the topic.
    """

    topic: str
    retain: timedelta
    records: int
    group: str | None

    def words(self) -> str:
        """Return what a person should know."""
        kept = f"topic {self.topic!r} keeps records from before its retention of {shown_duration(self.retain)}"
        if self.group is None:
            return f"{kept}: no group has ever read its {self.records} records; run an inbox for them"
        return (
            f"{kept}: group {self.group!r} has {self.records} yet to read; run it, or let go of it with"
            f" `inbox forget {self.group}`"
        )


@runtime_checkable
class RetainingLog(Protocol):
    """What such a log offers beside the contract. Every method opens a connection of its own.

    Each raises Retryable when the log does not answer.
    """

    def enrol(self, group: str, topics: Sequence[str]) -> Sequence[str]:
        """Make a group known to retention: when this returns, nothing is deleted any more that it has not read.

        Before the group looks at where a topic begins. Returns those of the topics that exist; one that appears later
        needs it then. Again: no effect.
        """
        ...

    def prune(self, pace: Pace) -> int:
        """Delete records that are past their topic's retention and that every known group has read.

        Only in topics that a group has read; a prefix of each partition; never a partition's newest record. Returns
        how many are gone. Concurrent: one of several does it, the others return.
        """
        ...

    def unread(self) -> Sequence[Unread]:
        """Return which topics keep records that are past their retention, and because of whom."""
        ...

    def retentions(self, topics: Sequence[str]) -> Mapping[str, timedelta | None]:
        """Return for how long those of the topics that exist keep records; None is for ever."""
        ...
