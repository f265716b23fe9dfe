import threading
import uuid
from collections.abc import Sequence

import pytest
from log_contract import PARTITIONS, LogContract, Member, Road, numbered, numbers
from log_contract_forget import ForgetContract
from log_contract_groups import GroupContract
from log_contract_producer import IDENTITY, ProducerContract, entries
from log_contract_tail import TailContract

from outbox.message import Message, Offset
from relay.logs import Log, open_log, partition_of


class MemoryRoad:
    dense = True

    def __init__(self) -> None:
        self.url = f"memory://{uuid.uuid4()}?partitions={PARTITIONS}"
        self.producer = self.open().producer(IDENTITY)
        self.position = 1

    def open(self) -> Log:
        return open_log(self.url)

    def put(self, messages: Sequence[Message]) -> None:
        self.producer.produce(self.position, entries(messages, self.position))
        self.position += len(messages)
        settlement = self.producer.settle(0)
        assert settlement and not settlement.failure


@pytest.fixture
def road() -> Road:
    return MemoryRoad()


class TestLog(LogContract):
    pass


class TestGroups(GroupContract):
    pass


class TestForget(ForgetContract):
    pass


class TestTail(TailContract):
    pass


class TestProducer(ProducerContract):
    pass


def test_the_partition_is_that_of_the_rule(road: Road):
    road.put([*numbered(50, key=None), *[message for key in "abcdef" for message in numbered(1, key=key)]])
    for record in Member(road.open(), "orders").read(56).records():
        assert record.partition.number == partition_of(record.message.key, record.message.id, PARTITIONS)


def test_a_poll_is_woken_by_records_and_by_a_member_that_leaves(road: Road):
    road.put(numbered(1))
    first, second = Member(road.open(), "orders").read(1), Member(road.open(), "orders", group="g")
    for member, event in ((first, lambda: road.put(numbered(1, begin=1))), (second, first.consumer.close)):
        polls = threading.Event()
        polled = threading.Thread(target=lambda member=member, polls=polls: (polls.set(), member.poll(600)))
        polled.start()
        polls.wait()
        event()
        polled.join(30)
        assert not polled.is_alive()
    assert numbers(first.records()) == numbers(second.records()) == [0, 1]


def test_writers_and_readers_in_many_threads_lose_nothing(road: Road):
    log = road.open()
    writers = [threading.Thread(target=put_hundreds, args=(another(road), key)) for key in "abcd"]
    members = [Member(road.open(), "orders", group=f"g{n}") for n in range(3)]
    readers = [threading.Thread(target=lambda member=member: member.read(800)) for member in members]
    for thread in (*readers, *writers):
        thread.start()
    for thread in (*readers, *writers):
        thread.join(60)
        assert not thread.is_alive()
    for member in members:
        for key in "abcd":
            assert numbers([one for one in member.records() if one.message.key == key]) == list(range(200))
    assert sum(held.end for held in log.partitions(["orders"]).values()) == 800


def put_hundreds(road: MemoryRoad, key: str) -> None:
    for begin in range(0, 200, 20):
        road.put(numbered(20, key=key, begin=begin))


def another(road: Road) -> MemoryRoad:
    """A second relay's way into the same log."""
    assert isinstance(road, MemoryRoad)
    one = MemoryRoad()
    one.url = road.url
    one.producer = one.open().producer(IDENTITY)
    return one


def test_a_consumer_that_is_closed_says_so(road: Road):
    member = Member(road.open(), "orders")
    member.consumer.close()
    with pytest.raises(RuntimeError, match="closed"):
        member.poll()
    member.consumer.commit({})
    assert road.open().committed("g") == {}


def test_a_log_lives_on_when_everybody_has_closed_it(road: Road):
    road.put(numbered(2))
    log = road.open()
    member = Member(log, "orders").read(2)
    member.consumer.commit({batch.partition: Offset(batch.end) for batch in member.batches})
    member.consumer.close()
    log.close()
    assert sum(road.open().committed("g").values()) == 2
    assert numbers(Member(road.open(), "orders").read(2).records()) == [0, 1]
