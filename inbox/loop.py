"""The loop of one group member: one lane a partition, one transaction at a time.

    turn:  begin the next segment  ->  poll the log meanwhile  ->  see what became of the segment

It polls on while a handler is slow or a retry waits, because a member that does not poll loses its partitions; a
partition whose lane is full is paused. What a failure means for its segment is the lane's decision.
"""

import logging
import threading
import time
from collections.abc import Callable, Collection
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import TypeVar

from sqlalchemy import Connection

from inbox.handlers import Handlers
from inbox.judgement import Judge
from inbox.lane import Lane, Segment
from inbox.lending import Lent
from inbox.membership import Membership
from inbox.registration import Registration
from inbox.transactions import CommitFailed, Target, Transactions
from inbox.upkeep import Upkeep
from inbox.work import handle
from outbox.errors import Permanent, Retryable, TimedOut
from outbox.process.patience import Patience, Stopped
from relay.logs.contract import Consumer, Log, Partition, Record

T = TypeVar("T")

POLL_SECONDS = 0.5
"""The longest the loop looks one way: at the log for records, or at the segment in hand."""
DEPTH = 2
"""How many batches a lane takes before its partition is paused."""

_logger = logging.getLogger("inbox")


@dataclass(frozen=True, slots=True)
class InHand:
    """The segment that is being handled."""

    lane: Lane
    segment: Segment
    outcome: Future[float]


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
        manner: Manner,
    ) -> None:
        self._log = log
        self._group = group
        self._handlers = handlers
        self._transactions = transactions
        self._target = target
        self._once = manner.once
        self._stop = manner.stop
        give_up_seconds = manner.wait_seconds if manner.once else None
        self._database_patience = Patience("database", manner.stop, give_up_seconds, _logger)
        self._log_patience = Patience("log", manner.stop, give_up_seconds, _logger)
        self._membership = Membership(
            self, log, handlers.topics, registration, latest=manner.latest, is_alone=self._is_alone
        )
        self._judge = Judge(target, handlers, self._database_patience, self.end_stuck)
        self._registration = registration
        self._in_hand: InHand | None = None
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
            self._database_patience.until_done(lambda: self._target.dialect.examine(self._target.url))
            self._membership.register()
            consumer = self._log.consumer(self._group, self._handlers.topics, self._membership)
            upkeep = Upkeep(
                consumer,
                self._registration,
                self._target.dialect,
                lanes=self._membership.lanes,
                attempt=self._attempt,
            )
            while not self._stop.is_set() and not (self._once and self._is_through(consumer)):
                self._turn(consumer)
                upkeep.look(idle=self._in_hand is None)
            self.finish(self._membership.lanes)
            upkeep.report()
        except Stopped:
            _logger.info("stopped while waiting")
        finally:
            self._leave(consumer)
        self._raise_what_stopped()

    def persist(self, work: Callable[[Connection], T]) -> T:
        """Do work in a transaction, as often and as long as it takes."""
        return self._database_patience.until_done(lambda: self._insist(work))

    def _insist(self, work: Callable[[Connection], T]) -> T:
        try:
            return self._attempt(work)
        except TimedOut as error:
            self.end_stuck(error)
            raise

    def end_stuck(self, error: TimedOut) -> None:
        """Whoever holds a lock of ours for longer than any handler may take hangs: end it, so that we can go on."""
        dialect, limits = self._target.dialect, self._target.limits
        ended = self._attempt(lambda connection: dialect.end_stuck(connection, limits))
        if ended:
            _logger.warning("%s: ended %s sessions of this group that held a transaction for too long", error, ended)

    def _attempt(self, work: Callable[[Connection], T]) -> T:
        """Do work of our own in a transaction, once."""

        def translated(lent: Lent) -> T:
            with self._target.dialect.translated():
                return work(lent.connection)

        try:
            return self._transactions.submit(translated).result()
        except CommitFailed as failed:
            raise Retryable(f"it is not known whether a COMMIT was done: {failed.__cause__}") from failed

    def ask(self, question: Callable[[], T]) -> T:
        """Ask the log, as often and as long as it takes."""
        return self._log_patience.until_done(question)

    def finish(self, partitions: Collection[Partition]) -> None:
        """Wait until nothing of these partitions is in hand."""
        while self._in_hand is not None and self._in_hand.lane.partition in partitions:
            self._settle(POLL_SECONDS)

    def _turn(self, consumer: Consumer) -> None:
        self._begin(consumer)
        self._poll(consumer)
        self._settle(POLL_SECONDS)

    def _begin(self, consumer: Consumer) -> None:
        """Begin the next segment that is due, unless one is in hand."""
        lane = self._next_lane(time.monotonic())
        if self._in_hand is not None or lane is None:
            return
        if lane.stale:
            self._read_again(consumer, lane)
            return
        segment = lane.next()
        outcome = self._transactions.submit(lambda lent: handle(lent, segment, self._handlers, self._target.dialect))
        self._in_hand = InHand(lane, segment, outcome)

    def _read_again(self, consumer: Consumer, lane: Lane) -> None:
        """Go on from the newest claim: another consumer was faster, or it is not known what became of ours."""
        claim = self.persist(lambda connection: self._registration.newest(connection, lane.partition))
        if not lane.rewind(claim):
            consumer.seek(lane.partition, claim.end)

    def _poll(self, consumer: Consumer) -> None:
        """Fetch the next batch while a segment is in hand, or wait for one; and stay a member."""
        now = time.monotonic()
        if self._is_supplied(now) and now - self._polled < POLL_SECONDS:
            return
        self._polled = now
        try:
            self._pause_what_is_full(consumer)
            batch = consumer.poll(self._spare_seconds(now))
        except Stopped:
            raise
        except Retryable as error:
            self._stop.wait(self._log_patience.failed(error))
            return
        self._log_patience.worked()
        lane = None if batch is None else self._membership.lanes.get(batch.partition)
        if batch is not None and lane is not None:
            lane.offer(batch)

    def _pause_what_is_full(self, consumer: Consumer) -> None:
        # Only here, before a poll: an adapter may drop what it has prefetched of a partition that is paused.
        lanes = self._membership.lanes.items()
        full = {partition for partition, lane in lanes if lane.depth >= DEPTH or lane.reason is not None}
        for partition in full - self._paused:
            consumer.pause(partition)
        for partition in self._paused - full:
            consumer.resume(partition)
        self._paused = full

    def _settle(self, timeout_seconds: float) -> None:
        """See what became of the segment in hand."""
        hand = self._in_hand
        if hand is None or not wait([hand.outcome], timeout_seconds).done:
            return
        self._in_hand = None
        self._judge.judge(hand.lane, hand.segment, hand.outcome)
        # To the end of the line: partitions take turns.
        if self._membership.lanes.pop(hand.lane.partition, None) is not None:
            self._membership.lanes[hand.lane.partition] = hand.lane

    def _next_lane(self, now: float) -> Lane | None:
        """Return the lane whose turn it is; that of the segment in hand has had its own."""
        ready = (lane for lane in self._membership.lanes.values() if lane.waits and lane.due <= now)
        return next((lane for lane in ready if self._in_hand is None or lane is not self._in_hand.lane), None)

    def _is_supplied(self, now: float) -> bool:
        """Return whether there is enough to go on with after the segment in hand."""
        return self._next_lane(now) is not None or (self._in_hand is not None and self._in_hand.lane.depth >= DEPTH)

    def _spare_seconds(self, now: float) -> float:
        """Return how long a poll may wait for records."""
        if self._in_hand is not None:
            return 0.0
        due = min((lane.due for lane in self._membership.lanes.values() if lane.waits), default=now + POLL_SECONDS)
        return max(0.0, min(POLL_SECONDS, due - now))

    def _is_through(self, consumer: Consumer) -> bool:
        assignment = consumer.assignment()
        return self._in_hand is None and assignment is not None and self._membership.is_through(assignment)

    def _is_alone(self, record: Record) -> bool:
        handler = self._handlers.for_message(record.message)
        return handler is not None and not handler.batch

    def _leave(self, consumer: Consumer | None) -> None:
        """Let nothing go on behind our back, then leave the group."""
        if self._in_hand is not None:
            wait([self._in_hand.outcome])
        try:
            if consumer is not None:
                consumer.close()
        finally:
            self._transactions.close()

    def _raise_what_stopped(self) -> None:
        reasons = [lane.reason for lane in self._membership.lanes.values() if lane.reason is not None]
        if self._once and reasons:
            others = f" ({len(reasons) - 1} more partitions stopped)" if len(reasons) > 1 else ""
            raise Permanent(f"{reasons[0]}{others}")
