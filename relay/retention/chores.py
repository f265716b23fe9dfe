"""What a relay deletes beside its work, and what it says of what it has to keep."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import URL

from outbox.message import Position
from outbox.process.durations import shown_duration
from outbox.process.notices import Notices
from outbox.process.pace import Pace
from outbox.process.schedule import Chore, Schedule, attempt
from outbox.tables import Place
from relay.logs.contract import Log
from relay.logs.retention import RetainingLog
from relay.retention import opened
from relay.retention.contract import Kept

FEWEST = 2_000
"""Entries that one statement looks at, and deletes if it may."""
MOST = 50_000
"""When it may delete none of them, the next looks at twice as many, up to this."""
ONCE_SECONDS = 5.0
LONGEST_INTERVAL_SECONDS = 60.0
SHORTEST_INTERVAL_SECONDS = 0.2

logger = logging.getLogger("relay")


@dataclass(frozen=True, slots=True)
class Outbox:
    """An outbox's entries, and how long they are kept."""

    url: URL
    place: Place
    name: str
    retain: timedelta


class Chores:
    """Retention of the outbox and of the log that a relay produces to.

    Args:
        outbox: whose entries.
        log: whose records, if they are ours to delete.
    """

    def __init__(self, outbox: Outbox, log: Log) -> None:
        self._outbox = outbox
        self._log = log if isinstance(log, RetainingLog) else None
        self._entries_kept = Notices(logger)
        self._records_kept = Notices(logger)
        self.working = threading.Event()
        """Set while the relay holds its lease; one that stands by leaves the chores to the holder."""

    @contextmanager
    def beside(self, stop: threading.Event, *, once: bool) -> Iterator[None]:
        """While the block lasts, prune now and then; with `once`, prune at its end, for a short time.

        Args:
            stop: ends what is done at the end.
            once: whether the relay comes to an end by itself.
        """
        if once:
            yield
            for name, chore in self._all():
                attempt(name, chore, Pace(stop, share=1.0, seconds=ONCE_SECONDS), logger)
            return
        seconds = interval_seconds(self._outbox.retain)
        with Schedule("relay-chores", logger) as schedule:
            for name, chore in self._all():
                schedule.every(seconds, name, _while(self.working, chore))
            yield

    def _all(self) -> Iterator[tuple[str, Chore]]:
        yield "the outbox's old entries were not deleted", self.prune_outbox
        if self._log is not None:
            yield "the log's old records were not deleted", self.prune_log

    def prune_outbox(self, pace: Pace) -> None:
        """Do one pass over the outbox, from its oldest entry to the first that is not old enough."""
        kept, finished = Kept(), False
        after, most = Position(0), FEWEST
        with opened(self._outbox.url, self._outbox.place, f"relay {self._outbox.name} retention") as entries:
            for _ in pace.batches():
                batch = entries.prune(after, most, self._outbox.retain)
                kept.add(batch)
                finished = batch.seen < most or not batch.old
                if finished:
                    break
                # Forward only: what has to stay is looked at once a pass, however much it is.
                after, most = batch.last, FEWEST if batch.deleted else min(2 * most, MOST)
        if kept.deleted:
            logger.debug("deleted %d entries that every relay has read", kept.deleted)
        self._entries_kept.stand(self._words(kept, finished=finished))

    def _words(self, kept: Kept, *, finished: bool) -> dict[str, str]:
        retain, least = shown_duration(self._outbox.retain), "" if finished else "at least "
        words = {
            relay: f"{least}{entries} entries older than {retain} stay in the outbox, because relay {relay!r} is not"
            f" past them: see that it runs, or let go of it with `relay forget {relay}`"
            for relay, entries in kept.unread.items()
        }
        if kept.unclaimed:
            words[""] = (
                f"{least}{kept.unclaimed} entries older than {retain} stay in the outbox, because no relay's --topics"
                " match them (unclaimed): run a relay that does, or delete them by hand"
            )
        return words

    def prune_log(self, pace: Pace) -> None:
        """Do one pass over the log."""
        if self._log is None:
            return
        deleted = self._log.prune(pace)
        if deleted:
            logger.debug("deleted %d records that every group has read", deleted)
        self._records_kept.stand({f"{one.topic} {one.group}": one.words() for one in self._log.unread()})


def _while(working: threading.Event, chore: Chore) -> Chore:
    def done(pace: Pace) -> None:
        if working.is_set():
            chore(pace)

    return done


def interval_seconds(retain: timedelta) -> float:
    """Return how often to look: often enough that not much more than the retention is kept."""
    return max(SHORTEST_INTERVAL_SECONDS, min(LONGEST_INTERVAL_SECONDS, retain.total_seconds() / 10))
