"""The loop of one group member.

    turn:  begin what is due  ->  poll the log meanwhile  ->  see what became of what is in hand

It polls on while a handler is slow or a retry waits, because a member that does not poll loses its partitions; a
partition whose lane is full is paused. What a failure means for its segment is the lane's decision.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from sqlalchemy import Connection

from inbox.database import HandlersDatabase
from inbox.deduplicate import Deduplicate
from inbox.handlers import Handlers
from inbox.hands import Hands
from inbox.hands.many import ManyHands, Worker
from inbox.hands.one import OneHand
from inbox.judgement import Judge
from inbox.membership import Membership
from inbox.registration import Registration
from inbox.transactions import Target, Transactions
from inbox.upkeep import Upkeep
from outbox.errors import Permanent, Retryable
from outbox.process.patience import Patience, Stopped
from relay.logs.contract import Consumer, Log, Partition

T = TypeVar("T")

POLL_SECONDS = 0.5
"""The longest the loop looks one way: at the log for records, or at what is in hand."""

_logger = logging.getLogger("inbox")


@dataclass(frozen=True, slots=True)
class Manner:
    """How a member is to run.

    Attributes:
        once: end when each partition is read to the end it had when first seen, or is another's.
        latest: a group that is not registered yet begins at the end of what is there.
        stop: set to end.
        wait_seconds: how long `once` waits for a database or log that is away.
    """

    once: bool
    latest: bool
    stop: threading.Event
    wait_seconds: float


class Loop:
    """One member of one consumer group."""

    def __init__(
        self,
        log: Log,
        group: str,
        handlers: Handlers,
        *,
        transactions: Transactions,
        target: Target,
        registration: Registration,
        deduplicate: Deduplicate,
        manner: Manner,
        workers: Sequence[Worker] = (),
    ) -> None:
        self._log = log
        self._group = group
        self._topics = handlers.topics
        self._once = manner.once
        self._stop = manner.stop
        give_up_seconds = manner.wait_seconds if manner.once else None
        self._log_patience = Patience("log", manner.stop, give_up_seconds, _logger)
        patience = Patience("database", manner.stop, give_up_seconds, _logger)
        self._database = HandlersDatabase(transactions, target, patience)
        judge = Judge(target, handlers, patience, self._database.end_stuck)
        self._hands: Hands = (
            ManyHands(self._database, workers, handlers, registration, judge, once=manner.once)
            if workers
            else OneHand(self._database, handlers, registration, judge, deduplicate)
        )
        self._membership = Membership(
            self, self._hands, log, self._topics, registration, deduplicate=deduplicate, latest=manner.latest
        )
        self._registration = registration
        self._paused: set[Partition] = set()
        self._polled = 0.0

    def run(self) -> None:
        """Handle records until told to stop; under `once`, until the partitions are read to where they ended.

        Raises:
            Permanent: under `once`, a message stopped its partition; or the log or the registration will not do.
            Unreachable: under `once`, the database or the log was away for too long.
            ConfigurationError: the database or the log is not as we need it.
        """
        consumer = None
        try:
            self._log_patience.until_done(self._log.check)
            self._database.examine()
            self._membership.register()
            consumer = self._log.consumer(self._group, self._topics, self._membership)
            upkeep = Upkeep(
                consumer,
                self._registration,
                self._database.target.dialect,
                lanes=self._hands.lanes,
                attempt=self._database.attempt,
            )
            while not self._stop.is_set() and not (self._once and self._is_through(consumer)):
                self._turn(consumer)
                upkeep.look(idle=self._hands.is_free)
            self._hands.finish(self._hands.lanes)
            upkeep.report()
        except Stopped:
            _logger.info("stopped while waiting")
        finally:
            self._leave(consumer)
        self._raise_what_stopped()

    def persist(self, work: Callable[[Connection], T]) -> T:
        """Do work in the handlers' database, as often and as long as it takes."""
        return self._database.persist(work)

    def ask(self, question: Callable[[], T]) -> T:
        """Ask the log, as often and as long as it takes."""
        return self._log_patience.until_done(question)

    def _turn(self, consumer: Consumer) -> None:
        self._hands.begin(consumer)
        self._poll(consumer)
        self._hands.settle(POLL_SECONDS)

    def _poll(self, consumer: Consumer) -> None:
        """Fetch the next batch while a segment is in hand, or wait for one; and stay a member."""
        now = time.monotonic()
        if self._hands.is_supplied(now) and now - self._polled < POLL_SECONDS:
            return
        self._polled = now
        try:
            self._pause_what_is_full(consumer)
            batch = consumer.poll(self._hands.spare_seconds(now, POLL_SECONDS))
        except Stopped:
            raise
        except Retryable as error:
            self._stop.wait(self._log_patience.failed(error))
            return
        self._log_patience.worked()
        lane = None if batch is None else self._hands.lanes.get(batch.partition)
        if batch is not None and lane is not None:
            lane.offer(batch)

    def _pause_what_is_full(self, consumer: Consumer) -> None:
        # Only here, before a poll: an adapter may drop what it has prefetched of a partition that is paused.
        full = {partition for partition, lane in self._hands.lanes.items() if lane.is_full}
        for partition in full - self._paused:
            consumer.pause(partition)
        for partition in self._paused - full:
            consumer.resume(partition)
        self._paused = full

    def _is_through(self, consumer: Consumer) -> bool:
        assignment = consumer.assignment()
        return assignment is not None and self._membership.is_through(assignment)

    def _leave(self, consumer: Consumer | None) -> None:
        """Let nothing go on behind our back, then leave the group."""
        self._hands.close()
        try:
            if consumer is not None:
                consumer.close()
        finally:
            self._database.close()

    def _raise_what_stopped(self) -> None:
        reasons = [lane.reason for lane in self._hands.lanes.values() if lane.reason is not None]
        if self._once and reasons:
            others = f" ({len(reasons) - 1} more partitions stopped)" if len(reasons) > 1 else ""
            raise Permanent(f"{reasons[0]}{others}")
