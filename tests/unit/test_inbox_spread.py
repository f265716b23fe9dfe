"""A partition whose keys are handled side by side: what may begin, and how far all is done. No database, no clock."""

from collections.abc import Sequence
from datetime import timedelta
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inbox import Reject, Retry
from inbox.claims import Claim
from inbox.hands.spread import MOST_WAITING, KeyLane, Spread
from inbox.lane import Verdict
from outbox.message import Message, Offset
from outbox.retry import RetryPolicy
from relay.logs.contract import Batch, Partition, Record

PARTITION = Partition("orders", "made", 0)
POLICY = RetryPolicy(attempts=2, first_seconds=8)


def record(offset: int, key: str | None) -> Record:
    type_ = "Ignored" if key == "ignored" else "Placed"
    return Record(
        PARTITION, Offset(offset), Message(uuid4(), "orders", key, type_, b"12", "text/plain", source="/s"), {}
    )


def spread(keys: Sequence[str | None], *, end: int | None = None) -> Spread:
    """One with a batch in it: a record a key, offsets from 0."""
    one = Spread(PARTITION, Claim(0, Offset(0)), lambda record: record.message.type == "Placed")
    records = [record(offset, key) for offset, key in enumerate(keys)]
    one.offer(Batch(PARTITION, Offset(0), Offset(len(keys) if end is None else end), records))
    return one


def begin(one: Spread, now: float = 0.0) -> list[int]:
    """Begin all that may be; return the offsets."""
    found = []
    while (lane := one.next(now)) is not None:
        found.append(lane.records[0].offset)
    return found


def lane_of(one: Spread, key: str | int) -> KeyLane:
    return one._lanes[key]


def done(one: Spread, *keys: str | int, first_time: bool = True) -> None:
    for key in keys:
        lane = lane_of(one, key)
        one.in_hand -= 1
        lane.done(lane.next(), first_time)


def fail(one: Spread, key: str, error: Exception) -> Verdict:
    lane = lane_of(one, key)
    segment = lane.next()
    one.in_hand -= 1
    return lane.failed(segment, segment.records[0], error, POLICY, now=100.0, random=lambda: 0.5)


def test_the_first_of_each_key_may_begin_and_the_next_when_it_is_done():
    one = spread(["a", "b", "a", "b", "c"])
    assert begin(one) == [0, 1, 4]
    done(one, "b")
    assert begin(one) == [3]
    assert one.prefix == 0
    done(one, "a")
    assert one.prefix == 2
    assert begin(one) == [2]


def test_records_without_a_key_wait_for_nobody():
    assert begin(spread([None, None, "a", None])) == [0, 1, 2, 3]


def test_the_prefix_ends_at_the_first_that_is_not_done_and_the_claim_tells_the_counts():
    one = spread(["ignored", "a", "b", "ignored", "c"], end=9)
    assert (begin(one), one.prefix) == ([1, 2, 4], 1)
    done(one, "b", first_time=False)
    done(one, "c")
    taking = one.taking()
    assert (taking.end, taking.handled, taking.repeats, taking.ignored) == (1, 1, 0, 1)
    one.claimed()
    done(one, "a")
    taking = one.taking()
    assert (taking.claim, taking.end, taking.handled, taking.repeats, taking.ignored) == (
        Claim(1, Offset(1)),
        9,
        1,
        1,
        1,
    )
    one.claimed()
    assert one.claim == Claim(2, Offset(9))
    assert not one.has_news
    assert one.rests


def test_what_is_done_while_a_claim_is_made_is_in_the_next():
    one = spread(["a", "b"])
    begin(one)
    done(one, "a")
    one.taking()
    assert not one.has_news
    done(one, "b")
    one.claimed()
    taking = one.taking()
    assert (taking.claim.end, taking.end, taking.handled) == (1, 2, 1)


def test_a_message_that_waits_for_its_retry_keeps_its_key_alone_waiting():
    one = spread(["a", "b", "a", "b"])
    begin(one)
    assert fail(one, "a", RuntimeError()) is Verdict.AGAIN
    assert lane_of(one, "a").next().attempt == 2
    done(one, "b")
    assert begin(one, 103.9) == [3]
    assert one.next_due() == 104.0
    assert not one.is_ready(103.9)
    assert one.is_ready(104.0)
    assert begin(one, 104.0) == [0]
    assert lane_of(one, "a").next().handed_to == 1
    done(one, "a")
    assert begin(one, 104.0) == [2]
    assert lane_of(one, "a").next().attempt == 1


def test_retry_says_when_and_is_an_attempt():
    one = spread(["a"])
    begin(one)
    assert fail(one, "a", Retry(after=timedelta(seconds=60))) is Verdict.AGAIN
    assert one.next_due() == 160.0
    begin(one, 160.0)
    assert fail(one, "a", Retry(after=timedelta(seconds=60))) is Verdict.STOPPED


def test_a_fault_is_nobodys_attempt():
    one = spread(["a"])
    for _ in range(5):
        assert begin(one, 1_000.0) == [0]
        one.in_hand -= 1
        lane_of(one, "a").passed_fault(now=100.0, random=lambda: 1.0)
    assert lane_of(one, "a").next().attempt == 1


def test_a_partition_that_stops_goes_on_with_what_lies_before():
    one = spread(["a", "b", "a", "c", "b", "c"])
    begin(one)
    assert fail(one, "c", Reject("no lines")) is Verdict.STOPPED
    assert one.is_full
    done(one, "a", "b")
    assert begin(one) == [2]
    assert not one.rests
    done(one, "a")
    assert (begin(one), one.rests, one.prefix) == ([], True, 3)
    assert not one.is_through(Offset(6))
    one.taking()
    one.claimed()
    assert one.is_through(Offset(6))


def test_of_two_messages_that_stop_the_partition_the_first_is_told():
    one = spread(["a", "b", "c"])
    begin(one)
    fail(one, "c", Reject("the later"))
    fail(one, "b", Reject("the first"))
    fail(one, "a", RuntimeError())
    assert "the first" in (one.reason or "")
    assert begin(one, 104.0) == [0]


def test_a_claim_that_others_made_within_what_is_done_changes_nothing_else():
    one = spread(["a", "b", "c"])
    begin(one)
    done(one, "a", "c")
    one.taking()
    one.passed_fault(now=0.0, random=lambda: 0.0)
    assert one.next(0.0) is None
    assert one.rewind(Claim(7, Offset(1)))
    done(one, "b")
    taking = one.taking()
    assert (taking.claim, taking.end, taking.handled) == (Claim(7, Offset(1)), 3, 3)


def test_a_claim_of_ours_whose_outcome_was_unknown_is_not_counted_twice():
    one = spread(["a", "b"])
    begin(one)
    done(one, "a")
    one.taking()
    one.passed_fault(now=0.0, random=lambda: 0.0)
    assert one.rewind(Claim(1, Offset(1)))
    assert not one.has_news


@pytest.mark.parametrize("end", [2, 7])
def test_a_claim_ahead_of_what_is_done_drops_all(end: int):
    one = spread(["a", "b", "c"])
    begin(one)
    done(one, "a")
    one.in_hand = 0
    one.passed_fault(now=0.0, random=lambda: 0.0)
    assert not one.rewind(Claim(9, Offset(end)))
    assert (one.prefix, begin(one)) == (end, [])
    one.offer(Batch(PARTITION, Offset(end), Offset(end + 1), [record(end, "a")]))
    assert begin(one) == [end]


def test_a_batch_that_does_not_continue_the_run_is_sought_again():
    one = spread(["a"])
    one.offer(Batch(PARTITION, Offset(3), Offset(4), [record(3, "b")]))
    assert one.stale
    assert not one.rewind(Claim(0, Offset(0)))
    assert one.prefix == 0


def test_it_is_full_when_so_many_wait_and_no_longer_when_they_are_done():
    one = spread([str(number) for number in range(MOST_WAITING)])
    assert one.is_full
    begin(one)
    done(one, "5")
    assert not one.is_full


class Followed:
    """A spread, and beside it what a reader would expect of it."""

    def __init__(self, keys: Sequence[str | None]) -> None:
        self.keys = keys
        self.spread = spread(keys)
        self.done = {offset for offset, key in enumerate(keys) if key == "ignored"}
        self.hands: dict[int, KeyLane] = {}

    def begin(self) -> None:
        lane = self.spread.next(1e9)
        if lane is None:
            return
        offset = lane.records[0].offset
        key = self.keys[offset]
        before = {other for other in range(offset) if key is not None and self.keys[other] == key}
        assert before <= self.done
        assert offset not in self.done
        assert offset not in self.hands
        self.hands[offset] = lane

    def end(self, choice: int, how: str) -> None:
        if not self.hands:
            return
        offset = sorted(self.hands)[choice % len(self.hands)]
        lane = self.hands.pop(offset)
        self.spread.in_hand -= 1
        if how == "fault":
            lane.passed_fault(now=0.0, random=lambda: 0.5)
        else:
            lane.done(lane.next(), how == "done")
            self.done.add(offset)

    def claim(self, how: str) -> None:
        if not self.spread.has_news:
            return
        taking = self.spread.taking()
        assert set(range(taking.end)) <= self.done
        assert taking.end >= taking.claim.end
        if how == "done":
            self.spread.claimed()
        else:
            self.spread.passed_fault(now=0.0, random=lambda: 0.5)
            self.spread.rewind(taking.claim.after(taking.end) if how == "repeat" else taking.claim)


@given(
    st.lists(st.sampled_from(["a", "b", "c", None, "ignored"]), max_size=30),
    st.lists(
        st.tuples(
            st.sampled_from(["begin", "end", "claim"]), st.integers(0, 50), st.sampled_from(["done", "repeat", "fault"])
        ),
        max_size=150,
    ),
)
def test_whatever_ends_in_which_order_no_key_is_disordered_and_no_claim_passes_what_is_not_done(
    keys: list[str | None], steps: list[tuple[str, int, str]]
):
    """INVARIANT I5, I4: a claim that passed a message in hand would skip it after a crash."""
    followed = Followed(keys)
    for what, choice, how in steps:
        if what == "begin":
            followed.begin()
        elif what == "end":
            followed.end(choice, how)
        else:
            followed.claim(how)
    while len(followed.done) < len(keys):
        followed.begin()
        followed.end(0, "done")
    followed.claim("done")
    assert followed.spread.claim.end == len(keys)
    assert followed.spread.rests
