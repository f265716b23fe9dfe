"""A lane: what this process knows of one partition, and what is to be done next with its records. No I/O in here."""

from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum

from inbox.claims import BATCH_SECONDS, Claim
from inbox.delivery import Retry
from outbox.errors import MessageAtFault
from outbox.message import Offset
from outbox.retry import RetryPolicy
from relay.logs.contract import Batch, Partition, Record

GOAL_SECONDS = 1.0
"""How long the transaction of a batch is to take; the number of records in it follows."""
DEPTH = 2
"""How many batches a lane takes before its partition is paused."""
FIRST_SIZE = 64
MOST = 10_000
BACKOFF = RetryPolicy(attempts=2**31, first_seconds=0.05, most_seconds=2.0)
"""How long to wait after a passing fault, which is nobody's attempt."""


_FIRST = Offset(0)


class Verdict(Enum):
    """What became of a segment that failed."""

    ONE_BY_ONE = "its records are handled one by one"
    AGAIN = "the message is tried again"
    STOPPED = "the partition stops"


@dataclass(frozen=True, slots=True)
class Segment:
    """An unbroken run of records to be handled in one transaction.

    Attributes:
        partition: whose records.
        claim: the claim it follows; the run begins at its end.
        end: one past the run.
        records: of the run, in offset order.
        attempt: which attempt this is; more than 1 only for a record alone.
        handed_to: records below this offset may have been handed to a handler before.
    """

    partition: Partition
    claim: Claim
    end: Offset
    records: Sequence[Record]
    attempt: int
    handed_to: Offset


@dataclass(slots=True)
class _Run:
    end: Offset
    records: Sequence[Record]


@dataclass(slots=True)
class Lane:
    """The state of one partition.

    Attributes:
        partition: whose.
        claim: the newest claim as far as known.
        is_alone: says of a record whether it may share its transaction with others.
        stale: whether the claim has to be read again before anything else.
        due: when, on a monotonic clock, the next segment may be begun.
        reason: why the partition stopped; None while it goes on.
    """

    partition: Partition
    claim: Claim
    is_alone: Callable[[Record], bool]
    stale: bool = False
    due: float = 0.0
    reason: str | None = None
    _runs: deque[_Run] = field(default_factory=deque)
    _missed: bool = False
    _size: int = FIRST_SIZE
    _attempt: int = 1
    _faults: int = 0
    _alone_to: Offset = _FIRST
    _handed_to: Offset = _FIRST

    @property
    def is_full(self) -> bool:
        """Whether the partition is to be paused."""
        return self.reason is not None or self.depth >= DEPTH

    @property
    def depth(self) -> int:
        """How many batches wait in it."""
        return len(self._runs)

    @property
    def end(self) -> Offset:
        """Where the next batch from the log must begin."""
        return self._runs[-1].end if self._runs else self.claim.end

    @property
    def waits(self) -> bool:
        """Whether there is something to be done, now or when it is due."""
        return self.reason is None and (self.stale or bool(self._runs))

    def offer(self, batch: Batch) -> None:
        """Take the next batch. One that does not continue the run is refused: the claim is read again, and sought."""
        if batch.begin == self.end and not self.stale:
            self._runs.append(_Run(batch.end, batch.records))
        else:
            # The log has gone on behind this batch: only a seek brings it back.
            self.stale = self._missed = True

    def is_through(self, goal: Offset) -> bool:
        """Return whether all below `goal` is handled, or the partition has stopped."""
        return self.reason is not None or self.claim.end >= goal

    def next(self) -> Segment:
        """Return what is to be handled in the next transaction."""
        run = self._runs[0]
        records = run.records[: self._count(run.records)]
        end = run.end if len(records) == len(run.records) else Offset(records[-1].offset + 1)
        return Segment(self.partition, self.claim, end, records, self._attempt, self._handed_to)

    def done(self, segment: Segment, seconds: float) -> None:
        """The segment was handled and committed."""
        self._advance(segment.claim.after(segment.end))
        if len(segment.records) > 1:
            self._pace(len(segment.records), seconds)

    def too_slow(self, segment: Segment, handled: int) -> None:
        """A batch ran into its bound after `handled` records: it is repeated with fewer."""
        self._handed_to = max(self._handed_to, segment.end)
        self._size = max(1, handled // 2)

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
        """A handler failed; decide what becomes of its segment.

        A batch was no attempt: its records are handled one by one, so that one bad message costs no other.
        """
        self._handed_to = max(self._handed_to, segment.end)
        if len(segment.records) > 1:
            self._alone_to = segment.end
            return Verdict.ONE_BY_ONE
        delay = None if isinstance(error, MessageAtFault) else policy.delay(segment.attempt, random)
        if delay is None:
            self.reason = stopped_words(segment, record, error)
            return Verdict.STOPPED
        if isinstance(error, Retry) and error.after is not None:
            delay = error.after.total_seconds()
        self._attempt = segment.attempt + 1
        self.due = now + delay
        return Verdict.AGAIN

    def passed_fault(self, *, now: float, random: Callable[[], float]) -> None:
        """The claim was lost, or the database could not do it now: nobody's attempt. Read the claim again first."""
        self.stale = True
        self._faults += 1
        if self._runs:
            self._handed_to = max(self._handed_to, self._runs[0].end)
        self.due = now + (BACKOFF.delay(self._faults, random) or 0.0)

    def rewind(self, claim: Claim) -> bool:
        """Go on from the newest claim; return False when the records have to be fetched again from there."""
        covered = not self._missed and self.claim.end <= claim.end <= self.end
        self.stale = self._missed = False
        if not covered:
            self._runs.clear()
        self._advance(claim)
        return covered

    def _advance(self, claim: Claim) -> None:
        """Take over a claim, and drop what lies before it."""
        if claim.end != self.claim.end:
            self._attempt, self._faults, self.due = 1, 0, 0.0
        self.claim = claim
        while self._runs and self._runs[0].end <= claim.end:
            self._runs.popleft()
        if self._runs:
            run = self._runs[0]
            run.records = run.records[bisect_left(run.records, claim.end, key=lambda record: record.offset) :]

    def _count(self, records: Sequence[Record]) -> int:
        """Return how many of the records go into the next transaction."""
        if not records or records[0].offset < self._alone_to or self.is_alone(records[0]):
            return min(1, len(records))
        most = min(self._size, len(records))
        return next((count for count in range(1, most) if self.is_alone(records[count])), most)

    def _pace(self, count: int, seconds: float) -> None:
        if seconds > GOAL_SECONDS:
            self._size = max(1, int(count * GOAL_SECONDS / seconds))
        elif count >= self._size:
            self._size = min(MOST, self._size * 2 if seconds < GOAL_SECONDS / 2 else self._size)


def is_over(seconds: float) -> bool:
    """Return whether a transaction has lasted too long for one more handler to begin in it."""
    return seconds > BATCH_SECONDS


def stopped_words(segment: Segment, record: Record, error: BaseException) -> str:
    """Say which message stops its partition, why, and what to do."""
    if isinstance(error, MessageAtFault):
        why = f"was rejected ({type(error).__name__}: {error})"
    else:
        why = f"failed {segment.attempt} times, lastly with {type(error).__name__}: {error}"
    partition = segment.partition
    return (
        f"message {record.message.id} of topic {partition.topic}, partition {partition.number}, offset {record.offset} "
        f"{why}: this partition stops here until the inbox is restarted; mend the handler or the data, then restart it"
    )
