"""When a group's ids may be forgotten, and what a person should know of it.

An id is needed as long as the log may bring its message again. So its age is not counted by the clock but against the
newest id of the group, and not at once but after the group has read all that the log held when that newest one was
looked at: a group or a relay that stood still for a fortnight finds its repeats behind records that are new.
"""

import logging
import random
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import URL

from inbox.retention import opened
from inbox.retention.ids import Ids
from outbox.message import Offset
from outbox.process.durations import shown_duration
from outbox.process.notices import Notices
from outbox.process.pace import Pace
from outbox.process.schedule import Schedule, attempt
from outbox.tables.names import Place
from relay.logs.contract import Log, Partition
from relay.logs.retention import RetainingLog

ONCE_SECONDS = 5.0
LONGEST_INTERVAL_SECONDS = 3_600.0
LONGEST_LOOK_SECONDS = 60.0
SHORTEST_LOOK_SECONDS = 0.2
FAILED = "old ids of the group were not deleted"

logger = logging.getLogger("inbox")


@dataclass(frozen=True, slots=True)
class Group:
    """Whose ids, in which database, and how long they are kept."""

    name: str
    url: URL
    place: Place
    topics: Sequence[str]
    retain: timedelta


@dataclass(frozen=True, slots=True)
class Mark:
    """A moment: ids that were old by then may go as soon as the group has read what the log held then.

    Attributes:
        time: by the database's clock.
        ends: one past the newest record of each partition.
        taken: on this process's clock.
    """

    time: datetime
    ends: Mapping[Partition, Offset]
    taken: float

    def is_read(self, committed: Mapping[Partition, Offset]) -> bool:
        """Return whether a group that has committed so far has read it all."""
        return all(committed.get(partition, 0) >= end for partition, end in self.ends.items())


class Chores:
    """Retention of one group's ids, by one member."""

    def __init__(self, group: Group, log: Log) -> None:
        self._group = group
        self._log = log
        self._mark: Mark | None = None
        self._newest: datetime | None = None
        self._due = time.monotonic()
        self._notices = Notices(logger)

    @contextmanager
    def beside(self, stop: threading.Event, *, once: bool) -> Iterator[None]:
        """While the block lasts, prune now and then; with `once`, prune at its end, for a short time.

        Args:
            stop: ends what is done at the end.
            once: whether the inbox comes to an end by itself.
        """
        if once:
            yield
            attempt(FAILED, self.prune, Pace(stop, share=1.0, seconds=ONCE_SECONDS), logger)
            return
        seconds = max(SHORTEST_LOOK_SECONDS, min(LONGEST_LOOK_SECONDS, self._group.retain.total_seconds() / 10))
        with Schedule("inbox-chores", logger) as schedule:
            schedule.every(seconds, FAILED, self.prune)
            yield

    def prune(self, pace: Pace) -> None:
        """Do one pass over the ids, if one is due and the group has read enough for it."""
        if time.monotonic() < self._due:
            return
        with opened(self._group.url, self._group.place, self._group.name) as ids:
            if self._mark is None:
                self._mark = self._marked(ids)
            mark = self._mark
            if not mark.is_read(self._log.committed(self._group.name)):
                self._say(mark)
                return
            if ids.alone():
                self._walk(ids, mark, pace)
        self._mark = None
        self._due = time.monotonic() + min(LONGEST_INTERVAL_SECONDS, self._group.retain.total_seconds() / 10)
        self._say(None)

    def _marked(self, ids: Ids) -> Mark:
        now = ids.clock()
        held = self._log.partitions(self._group.topics)
        ends = {partition: bounds.end for partition, bounds in held.items() if bounds.end > bounds.first}
        return Mark(now, ends, time.monotonic())

    def _walk(self, ids: Ids, mark: Mark, pace: Pace) -> None:
        deleted = 0
        waiting = _order(ids.slices())
        for _ in pace.batches():
            if not waiting:
                break
            # What was seen of the newest up to now is never too new, so an id is kept for too long at worst.
            before = None if self._newest is None else self._newest - self._group.retain
            looked = ids.prune(waiting.pop(), before=before, upto=mark.time)
            deleted += looked.deleted
            self._newest = max(filter(None, (self._newest, looked.newest)), default=None)
        if deleted:
            logger.debug("deleted %d ids of group %s", deleted, self._group.name)

    def _say(self, behind: Mark | None) -> None:
        retain, words = shown_duration(self._group.retain), {}
        if behind is not None and time.monotonic() - behind.taken > LONGEST_INTERVAL_SECONDS:
            words[""] = (
                f"ids older than {retain} are kept until group {self._group.name} has read what the log held at"
                f" {behind.time:%Y-%m-%d %H:%M}: repeats of them may be among it"
            )
        if isinstance(self._log, RetainingLog):
            words.update(too_short(self._group.retain, self._log.retentions(self._group.topics)))
        self._notices.stand(words)


def too_short(retain: timedelta, topics: Mapping[str, timedelta | None]) -> dict[str, str]:
    """Return by topic the words for those that the log keeps longer than the ids are kept."""
    return {
        topic: (
            f"the log keeps topic {topic!r} {'for ever' if kept is None else f'for {shown_duration(kept)}'}, and ids"
            f" are kept for {shown_duration(retain)} only: what is repeated after that takes effect twice; give"
            " `inbox run` a --retain that is longer"
        )
        for topic, kept in topics.items()
        if kept is None or kept >= retain
    }


def _order(slices: range) -> list[int]:
    """Return the slices, the next one last: the end of the table first, which tells the newest; then from anywhere on.

    From anywhere: a pass that has little time comes to all of them in the course of several.
    """
    if not slices:
        return []
    start = random.randrange(len(slices))  # noqa: S311 - spreads the work, hides nothing
    return [slices[-1], *slices[start:], *slices[:start]][::-1]
