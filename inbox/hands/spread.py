"""A partition whose keys are handled side by side: what is done, what is to be done next, how far all is done. No I/O.

    records -> a lane for each key -> one message a transaction -> done, in any order -> the prefix, which is claimed

Messages of one key follow one another, those of different keys do not wait for one another. Only when everything below
an offset is done can the group's claim move up to it.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from itertools import chain

from inbox.claims import Claim, Taking
from inbox.delivery import Retry
from inbox.lane import BACKOFF, Segment, Verdict, stopped_words
from outbox.errors import MessageAtFault
from outbox.message import Offset
from outbox.retry import RetryPolicy
from relay.logs.contract import Batch, Partition, Record

MOST_WAITING = 1_000
"""So many records wait in memory before the partition is paused."""
MOST_WAITING_BYTES = 8_000_000
MOST_AHEAD = 20_000
"""So many records may be done ahead of one that is not; after a crash they come again, as duplicates."""

Key = str | Offset


class Became(Enum):
    """What became of a record."""

    HANDLED = "handled"
    DUPLICATE = "duplicate"
    IGNORED = "ignored"


@dataclass(slots=True)
class KeyLane:
    """The messages of one key that are not done, in order; the first may be in hand.

    Attributes:
        spread: the partition.
        key: the messages' key; the offset of one that has none.
        due: when, on a monotonic clock, the first may be handled.
    """

    spread: "Spread"
    key: Key
    due: float = 0.0
    records: deque[Record] = field(default_factory=deque)
    _attempt: int = 1
    _faults: int = 0
    _handed: bool = False

    @property
    def partition(self) -> Partition:
        """Whose records."""
        return self.spread.partition

    def next(self) -> Segment:
        """Return what is to be handled in the next transaction: the first message alone."""
        record = self.records[0]
        end = Offset(record.offset + 1)
        handed_to = end if self._handed else record.offset
        return Segment(self.partition, self.spread.claim, end, (record,), self._attempt, handed_to)

    def done(self, segment: Segment, is_first_time: bool, /) -> None:  # noqa: FBT001 - the outcome of the transaction
        """The message is handled; or it was before, by whomever."""
        self._attempt, self._faults, self._handed, self.due = 1, 0, False, 0.0
        self.records.popleft()
        self.spread.done(self, segment.records[0], Became.HANDLED if is_first_time else Became.DUPLICATE)

    def failed(
        self,
        segment: Segment,
        record: Record,
        error: BaseException,
        policy: RetryPolicy,
        *,
        now: float,
        random: Callable[[], float],
    ) -> Verdict:
        """The handler failed; decide whether the message is tried again, or stops the partition."""
        delay = None if isinstance(error, MessageAtFault) else policy.delay(segment.attempt, random)
        if delay is None:
            self.spread.stop(record.offset, stopped_words(segment, record, error))
            return Verdict.STOPPED
        if isinstance(error, Retry) and error.after is not None:
            delay = error.after.total_seconds()
        self._attempt = segment.attempt + 1
        self._wait(now + delay)
        return Verdict.AGAIN

    def passed_fault(self, *, now: float, random: Callable[[], float]) -> None:
        """The database could not do it now, or it is not known whether it did: nobody's attempt; the id will tell."""
        self._faults += 1
        self._wait(now + (BACKOFF.delay(self._faults, random) or 0.0))

    def _wait(self, due: float) -> None:
        self._handed, self.due = True, due
        self.spread.wait(self)


@dataclass(slots=True)
class Spread:
    """The state of one partition.

    Attributes:
        partition: whose.
        claim: the newest claim as far as known.
        has_handler: says of a record whether there is something to be done.
        stale: whether the claim has to be read again before anything else is begun.
        due: when, on a monotonic clock, that may be done.
        reason: why the partition stopped; None while it goes on.
        in_hand: how many messages are being handled.
    """

    partition: Partition
    claim: Claim
    has_handler: Callable[[Record], bool]
    stale: bool = False
    due: float = 0.0
    reason: str | None = None
    in_hand: int = 0
    _end: Offset = field(init=False)
    _order: deque[Offset] = field(default_factory=deque)
    _became: dict[Offset, Became] = field(default_factory=dict)
    _lanes: dict[Key, KeyLane] = field(default_factory=dict)
    _ready: deque[KeyLane] = field(default_factory=deque)
    _waiting: list[KeyLane] = field(default_factory=list)
    _records: int = 0
    _bytes: int = 0
    _limit: Offset | None = None
    _missed: bool = False
    _faults: int = 0
    _counts: dict[Became, int] = field(default_factory=lambda: dict.fromkeys(Became, 0))
    _claiming: Taking | None = None

    def __post_init__(self) -> None:
        self._end = self.claim.end

    @property
    def prefix(self) -> Offset:
        """Everything below is done."""
        return self._order[0] if self._order else self._end

    @property
    def is_full(self) -> bool:
        """Whether the partition is to be paused."""
        return (
            self.reason is not None
            or self.stale  # what came now would have to be fetched again
            or self._records >= MOST_WAITING
            or self._bytes >= MOST_WAITING_BYTES
            or len(self._order) >= MOST_AHEAD
        )

    @property
    def has_news(self) -> bool:
        """Whether something was done that is not claimed."""
        return self._claiming is None and (self.prefix > self.claim.end or self._counts[Became.HANDLED] > 0)

    @property
    def rests(self) -> bool:
        """Whether nothing is in hand, and nothing is left that could be begun, now or later."""
        if self.in_hand or self.stale:
            return False
        return not any(self._may_begin(lane) for lane in self._lanes.values())

    def is_through(self, goal: Offset) -> bool:
        """Return whether all below `goal` is claimed; in a partition that stopped, all that can be."""
        if self.claim.end >= goal:
            return True
        return self.reason is not None and self.rests and not self.has_news and self._claiming is None

    def offer(self, batch: Batch) -> None:
        """Take the next batch. One that does not continue the run is refused: the claim is read again, and sought."""
        if batch.begin != self._end or self.stale:
            self.stale = self._missed = True
            return
        for record in batch.records:
            self._order.append(record.offset)
            if self.has_handler(record):
                self._add(record)
            else:
                self._became[record.offset] = Became.IGNORED
        self._end = batch.end
        self._advance()

    def _add(self, record: Record) -> None:
        key: Key = record.offset if record.message.key is None else record.message.key
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = KeyLane(self, key)
            self._ready.append(lane)
        lane.records.append(record)
        self._records += 1
        self._bytes += _size(record)

    def next(self, now: float) -> KeyLane | None:
        """Return the lane whose message is to be begun next, which is in hand from then on; None without one."""
        if self.stale:
            return None
        if self._waiting:
            self._ready.extend(lane for lane in self._waiting if lane.due <= now)
            self._waiting = [lane for lane in self._waiting if lane.due > now]
        while self._ready:
            lane = self._ready.popleft()
            if self._may_begin(lane):
                self.in_hand += 1
                return lane
        return None

    def is_ready(self, now: float) -> bool:
        """Return whether `next` has a lane."""
        lanes = chain(self._ready, (lane for lane in self._waiting if lane.due <= now))
        return not self.stale and any(self._may_begin(lane) for lane in lanes)

    def next_due(self) -> float | None:
        """Return when the next message that waits may be begun."""
        return min((lane.due for lane in self._waiting if self._may_begin(lane)), default=None)

    def done(self, lane: KeyLane, record: Record, became: Became) -> None:
        """A lane is through with a message."""
        self._records -= 1
        self._bytes -= _size(record)
        self._became[record.offset] = became
        if became is Became.HANDLED:
            self._counts[became] += 1
        if lane.records:
            self._ready.append(lane)
        else:
            del self._lanes[lane.key]
        self._advance()

    def wait(self, lane: KeyLane) -> None:
        """A lane goes on when it is due."""
        self._waiting.append(lane)

    def stop(self, offset: Offset, reason: str) -> None:
        """A message stops the partition: what lies before it goes on, nothing behind it is begun."""
        if self._limit is None or offset < self._limit:
            self._limit, self.reason = offset, reason

    def taking(self) -> Taking:
        """Return the claim of what is done: everything up to the prefix, and the counts since the claim before."""
        self._claiming = Taking(
            self.partition,
            self.claim,
            self.prefix,
            identities=(),
            repeats=self._counts[Became.DUPLICATE],
            ignored=self._counts[Became.IGNORED],
            handled=self._counts[Became.HANDLED],
        )
        return self._claiming

    def claimed(self) -> None:
        """The claim was made."""
        if self._claiming is not None:
            self._settle_claim(self._claiming, self._claiming.claim.after(self._claiming.end))
        self._faults = 0

    def _settle_claim(self, taking: Taking, claim: Claim) -> None:
        self.claim, self._claiming = claim, None
        self._counts[Became.HANDLED] -= taking.handled
        self._counts[Became.DUPLICATE] -= taking.repeats
        self._counts[Became.IGNORED] -= taking.ignored

    def passed_fault(self, *, now: float, random: Callable[[], float]) -> None:
        """The claim was lost, or it is not known whether it was made: nothing is begun before it is read again."""
        self.stale = True
        self._faults += 1
        self.due = now + (BACKOFF.delay(self._faults, random) or 0.0)

    def rewind(self, claim: Claim) -> bool:
        """Go on from the newest claim, with nothing in hand; return False when records have to be fetched again.

        Another consumer is at work when the claim is further than we are: then all that we know is dropped.
        """
        tried, self._claiming = self._claiming, None
        if tried is not None and claim == tried.claim.after(tried.end):
            self._settle_claim(tried, claim)
        covered = self.claim.end <= claim.end <= self.prefix and not self._missed
        self.stale = self._missed = False
        self.claim = claim
        if not covered:
            self._drop_all()
        return covered

    def _drop_all(self) -> None:
        self._end = self.claim.end
        for one in (self._order, self._became, self._lanes, self._ready, self._waiting):
            one.clear()
        self._records = self._bytes = 0
        self._counts[Became.DUPLICATE] = self._counts[Became.IGNORED] = 0

    def _advance(self) -> None:
        while self._order and self._order[0] in self._became:
            became = self._became.pop(self._order.popleft())
            if became is not Became.HANDLED:
                self._counts[became] += 1

    def _may_begin(self, lane: KeyLane) -> bool:
        return self._limit is None or lane.records[0].offset < self._limit


def _size(record: Record) -> int:
    return len(record.message.payload or b"")
