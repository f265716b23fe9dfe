"""The lane's decisions: what goes into the next transaction, and what a failure means. No database, no clock."""

from collections.abc import Sequence
from datetime import timedelta
from uuid import uuid4

import pytest

from inbox import Reject, Retry
from inbox.claims import Claim
from inbox.lane import FIRST_SIZE, GOAL_SECONDS, Lane, Segment, Verdict
from outbox.message import Message, Offset
from outbox.retry import RetryPolicy
from relay.logs.contract import Batch, Partition, Record

PARTITION = Partition("orders", "made", 0)
POLICY = RetryPolicy(attempts=2, first_seconds=8)


def record(offset: int, type_: str = "Placed") -> Record:
    return Record(PARTITION, Offset(offset), Message(uuid4(), "orders", "k", type_, b"", "text/plain", source="/s"), {})


def batch(offsets: Sequence[int], begin: int | None = None, end: int | None = None) -> Batch:
    first, last = (offsets[0], offsets[-1] + 1) if offsets else (begin or 0, end or 0)
    begin, end = first if begin is None else begin, last if end is None else end
    return Batch(PARTITION, Offset(begin), Offset(end), [record(offset) for offset in offsets])


def lane(step: int = 0, end: int = 0) -> Lane:
    return Lane(PARTITION, Claim(step, Offset(end)), is_alone=lambda one: one.message.type == "Alone")


def offsets(segment: Segment) -> list[int]:
    return [one.offset for one in segment.records]


def fail(one: Lane, error: Exception, at: int = 0) -> Verdict:
    segment = one.next()
    return one.failed(segment, segment.records[at], error, POLICY, now=100.0, random=lambda: 0.5)


def test_segments_follow_one_another_without_a_hole():
    one = lane()
    one.offer(batch([0, 1, 5], end=9))
    one.offer(batch([12], begin=9, end=20))
    first = one.next()
    assert (offsets(first), first.claim, first.end) == ([0, 1, 5], Claim(0, Offset(0)), 9)
    one.done(first, 0.1)
    second = one.next()
    assert (offsets(second), second.claim, second.end) == ([12], Claim(1, Offset(9)), 20)
    one.done(second, 0.1)
    assert not one.waits
    assert one.claim == Claim(2, Offset(20))


def test_a_run_of_holes_is_claimed_too():
    one = lane()
    one.offer(batch([], begin=0, end=4))
    assert (offsets(one.next()), one.next().end) == ([], 4)


def test_a_batch_that_does_not_continue_the_run_is_refused_and_the_claim_read_again():
    one = lane()
    one.offer(batch([0, 1]))
    one.offer(batch([3, 4]))
    assert one.stale
    assert one.depth == 1


def test_a_batch_is_no_attempt_and_its_records_are_handled_one_by_one():
    one = lane()
    one.offer(batch([0, 1, 2], end=5))
    assert fail(one, RuntimeError()) is Verdict.ONE_BY_ONE
    ends = []
    for _ in range(3):
        segment = one.next()
        assert (len(segment.records), segment.attempt) == (1, 1)
        assert segment.records[0].offset < segment.handed_to
        ends.append(segment.end)
        one.done(segment, 0.1)
    assert ends == [1, 2, 5]
    one.offer(batch([5, 6]))
    assert len(one.next().records) == 2


def test_a_record_alone_is_tried_again_and_then_stops_its_partition():
    one = lane()
    one.offer(batch([0]))
    assert fail(one, RuntimeError("first")) is Verdict.AGAIN
    assert (one.due, one.next().attempt) == (104.0, 2)
    assert fail(one, RuntimeError("second")) is Verdict.STOPPED
    assert not one.waits
    assert one.reason is not None
    assert "failed 2 times, lastly with RuntimeError: second" in one.reason


def test_a_rejected_message_stops_its_partition_at_once():
    one = lane()
    one.offer(batch([0]))
    assert fail(one, Reject("no lines")) is Verdict.STOPPED


def test_retry_says_when_and_is_an_attempt():
    one = lane()
    one.offer(batch([0]))
    assert fail(one, Retry(after=timedelta(seconds=60))) is Verdict.AGAIN
    assert one.due == 160.0
    assert fail(one, Retry(after=timedelta(seconds=60))) is Verdict.STOPPED


def test_attempts_are_counted_for_each_message_anew():
    one = lane()
    one.offer(batch([0, 1]))
    fail(one, RuntimeError())
    assert fail(one, RuntimeError()) is Verdict.AGAIN
    one.done(one.next(), 0.1)
    assert one.next().attempt == 1
    assert one.due == 0.0


def test_a_passing_fault_is_nobodys_attempt_and_waits_longer_each_time():
    one = lane()
    one.offer(batch([0]))
    dues = []
    for _ in range(8):
        one.passed_fault(now=100.0, random=lambda: 1.0)
        dues.append(one.due - 100.0)
        assert one.rewind(Claim(0, Offset(0)))
    assert one.next().attempt == 1
    assert dues == sorted(dues)
    assert dues[-1] == pytest.approx(2.0)


def test_what_another_consumer_has_handled_is_dropped():
    one = lane()
    one.offer(batch([0, 1, 2]))
    one.offer(batch([3, 4]))
    one.passed_fault(now=0.0, random=lambda: 0.0)
    assert one.rewind(Claim(7, Offset(4)))
    assert (offsets(one.next()), one.next().claim) == ([4], Claim(7, Offset(4)))


@pytest.mark.parametrize("end", [2, 9])
def test_a_claim_outside_of_what_was_fetched_is_sought(end: int):
    one = lane(step=3, end=5)
    one.offer(batch([5, 6]))
    assert not one.rewind(Claim(9, Offset(end)))
    assert (one.end, one.depth) == (end, 0)


def test_a_batch_that_came_while_the_claim_was_to_be_read_again_is_sought():
    """INVARIANT I8: the log has gone on behind it, so nothing but a seek brings it back."""
    one = lane()
    one.offer(batch([0, 1]))
    one.passed_fault(now=0.0, random=lambda: 0.0)
    one.offer(batch([2, 3]))
    assert not one.rewind(Claim(0, Offset(0)))
    assert (one.end, one.depth) == (0, 0)
    one.offer(batch([0, 1]))
    one.passed_fault(now=0.0, random=lambda: 0.0)
    assert one.rewind(Claim(0, Offset(0)))


def test_records_that_want_a_transaction_of_their_own_get_it():
    one = lane()
    types = ["Placed", "Placed", "Alone", "Placed"]
    records = [record(offset, type_) for offset, type_ in enumerate(types)]
    one.offer(Batch(PARTITION, Offset(0), Offset(4), records))
    found = []
    while one.waits:
        found.append(offsets(one.next()))
        one.done(one.next(), 0.1)
    assert found == [[0, 1], [2], [3]]


def test_slow_batches_get_smaller_and_quick_ones_larger():
    one = lane()
    one.offer(batch(range(2000)))
    assert len(one.next().records) == FIRST_SIZE
    one.done(one.next(), 0.01)
    assert len(one.next().records) == 2 * FIRST_SIZE
    one.done(one.next(), 4 * GOAL_SECONDS)
    assert len(one.next().records) == FIRST_SIZE // 2
    one.too_slow(one.next(), handled=10)
    assert len(one.next().records) == 5
    assert one.next().attempt == 1
