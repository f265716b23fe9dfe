"""The suite's part on consumer groups: who reads what, how far it has come, and who takes over.

Members are polled in turn, as their processes would do; what a group comes to, it comes to within a deadline.
"""

import time
from collections.abc import Callable, Mapping, Sequence

import pytest
from log_contract import PARTITIONS, WAIT_SECONDS, Member, Road, Told, numbered, numbers

from outbox.errors import ConfigurationError, Retryable
from outbox.message import Offset
from relay.logs.contract import Log, Partition


class GroupContract:
    """What holds for the members of a group."""

    @pytest.fixture
    def log(self, road: Road):
        log = road.open()
        if not log.capabilities.consumer_groups:
            pytest.skip("this log has no consumer groups")
        yield log
        log.close()

    @pytest.fixture
    def other_log(self, road: Road):
        log = road.open()
        yield log
        log.close()

    def test_nothing_is_assigned_before_the_first_poll(self, road: Road, log: Log):
        road.put(numbered(1))
        member = Member(log, "orders")
        assert member.consumer.assignment() is None
        assert member.told.assignments == []
        assert member.consumer.abandoned() == frozenset()

    def test_a_member_that_states_no_topics_is_refused(self, log: Log):
        with pytest.raises(ConfigurationError, match="'g' states no topics"):
            log.consumer("g", [], Told())

    def test_each_partition_is_given_once_and_read_from_where_the_listener_says(self, road: Road, log: Log):
        road.put(numbered(10))
        (partition,) = [one for one, held in log.partitions(["orders"]).items() if held.end]
        member = Member(log, "orders", begin={partition: 7}).read(3)
        assert numbers(member.records()) == [7, 8, 9]
        assert member.batches[0].begin == 7
        told = [one for assigned in member.told.assignments for one in assigned]
        assert sorted(told) == sorted(log.partitions(["orders"]))
        assert member.consumer.assignment() == frozenset(told)

    def test_a_listener_that_fails_is_asked_again(self, road: Road, log: Log):
        road.put(numbered(2))
        member = Member(log, "orders")
        member.told.fails = [Retryable("the database is away")]
        with pytest.raises(Retryable, match="the database is away"):
            member.joined()
        assert member.consumer.assignment() is None, "an empty one would say that all is somebody else's"
        assert numbers(member.read(2).records()) == [0, 1]

    def test_a_topic_that_is_missing_is_said_and_read_from_its_first_record_when_it_appears(self, road: Road, log: Log):
        road.put(numbered(1))
        member = Member(log, "orders", "later").read(1)
        assert member.consumer.missing() == {"later"}
        road.put(numbered(3, topic="later"))
        assert member.consumer.missing() == {"later"}, "as of the last poll, like the assignment"
        member.read(4).joined(2 * PARTITIONS)
        assert member.consumer.missing() == frozenset()
        assert numbers(member.records()) == [0, 0, 1, 2]
        assert all(one.topic == "orders" for one in member.told.assignments[0])
        assert all(one.topic == "later" for assigned in member.told.assignments[1:] for one in assigned)

    def test_a_member_of_missing_topics_alone_has_a_settled_empty_assignment(self, log: Log):
        member = Member(log, "later", "never")
        member.until(lambda: member.consumer.assignment() is not None, "an assignment")
        assert member.consumer.assignment() == frozenset()
        assert member.consumer.missing() == {"later", "never"}

    def test_groups_are_independent(self, road: Road, log: Log):
        road.put(numbered(5))
        one, two = Member(log, "orders", group="one").read(5), Member(log, "orders", group="two").read(5)
        (partition,) = {record.partition for record in one.records()}
        one.consumer.commit({partition: Offset(5)})
        one.consumer.close()
        assert numbers(two.records()) == [0, 1, 2, 3, 4]
        assert log.committed("one") == {partition: 5}
        assert log.committed("two").get(partition, 0) == 0
        assert log.committed("unheard of") == {}

    def test_members_share_the_partitions_and_each_has_one_owner(self, road: Road, log: Log, other_log: Log):
        road.put(numbered(40, key=None))
        owners = Owners()
        first = owners.member(log, "orders").joined()
        second = owners.member(other_log, "orders")
        shared(first, second)
        assert [len(owners.of(one)) for one in (first, second)] == [PARTITIONS // 2] * 2
        assert first.told.revocations, "given up by the first before the second had them"
        third = owners.member(log, "orders")
        shared(first, second, third)
        assert sorted(len(owners.of(one)) for one in (first, second, third)) == [1, 1, 2]

    def test_partitions_that_stay_with_their_owner_are_not_given_up(self, road: Road, log: Log, other_log: Log):
        road.put(numbered(40, key=None))
        owners = Owners()
        first = owners.member(log, "orders").joined()
        second = owners.member(other_log, "orders")
        shared(first, second)
        told = [partition for revoked in first.told.revocations for partition in revoked]
        assert sorted(told) == sorted(owners.of(second))
        assert len(first.told.assignments) == 1

    def test_what_a_member_gave_up_is_read_on_by_its_new_owner_and_by_nobody_else(
        self, road: Road, log: Log, other_log: Log
    ):
        road.put(numbered(100, key=None))
        owners = Owners()
        first = owners.member(log, "orders").read(100)
        second = owners.member(other_log, "orders")
        second.told.begin = {batch.partition: batch.end for batch in first.batches}
        shared(first, second)
        road.put(numbered(100, key=None, begin=100))
        together([first, second], lambda: len(first.records()) + len(second.records()) >= 200, "the new records")
        assert sorted(numbers(first.records()) + numbers(second.records())) == list(range(200))
        assert {record.partition for record in second.records()} == owners.of(second)

    def test_the_others_take_over_from_a_member_that_leaves(self, road: Road, log: Log, other_log: Log):
        road.put(numbered(40, key=None))
        owners = Owners()
        first, second = owners.member(log, "orders"), owners.member(other_log, "orders")
        shared(first, second)
        kept = owners.of(second)
        owners.close(first)
        second.joined()
        assert second.told.revocations == [], "what stays is not touched"
        assert owners.of(second) > kept
        assert sorted(numbers(second.read(40).records())) == list(range(40))

    def test_a_member_too_many_has_a_settled_empty_assignment_until_another_leaves(self, road: Road, log: Log):
        road.put(numbered(2))
        owners = Owners()
        members = [owners.member(log, "orders") for _ in range(PARTITIONS + 1)]
        shared(*members)
        (idle,) = [member for member in members if not owners.of(member)]
        assert idle.consumer.assignment() == frozenset()
        # It may have had the records before the others came.
        known = len(idle.records())
        for member in members:
            if member is not idle:
                owners.close(member)
        assert numbers(idle.joined().read(known + 2).records()[known:]) == [0, 1]

    def test_nobody_gets_a_topic_that_it_does_not_state(self, road: Road, log: Log, other_log: Log):
        road.put([*numbered(20, key=None), *numbered(20, topic="payments", key=None)])
        owners = Owners()
        old = owners.member(log, "orders")
        new = owners.member(other_log, "orders", "payments")
        shared(old, new, partitions=2 * PARTITIONS)
        assert {partition.topic for partition in owners.of(old)} == {"orders"}
        assert {partition.topic for partition in owners.of(new)} >= {"payments"}
        # A log need not know of more than was reported.
        new.consumer.commit(dict.fromkeys(owners.of(new), Offset(1)))
        owners.close(new)
        together([old], lambda: old.consumer.abandoned() == {"payments"}, "it is said that payments wait")
        old.joined()
        assert {partition.topic for partition in owners.of(old)} == {"orders"}
        another = owners.member(other_log, "payments")
        assert sorted(numbers(another.read(20).records())) == list(range(20))
        together([old], lambda: old.consumer.abandoned() == frozenset(), "payments wait no longer")

    def test_members_of_different_topics_leave_each_other_alone(self, road: Road, log: Log, other_log: Log):
        road.put([*numbered(3), *numbered(3, topic="payments")])
        one, other = Member(log, "orders").joined(), Member(other_log, "payments").joined()
        assert numbers(one.read(3).records()) == numbers(other.read(3).records()) == [0, 1, 2]
        assert one.told.revocations == other.told.revocations == []

    def test_a_topic_that_appears_is_shared_by_all_who_state_it(self, road: Road, log: Log, other_log: Log):
        owners = Owners()
        first, second = owners.member(log, "later"), owners.member(other_log, "later")
        together([first, second], lambda: settled(first) and settled(second), "both are settled")
        road.put(numbered(20, topic="later", key=None))
        shared(first, second)

        def found() -> set[int]:
            # One may have noticed the topic first, and have read what it then gave up.
            return {*numbers(first.records()), *numbers(second.records())}

        together([first, second], lambda: found() == set(range(20)), "its records")

    def test_a_listener_that_fails_while_others_hold_partitions_is_asked_again(
        self, road: Road, log: Log, other_log: Log
    ):
        road.put(numbered(40, key=None))
        owners = Owners()
        first, second = owners.member(log, "orders").joined(), owners.member(other_log, "orders")
        second.told.fails = [Retryable("the database is away")] * 2
        with pytest.raises(Retryable):
            shared(first, second)
        assert second.consumer.assignment() is None
        with pytest.raises(Retryable):
            shared(first, second)
        shared(first, second)
        assert len(owners.of(second)) == PARTITIONS // 2

    def test_a_commit_never_goes_back(self, road: Road, log: Log, other_log: Log):
        road.put(numbered(9))
        member = Member(log, "orders").read(9)
        (partition,) = {record.partition for record in member.records()}
        member.consumer.commit({partition: Offset(6)})
        deadline = time.monotonic() + WAIT_SECONDS
        while other_log.committed("g").get(partition) != 6:
            assert time.monotonic() < deadline
            member.poll(0.05)
        member.consumer.commit({partition: Offset(3)})
        member.consumer.close()
        assert other_log.committed("g") == {partition: 6}
        late = Member(other_log, "orders").joined()
        late.consumer.commit({partition: Offset(2)})
        late.consumer.commit({partition: Offset(2)})
        late.consumer.close()
        assert log.committed("g") == {partition: 6}

    def test_what_was_reported_is_committed_by_closing(self, road: Road, log: Log):
        road.put(numbered(40, key=None))
        member = Member(log, "orders").read(40)
        ends = {batch.partition: batch.end for batch in member.batches}
        member.consumer.commit(ends)
        member.consumer.close()
        assert log.committed("g") == ends

    def test_only_the_owner_of_a_partition_commits_it(self, road: Road, log: Log, other_log: Log):
        road.put(numbered(40, key=None))
        owners = Owners()
        first, second = owners.member(log, "orders"), owners.member(other_log, "orders")
        shared(first, second)
        every = log.partitions(["orders"])
        first.consumer.commit({partition: Offset(1) for partition in every})
        mine = owners.of(first)
        owners.close(first)
        assert log.committed("g") == dict.fromkeys(mine, 1)

    def test_a_commit_after_the_partition_was_given_up_has_no_effect(self, road: Road, log: Log, other_log: Log):
        road.put(numbered(40, key=None))
        owners = Owners()
        first, second = owners.member(log, "orders").joined(), owners.member(other_log, "orders")
        shared(first, second)
        (given_up, *_) = owners.of(second)
        first.consumer.commit({given_up: Offset(5)})
        owners.close(first)
        owners.close(second)
        assert given_up not in log.committed("g")

    def test_what_was_reported_before_a_partition_is_given_up_counts(self, road: Road, log: Log, other_log: Log):
        road.put(numbered(40, key=None))
        owners = Owners()
        first, second = owners.member(log, "orders").read(40), owners.member(other_log, "orders")
        ends = {batch.partition: batch.end for batch in first.batches}
        first.consumer.commit(ends)
        shared(first, second)
        assert log.committed("g").items() >= {(one, ends[one]) for one in owners.of(second)}

    def test_seek_and_pause_of_a_partition_that_is_not_assigned_do_nothing(self, road: Road, log: Log, other_log: Log):
        road.put(numbered(2))
        owners = Owners()
        first, second = owners.member(log, "orders"), owners.member(other_log, "orders")
        shared(first, second)
        (partition,) = [one for one, held in log.partitions(["orders"]).items() if held.end]
        holder, other = (first, second) if partition in owners.of(first) else (second, first)
        other.consumer.seek(partition, Offset(1))
        other.consumer.pause(partition)
        other.consumer.resume(partition)
        assert other.poll() is None
        other.batches.clear()
        owners.close(holder)
        assert numbers(other.read(2).records()) == [0, 1]


class Owners:
    """Whose each partition is, by what the listeners were told: never two members' at a time."""

    def __init__(self) -> None:
        self._owners: dict[Partition, Member] = {}

    def member(self, log: Log, *topics: str, group: str = "g") -> Member:
        member = Member(log, *topics, group=group)
        assigned, revoked = member.told.assigned, member.told.revoked

        def watch_assigned(partitions: Sequence[Partition]) -> Mapping[Partition, Offset]:
            for partition in partitions:
                assert self._owners.get(partition, member) is member, f"{partition} was not given up yet"
            begins = assigned(partitions)
            self._owners |= dict.fromkeys(partitions, member)
            return begins

        def watch_revoked(partitions: Sequence[Partition]) -> None:
            revoked(partitions)
            for partition in partitions:
                self._owners.pop(partition, None)

        member.told.assigned, member.told.revoked = watch_assigned, watch_revoked  # type: ignore[method-assign]
        return member

    def of(self, member: Member) -> frozenset[Partition]:
        found = frozenset(partition for partition, owner in self._owners.items() if owner is member)
        assert found == member.consumer.assignment()
        return found

    def close(self, member: Member) -> None:
        """Leave the group; a member that leaves is not told what it had."""
        member.consumer.close()
        self._owners = {partition: owner for partition, owner in self._owners.items() if owner is not member}


def together(members: Sequence[Member], holds: Callable[[], bool], what: str) -> None:
    """Poll several members in turn until something is so."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not holds():
        assert time.monotonic() < deadline, f"waited {WAIT_SECONDS} s: {what}"
        for member in members:
            member.poll(0.02)


def settled(member: Member) -> bool:
    return member.consumer.assignment() is not None


def shared(*members: Member, partitions: int = PARTITIONS) -> None:
    """Poll until the members have all partitions between them."""

    def is_shared() -> bool:
        counts = [len(member.consumer.assignment() or ()) for member in members]
        return all(map(settled, members)) and sum(counts) == partitions

    together(members, is_shared, f"{partitions} partitions are shared")
