"""Many hands, for slow handlers: so many messages at a time, each in a transaction and a connection of its own.

    fetched records -> a lane a key -> insert the id, call the handler, commit -> the prefix that is done -> claimed

The id decides "first time?" and is what keeps effects single. The claims that one hand makes with each transaction are
made here about once a second, of the prefix: they are the place to resume, and say when another consumer is at work.
"""

import logging
import time
from collections import deque
from collections.abc import Collection, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from queue import Empty, SimpleQueue

from sqlalchemy import Connection

from inbox.claims import Claim, MessageDialect, Taking
from inbox.database import HandlersDatabase
from inbox.handlers import Handlers
from inbox.hands.spread import KeyLane, Spread
from inbox.judgement import Judge
from inbox.lane import BACKOFF, Segment
from inbox.lending import Lent
from inbox.registration import Registration
from inbox.transactions import CommitFailed, Transactions
from inbox.work import handle_one
from outbox.errors import Fenced, Retryable, TimedOut
from relay.logs.contract import Consumer, Partition, Record

CLAIM_SECONDS = 1.0
"""How often a partition's prefix is claimed."""
LOOK_SECONDS = 0.02
"""While a hand is free and others are busy, the loop looks this often from the log to them and back."""
FINISH_SECONDS = 0.5

_logger = logging.getLogger("inbox")


@dataclass(frozen=True, slots=True)
class Worker:
    """One of the hands: a connection, and the dialect that knows it."""

    transactions: Transactions
    dialect: MessageDialect


@dataclass(frozen=True, slots=True)
class InHand:
    """A message that is being handled."""

    worker: Worker
    lane: KeyLane
    segment: Segment
    outcome: Future[bool]


@dataclass(frozen=True, slots=True)
class Claiming:
    """A claim that is being made."""

    spread: Spread
    outcome: Future[None]


class ManyHands:
    """As many transactions at a time as there are workers."""

    def __init__(
        self,
        database: HandlersDatabase,
        workers: Sequence[Worker],
        handlers: Handlers,
        registration: Registration,
        judge: Judge,
        *,
        once: bool,
    ) -> None:
        self.lanes: dict[Partition, Spread] = {}
        self._database = database
        self._workers = workers
        self._free = deque(workers)
        self._handlers = handlers
        self._registration = registration
        self._judge = judge
        self._once = once
        self._ended: SimpleQueue[InHand | Claiming] = SimpleQueue()
        self._in_hand: dict[Future[bool], InHand] = {}
        self._claims: dict[Partition, Claiming] = {}
        self._claimed: dict[Partition, float] = {}
        self._faults = 0
        self._rests_until = 0.0

    @property
    def is_free(self) -> bool:
        """Whether no claim is being made."""
        return not self._claims

    def take(self, partition: Partition, claim: Claim) -> None:
        """Begin with a partition, at its newest claim."""
        self.lanes[partition] = Spread(partition, claim, self._has_handler)

    def begin(self, consumer: Consumer) -> None:
        """Read claims again that were lost, make those that are due, and give every free hand a message."""
        now = time.monotonic()
        for spread in list(self.lanes.values()):
            if spread.partition in self._claims:
                continue
            if spread.stale and not spread.in_hand and spread.due <= now:
                self._read_again(consumer, spread)
            elif spread.has_news and not spread.stale and self._claim_is_due(spread, now):
                self._claim(spread, now)
        while self._free and now >= self._rests_until:
            lane = self._next(now)
            if lane is None:
                return
            self._hand_over(lane)

    def _next(self, now: float) -> KeyLane | None:
        """Return the next lane that may go on; partitions take turns."""
        for partition, spread in self.lanes.items():
            lane = spread.next(now)
            if lane is not None:
                self.lanes[partition] = self.lanes.pop(partition)
                return lane
        return None

    def _hand_over(self, lane: KeyLane) -> None:
        worker, segment = self._free.popleft(), lane.next()

        def work(lent: Lent) -> bool:
            return handle_one(lent, segment, self._handlers, worker.dialect)

        hand = InHand(worker, lane, segment, worker.transactions.submit(work))
        self._in_hand[hand.outcome] = hand
        hand.outcome.add_done_callback(lambda _: self._ended.put(hand))

    def _claim_is_due(self, spread: Spread, now: float) -> bool:
        return now - self._claimed.get(spread.partition, 0.0) >= CLAIM_SECONDS or (self._once and spread.rests)

    def _claim(self, spread: Spread, now: float) -> None:
        taking = spread.taking()
        claiming = Claiming(spread, self._database.submit(lambda lent: self._take(lent.connection, taking)))
        self._claims[spread.partition] = claiming
        self._claimed[spread.partition] = now
        claiming.outcome.add_done_callback(lambda _: self._ended.put(claiming))

    def _take(self, connection: Connection, taking: Taking) -> None:
        # Another consumer's transaction may hold the claim for as long as its handlers take: then we are late anyway.
        dialect = self._database.target.dialect
        with dialect.translated():
            dialect.hurry(connection)
        dialect.take(connection, taking)

    def _read_again(self, consumer: Consumer, spread: Spread) -> None:
        """Go on from the newest claim: another consumer was faster, or it is not known what became of ours."""
        claim = self._database.persist(lambda connection: self._registration.newest(connection, spread.partition))
        if not spread.rewind(claim):
            consumer.seek(spread.partition, claim.end)

    def settle(self, timeout_seconds: float) -> None:
        """See what became of what is in hand; wait for one to end, shortly while another hand is free."""
        if self._in_hand or self._claims:
            self._wait_for_one(self._until_due(time.monotonic(), LOOK_SECONDS) if self._free else timeout_seconds)
        while not self._ended.empty():
            self._look_at(self._ended.get())

    def _until_due(self, now: float, most: float) -> float:
        """Return how long it is, `most` at most, until a free hand can begin something."""
        dues = [due for spread in self.lanes.values() if (due := spread.next_due()) is not None]
        if any(spread.is_ready(now) for spread in self.lanes.values()):
            dues.append(now)
        return max(0.0, min(most, max(min(dues, default=now + most), self._rests_until) - now))

    def _wait_for_one(self, timeout_seconds: float) -> None:
        try:
            self._look_at(self._ended.get(timeout=timeout_seconds))
        except Empty:
            return

    def _look_at(self, ended: InHand | Claiming) -> None:
        if isinstance(ended, Claiming):
            self._claim_ended(ended)
            return
        del self._in_hand[ended.outcome]
        self._let_go(ended.worker, ended.outcome.exception())
        ended.lane.spread.in_hand -= 1
        self._judge.judge(ended.lane, ended.segment, ended.outcome)

    def _let_go(self, worker: Worker, error: BaseException | None) -> None:
        if isinstance(error, Retryable) and not isinstance(error, TimedOut):
            # No connection to be had: a pause for all, or every message in turn would ask for one.
            self._faults += 1
            self._rests_until = time.monotonic() + BACKOFF.ceiling(self._faults)
            self._free.append(worker)
            return
        self._faults = 0
        # First again: a connection that is open is used before another is opened.
        self._free.appendleft(worker)

    def _claim_ended(self, ended: Claiming) -> None:
        self._claims.pop(ended.spread.partition, None)
        try:
            ended.outcome.result()
        except CommitFailed as failed:
            error = Retryable(f"it is not known whether a COMMIT was done: {failed.__cause__}")
            self._judge.pass_by(ended.spread, error)
        except (Fenced, Retryable) as error:
            self._judge.pass_by(ended.spread, error)
        else:
            ended.spread.claimed()

    def is_supplied(self, now: float) -> bool:
        """Return whether no hand is free, and a message is ready for the next that is."""
        return not self._free and any(spread.is_ready(now) for spread in self.lanes.values())

    def spare_seconds(self, now: float, most: float) -> float:
        """Return how long a poll may wait for records: not at all while something is in hand, which `settle` awaits."""
        return 0.0 if self._in_hand or self._claims else self._until_due(now, most)

    def finish(self, partitions: Collection[Partition]) -> None:
        """Wait until nothing of these partitions is in hand, and claim what is done."""
        wanted = set(partitions)
        while wanted & self._claims.keys() or any(one.lane.partition in wanted for one in self._in_hand.values()):
            self._wait_for_one(FINISH_SECONDS)
        for partition in wanted & self.lanes.keys():
            self._claim_last(self.lanes[partition])

    def _claim_last(self, spread: Spread) -> None:
        if spread.stale or not spread.has_news:
            return
        taking = spread.taking()
        try:
            self._database.attempt(lambda connection: self._take(connection, taking))
        except (Fenced, Retryable) as error:
            _logger.info("%s: what was handled last comes again, and is passed by as duplicates", error)
            spread.stale = True
        else:
            spread.claimed()

    def drop(self, partitions: Collection[Partition]) -> None:
        """Forget these partitions."""
        for partition in partitions:
            self.lanes.pop(partition, None)

    def close(self) -> None:
        """Wait for what is in hand, and close the workers' connections."""
        wait(self._in_hand)
        wait([one.outcome for one in self._claims.values()])
        for worker in self._workers:
            worker.transactions.close()

    def _has_handler(self, record: Record) -> bool:
        return self._handlers.for_message(record.message) is not None
