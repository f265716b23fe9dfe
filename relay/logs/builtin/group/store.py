"""What a consumer group asks of the log's database; one file a dialect answers.

Whose a partition is stands in its row of `log_group_offset`. A member takes it when it is nobody's, or its owner is no
member any more; the owner gives it up when its work in hand is finished. So there is at most one owner at any moment,
whatever the members believe. Who is a member changes under the lock of the group's row, and raises the group's epoch.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Protocol

from outbox.message import Offset
from relay.logs.builtin.store import Topic
from relay.logs.contract import Partition

BEAT_SECONDS = 1.0
GONE_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Pulse:
    """How often a member says that it is alive, and how long after that it counts as gone; the same for a whole group.

    Attributes:
        beat_seconds: between two heartbeats.
        gone_seconds: without one for so long by the log's clock, a member is gone.
    """

    beat_seconds: float = BEAT_SECONDS
    gone_seconds: float = GONE_SECONDS


@dataclass(frozen=True, slots=True)
class Beat:
    """The answer to a heartbeat.

    Attributes:
        epoch: the group's.
        others_gone: whether there is a member that was not seen for too long.
    """

    epoch: int
    others_gone: bool


@dataclass(frozen=True, slots=True)
class Roll:
    """Who is in the group, as of one moment.

    Attributes:
        epoch: rises whenever a member comes or goes.
        members: the topics that each member states.
        topics: those of which the group has ever had a partition, and which still exist.
    """

    epoch: int
    members: Mapping[str, frozenset[str]]
    topics: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Holding:
    """A partition that is ours.

    Attributes:
        topic: whose partition it is.
        epoch: the group's epoch when it was taken; what is left of an earlier holding has another.
    """

    topic: Topic
    epoch: int


class GroupStore(Protocol):
    """The tables of one group, on one connection. Not safe to use from two threads.

    Each method is one autocommit statement (SQLite: one transaction), bounded below the time after which a member is
    gone. Raises Retryable when the connection is lost (open another), TimedOut when a bound was reached (the connection
    is good), and ConfigurationError when tables are missing.
    """

    def join(self, member: str, topics: Collection[str]) -> int:
        """Become a member; return the group's epoch. Again: the same member, and another epoch."""
        ...

    def beat(self, member: str) -> Beat | None:
        """Say that the member is alive; None when it is none any more."""
        ...

    def remove_gone(self) -> None:
        """Remove members that were not seen for too long, or whose time lies as far ahead: the clock was set back."""
        ...

    def leave(self, member: str) -> None:
        """Be a member no longer: what it still holds is free. Again: no effect."""
        ...

    def roll(self) -> Roll:
        """Return who is in the group, and its epoch, from one snapshot."""
        ...

    def take(self, member: str, roll: Roll, wanted: Mapping[Partition, Topic]) -> frozenset[Partition]:
        """Take those of the partitions that are free, or held by nobody in `roll`; none when `roll` is out of date."""
        ...

    def give_up(self, member: str, holdings: Mapping[Partition, Holding], offsets: Mapping[Partition, Offset]) -> None:
        """Let others take these partitions, with a last report for some. What is not the member's stays as it is."""
        ...

    def commit(
        self, member: str, holdings: Mapping[Partition, Holding], offsets: Mapping[Partition, Offset]
    ) -> frozenset[Partition]:
        """Report how far the group has come; never moves back. Return those that are the member's."""
        ...

    def committed(self) -> dict[Partition, Offset]:
        """Return what the group has reported."""
        ...

    def close(self) -> None:
        """Close the connection."""
        ...
