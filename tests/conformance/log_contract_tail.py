"""The suite's part on `tail`: reading a topic without being anybody."""

import time
from collections.abc import Generator
from itertools import takewhile
from typing import cast

import pytest
from log_contract import OPENED, WAIT_SECONDS, Member, Road, numbered, numbers

from relay.logs.contract import Log, Record


def tail(log: Log, topic: str, *, from_start: bool, follow: bool) -> Generator[Record | None, None, None]:
    """Open a tail that is closed when the test ends."""
    records = cast("Generator[Record | None, None, None]", log.tail(topic, from_start=from_start, follow=follow))
    OPENED.append(records)
    return records


def following(records: Generator[Record | None, None, None], count: int) -> list[Record]:
    """Take so many records of a tail that follows; then it has nothing new."""
    found: list[Record] = []
    deadline = time.monotonic() + WAIT_SECONDS
    while len(found) < count:
        assert time.monotonic() < deadline, f"{len(found)} of {count} records"
        record = next(records)
        found += [record] if record else []
    assert next(records) is None
    return found


class TailContract:
    """What holds for a tail."""

    @pytest.fixture
    def log(self, road: Road):
        log = road.open()
        yield log
        log.close()

    def test_once_it_gives_what_the_log_held_at_the_call(self, road: Road, log: Log):
        road.put([*numbered(5), *numbered(3, topic="payments")])
        records = tail(log, "orders", from_start=True, follow=False)
        road.put(numbered(5, begin=5))
        assert numbers([record for record in records if record]) == [0, 1, 2, 3, 4]

    def test_once_over_many_records_it_keeps_the_order_of_each_partition(self, road: Road, log: Log):
        road.put([*numbered(700), *numbered(700, key=None)])
        records = [record for record in tail(log, "orders", from_start=True, follow=False) if record]
        assert numbers([record for record in records if record.message.key]) == list(range(700))
        assert len(records) == 1400
        for partition, held in log.partitions(["orders"]).items():
            offsets = [record.offset for record in records if record.partition == partition]
            assert offsets == sorted(set(offsets))
            assert len(offsets) == held.end or (not road.dense and len(offsets) < held.end)

    def test_following_from_the_start_it_goes_on_with_what_is_new(self, road: Road, log: Log):
        road.put(numbered(3))
        records = tail(log, "orders", from_start=True, follow=True)
        assert numbers(following(records, 3)) == [0, 1, 2]
        road.put(numbered(2, begin=3))
        assert numbers(following(records, 2)) == [3, 4]

    def test_following_from_the_end_it_gives_only_what_is_new(self, road: Road, log: Log):
        road.put(numbered(3))
        records = tail(log, "orders", from_start=False, follow=True)
        road.put(numbered(2, begin=3))
        assert numbers(following(records, 2)) == [3, 4]

    def test_a_topic_that_does_not_exist_has_no_records_until_it_is_made(self, road: Road, log: Log):
        assert list(takewhile(bool, tail(log, "later", from_start=True, follow=False))) == []
        records = tail(log, "later", from_start=False, follow=True)
        assert next(records) is None
        road.put(numbered(3, topic="later"))
        assert numbers(following(records, 3)) == [0, 1, 2]

    def test_it_joins_no_group_and_is_in_nobodys_way(self, road: Road, log: Log):
        road.put(numbered(3))
        following(tail(log, "orders", from_start=True, follow=True), 3)
        member = Member(log, "orders").read(3)
        assert member.consumer.assignment() == set(log.partitions(["orders"])), "nobody shares them with a tail"
        assert log.committed("g").keys() <= set(log.partitions(["orders"]))
