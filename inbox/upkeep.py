"""What the loop does beside handling: report offsets to the log, prune claims, and say what a person should know."""

import logging
import time
from collections.abc import Callable, Mapping

from sqlalchemy import Connection

from inbox.claims import Dialect
from inbox.hands import Track
from inbox.registration import Registration
from outbox.errors import Retryable
from relay.logs.contract import Consumer, Partition

REPORT_SECONDS = 1.0
PRUNE_SECONDS = 10.0
COMPLAIN_SECONDS = 60.0
KEEP_STEPS = 100
"""A partition is pruned when it has more claims than this; of these only the newest counts."""

Try = Callable[[Callable[[Connection], None]], None]

_logger = logging.getLogger("inbox")


class Upkeep:
    """The chores of one member."""

    def __init__(
        self,
        consumer: Consumer,
        registration: Registration,
        dialect: Dialect,
        *,
        lanes: Mapping[Partition, Track],
        attempt: Try,
    ) -> None:
        self._consumer = consumer
        self._registration = registration
        self._dialect = dialect
        self._lanes = lanes
        self._attempt = attempt
        self._pruned: dict[Partition, int] = {}
        self._complained: dict[Partition, float] = {}
        self._missing: frozenset[str] = frozenset()
        self._abandoned: frozenset[str] = frozenset()
        self._report_due = self._prune_due = time.monotonic()

    def look(self, *, idle: bool) -> None:
        """Do what is due; what needs the database only while our connection there is free."""
        now = time.monotonic()
        self._say(now)
        if now >= self._report_due:
            self._report_due = now + REPORT_SECONDS
            self.report()
        if idle and now >= self._prune_due:
            self._prune_due = now + PRUNE_SECONDS
            self.prune()

    def report(self) -> None:
        """Tell the log how far the group has come. It is a report: the claims are what counts."""
        # All of them: what was reported before a partition went and came back may not have reached the log.
        try:
            self._consumer.commit({partition: lane.claim.end for partition, lane in self._lanes.items()})
        except Retryable as error:
            _logger.info("the log does not take the group's offsets now: %s", error)

    def prune(self) -> None:
        """Delete the claims that newer ones have made history."""
        for partition, lane in self._lanes.items():
            claim, low = lane.claim, self._pruned.get(partition, 0)
            if claim.step - low < KEEP_STEPS or lane.stale:
                continue
            try:
                self._attempt(lambda connection: self._prune(connection, partition, lane, low))  # noqa: B023 - run at once
            except Retryable as error:
                _logger.info("pruning waits for the next time: %s", error)
                # A crash may have undone what was pruned.
                self._pruned.clear()
                return
            self._pruned[partition] = claim.step

    def _prune(self, connection: Connection, partition: Partition, lane: Track, low: int) -> None:
        with self._dialect.translated():
            self._dialect.hurry(connection)
            self._registration.prune(connection, partition, lane.claim, low)

    def _say(self, now: float) -> None:
        """Say what stopped, once a minute; and what is not there, or not ours, once."""
        for partition, lane in self._lanes.items():
            if lane.reason is not None and now >= self._complained.get(partition, now):
                self._complained[partition] = now + COMPLAIN_SECONDS
                _logger.error("%s", lane.reason)
        missing = self._consumer.missing()
        for topic in sorted(missing - self._missing):
            _logger.warning("topic %s does not exist yet: it is read from its first record when it appears", topic)
        self._missing = missing
        abandoned = self._consumer.abandoned()
        for topic in sorted(abandoned - self._abandoned):
            _logger.warning(
                "topic %s waits: no member of group %s handles it any more, though the group has read it",
                topic,
                self._registration.group,
            )
        self._abandoned = abandoned
