"""The suite's part on consumer groups: who reads what, how far it has come, and who takes over."""

import time

import pytest
from log_contract import PARTITIONS, WAIT_SECONDS, Member, Road, numbered, numbers

from outbox.errors import Retryable
from outbox.message import Offset
from relay.logs.contract import Log


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
        assert member.consumer.waits_for() is None

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

    def test_a_partition_has_one_reader_and_the_next_member_takes_over_at_once(
        self, road: Road, log: Log, other_log: Log
    ):
        road.put(numbered(4, key=None))
        first = Member(log, "orders").joined()
        second = Member(other_log, "orders")
        second.until(lambda: second.consumer.assignment() is not None, "the second member is settled")
        first.poll()
        mine, yours = first.consumer.assignment() or frozenset(), second.consumer.assignment() or frozenset()
        assert not mine & yours
        if not yours:
            assert second.consumer.waits_for()
            assert second.told.assignments == []
        assert first.consumer.waits_for() is None
        first.consumer.close()
        second.joined()
        assert second.consumer.waits_for() is None
        assert sorted(numbers(second.read(4).records())) == [0, 1, 2, 3]

    def test_members_that_stand_by_take_over_one_after_another(self, road: Road, log: Log):
        road.put(numbered(2))
        members = [Member(log, "orders") for _ in range(3)]
        members[0].joined()
        for member in members[1:]:
            member.until(lambda member=member: member.consumer.assignment() is not None, "settled")
        members[1].consumer.close()
        members[0].consumer.close()
        assert numbers(members[2].joined().read(2).records()) == [0, 1]

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

    def test_a_member_that_stands_by_commits_nothing(self, road: Road, log: Log, other_log: Log):
        road.put(numbered(3))
        first = Member(log, "orders").read(3)
        (partition,) = {record.partition for record in first.records()}
        second = Member(other_log, "orders")
        second.until(lambda: second.consumer.assignment() is not None, "the second member is settled")
        if partition in (second.consumer.assignment() or ()):
            pytest.skip("this log shares the partitions")
        second.consumer.commit({partition: Offset(3)})
        second.consumer.close()
        first.consumer.close()
        assert log.committed("g").get(partition, 0) == 0

    def test_seek_and_pause_of_a_partition_that_is_not_assigned_do_nothing(self, road: Road, log: Log, other_log: Log):
        road.put(numbered(2))
        first = Member(log, "orders").read(2)
        (partition,) = {record.partition for record in first.records()}
        second = Member(other_log, "orders")
        second.until(lambda: second.consumer.assignment() is not None, "the second member is settled")
        second.consumer.seek(partition, Offset(1))
        second.consumer.pause(partition)
        second.consumer.resume(partition)
        assert second.poll() is None
        first.consumer.close()
        assert numbers(second.read(2).records()) == [0, 1]
