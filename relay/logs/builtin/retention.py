"""Retention of the built-in log: which records may go, whatever dialect keeps them."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol

from outbox.process.pace import Pace
from relay.logs.retention import Unread

BATCH_RECORDS = 2_000


@dataclass(frozen=True, slots=True)
class Standing:
    """One partition that holds records.

    Attributes:
        topic_id: whose.
        name: the topic's.
        partition: its number.
        retain_seconds: for how long the topic keeps records.
        consumer_group: of the groups that have read the topic, the one furthest behind here; None if there is none.
        reached: the offset that this group reads next; 0 without one.
        first: the oldest record's offset.
        newest: the newest record's offset.
        first_is_old: whether the oldest record is past the retention.
        unread_is_old: whether the oldest of those that `consumer_group` has not read is.
    """

    topic_id: int
    name: str
    partition: int
    retain_seconds: int
    consumer_group: str | None
    reached: int
    first: int
    newest: int
    first_is_old: bool
    unread_is_old: bool

    @property
    def prunable(self) -> bool:
        """Return whether records can go."""
        read = self.consumer_group is not None and self.reached > self.first
        return read and self.first_is_old and self.newest > self.first

    @property
    def unread(self) -> int:
        """Return how many records the slowest group has not read; all of them when no group has read the topic."""
        return self.newest + 1 - max(self.first, self.reached)


@dataclass(frozen=True, slots=True)
class Pruned:
    """What came of one batch; `alone` is False when another one is pruning, or a group is making itself known."""

    deleted: int
    alone: bool


class Retention(Protocol):
    """The log's tables, on a connection for retention alone."""

    def standing(self) -> Iterator[Standing]:
        """Return how every partition stands that holds records and does not keep them for ever, by topic."""
        ...

    def prune(self, standing: Standing, begin: int, most: int) -> Pruned:
        """Delete records of a partition from its first offset, `begin`, on: at most so many, as far as they may go.

        Groups, ages and the newest record are read by the statement that deletes. Appends go on meanwhile.
        """
        ...

    def enrol(self, group: str, topics: Sequence[str]) -> Sequence[str]:
        """Make a group known; see `RetainingLog.enrol`."""
        ...

    def retentions(self, topics: Sequence[str]) -> dict[str, int | None]:
        """Return for how many seconds those of the topics that exist keep records; None is for ever."""
        ...

    def close(self) -> None:
        """Close the connection."""
        ...


def prune(retention: Retention, pace: Pace) -> int:
    """Do one pass over all partitions; return how many records are gone."""
    deleted = 0
    waiting = [one for one in retention.standing() if one.prunable]
    begin = waiting[0].first if waiting else 0
    for _ in pace.batches():
        if not waiting:
            break
        done = retention.prune(waiting[0], begin, BATCH_RECORDS)
        if not done.alone:
            break
        deleted, begin = deleted + done.deleted, begin + done.deleted
        if done.deleted < BATCH_RECORDS:
            waiting.pop(0)
            begin = waiting[0].first if waiting else 0
    return deleted


def unread(standing: Iterable[Standing]) -> list[Unread]:
    """Return which topics keep old records for somebody, with the slowest group of all their partitions."""
    topics: dict[str, list[Standing]] = {}
    for one in standing:
        if one.unread_is_old:
            topics.setdefault(one.name, []).append(one)
    return [
        Unread(
            name,
            timedelta(seconds=parts[0].retain_seconds),
            sum(one.unread for one in parts),
            max(parts, key=lambda one: one.unread).consumer_group,
        )
        for name, parts in topics.items()
    ]
