"""One hand: one segment at a time, in the loop's own connection; its claim is part of its transaction."""

import time
from collections.abc import Collection
from concurrent.futures import Future, wait
from dataclasses import dataclass

from inbox.claims import Claim
from inbox.database import HandlersDatabase
from inbox.deduplicate import Deduplicate
from inbox.handlers import Handlers
from inbox.judgement import Judge
from inbox.lane import Lane, Segment
from inbox.registration import Registration
from inbox.work import TooSlow, handle
from relay.logs.contract import Consumer, Partition, Record

FINISH_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class InHand:
    """The segment that is being handled."""

    lane: Lane
    segment: Segment
    outcome: Future[float]


class OneHand:
    """One transaction at a time; partitions take turns."""

    def __init__(
        self,
        database: HandlersDatabase,
        handlers: Handlers,
        registration: Registration,
        judge: Judge,
        deduplicate: Deduplicate,
    ) -> None:
        self.lanes: dict[Partition, Lane] = {}
        self._database = database
        self._handlers = handlers
        self._registration = registration
        self._judge = judge
        self._deduplicate = deduplicate
        self._in_hand: InHand | None = None

    @property
    def is_free(self) -> bool:
        """Whether nothing is in hand."""
        return self._in_hand is None

    def take(self, partition: Partition, claim: Claim) -> None:
        """Begin with a partition, at its newest claim."""
        self.lanes[partition] = Lane(partition, claim, self._is_alone)

    def begin(self, consumer: Consumer) -> None:
        """Begin the next segment that is due, unless one is in hand."""
        lane = self._next_lane(time.monotonic())
        if self._in_hand is not None or lane is None:
            return
        if lane.stale:
            self._read_again(consumer, lane)
            return
        segment = lane.next()
        outcome = self._database.submit(lambda lent: handle(lent, segment, self._handlers, self._deduplicate))
        self._in_hand = InHand(lane, segment, outcome)

    def _read_again(self, consumer: Consumer, lane: Lane) -> None:
        """Go on from the newest claim: another consumer was faster, or it is not known what became of ours."""
        claim = self._database.persist(lambda connection: self._registration.newest(connection, lane.partition))
        if not lane.rewind(claim):
            consumer.seek(lane.partition, claim.end)

    def settle(self, timeout_seconds: float) -> None:
        """See what became of the segment in hand."""
        hand = self._in_hand
        if hand is None or not wait([hand.outcome], timeout_seconds).done:
            return
        self._in_hand = None
        try:
            self._judge.judge(hand.lane, hand.segment, hand.outcome)
        except TooSlow as slow:
            hand.lane.too_slow(hand.segment, slow.handled)
        # To the end of the line: partitions take turns.
        if self.lanes.pop(hand.lane.partition, None) is not None:
            self.lanes[hand.lane.partition] = hand.lane

    def _next_lane(self, now: float) -> Lane | None:
        """Return the lane whose turn it is; that of the segment in hand has had its own."""
        ready = (lane for lane in self.lanes.values() if lane.waits and lane.due <= now)
        return next((lane for lane in ready if self._in_hand is None or lane is not self._in_hand.lane), None)

    def is_supplied(self, now: float) -> bool:
        """Return whether there is enough to go on with after the segment in hand."""
        return self._next_lane(now) is not None or (self._in_hand is not None and self._in_hand.lane.is_full)

    def spare_seconds(self, now: float, most: float) -> float:
        """Return how long a poll may wait for records."""
        if self._in_hand is not None:
            return 0.0
        due = min((lane.due for lane in self.lanes.values() if lane.waits), default=now + most)
        return max(0.0, min(most, due - now))

    def finish(self, partitions: Collection[Partition]) -> None:
        """Wait until nothing of these partitions is in hand."""
        while self._in_hand is not None and self._in_hand.lane.partition in partitions:
            self.settle(FINISH_SECONDS)

    def drop(self, partitions: Collection[Partition]) -> None:
        """Forget these partitions."""
        for partition in partitions:
            self.lanes.pop(partition, None)

    def close(self) -> None:
        """Wait for what is in hand."""
        if self._in_hand is not None:
            wait([self._in_hand.outcome])

    def _is_alone(self, record: Record) -> bool:
        handler = self._handlers.for_message(record.message)
        return handler is not None and not handler.batch
