"""The built-in log's own producer, for an outbox in another database: a log that keeps the number of the last chunk."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import count
from typing import Any

import pytest
from databases import connected, install, payloads, rows
from log_contract import PARTITIONS, LogContract, Member, Road, a_message, numbered, numbers
from log_contract_groups import GroupContract
from log_contract_producer import IDENTITY, ProducerContract, entries, next_number, settled

from outbox.errors import Fenced, Retryable, TimedOut
from outbox.journal.lease import KEEP_STEPS
from outbox.message import Epoch, Message
from relay.logs import Log, open_log
from relay.logs.builtin import producer as builtin_producer
from relay.logs.contract import NumberedProducer, Producer, Settlement


class ProducerRoad:
    """Brings messages in as a relay of another database does: by a producer of a newer epoch each time."""

    dense = True

    def __init__(self, database: str) -> None:
        self.database = install(database)
        self._epochs = count(1)
        self._positions = count(1)

    def open(self) -> Log:
        return open_log(f"{self.database}?partitions={PARTITIONS}")

    def put(self, messages: Sequence[Message]) -> None:
        with closing(self.open().producer(replace(IDENTITY, epoch=Epoch(next(self._epochs))))) as producer:
            for begin in range(0, len(messages), 500):
                chunk = entries(messages[begin : begin + 500], begin=next(self._positions) * 1_000_000)
                producer.produce(next_number(producer), chunk)
                assert settled(producer).failure is None


@pytest.fixture
def road(database_url: str) -> Iterator[Road]:
    return ProducerRoad(database_url)


class TestLog(LogContract):
    pass


class TestGroups(GroupContract):
    pass


class TestProducer(ProducerContract):
    pass


@pytest.fixture
def log(road: ProducerRoad) -> Iterator[Log]:
    with closing(road.open()) as log:
        yield log


def opened(log: Log, epoch: int = 1, **more: Any) -> NumberedProducer:
    producer = log.producer(replace(IDENTITY, epoch=Epoch(epoch), **more))
    assert isinstance(producer, NumberedProducer)
    return producer


def produced(producer: Producer, number: int, messages: Sequence[Message]) -> Settlement:
    producer.produce(number, entries(messages, begin=number * 1000))
    return settled(producer)


def test_the_number_goes_on_over_all_epochs(road: ProducerRoad, log: Log):
    with closing(opened(log)) as producer:
        assert producer.number() == 0
        assert produced(producer, 1, numbered(1)) == Settlement(1)
        assert produced(producer, 2, numbered(1)) == Settlement(2)
        assert producer.number() == 2
    with closing(opened(log, epoch=2)) as producer:
        assert producer.number() == 2
        assert produced(producer, 3, numbered(1)) == Settlement(3)


@pytest.mark.parametrize("number", [1, 3])
def test_a_chunk_of_any_number_but_the_next_is_not_taken(road: ProducerRoad, log: Log, number: int):
    with closing(opened(log)) as producer:
        assert produced(producer, 1, numbered(1)) == Settlement(1)
        with pytest.raises(Retryable, match="the log has 1"):
            produced(producer, number, numbered(1, begin=50))
    assert payloads(road.database) == ["0"]


def test_a_producer_of_the_same_epoch_that_was_opened_before_is_fenced(road: ProducerRoad, log: Log):
    """An epoch names a connection: of two with one epoch the later one counts, or a statement in doubt could follow."""
    with closing(opened(log)) as old, closing(opened(log)) as new:
        assert produced(new, 1, numbered(1)) == Settlement(1)
        with pytest.raises(Fenced):
            produced(old, 1, numbered(1, begin=50))
    assert payloads(road.database) == ["0"]


def test_a_chunk_that_waits_too_long_is_not_stored_and_may_come_again(road: ProducerRoad, log: Log):
    """Two services append to one log: one whose lock is held for long costs the other a time-out, and no chunk."""
    seconds = 1.0 if road.database.startswith("postgresql") else 0.4
    lock = "select 1 from log_identity for update" if road.database.startswith("postgresql") else "select 1"
    with closing(opened(log, lease_seconds=seconds)) as producer:
        assert produced(producer, 1, numbered(1)) == Settlement(1)
        with connected(road.database) as other:
            other.execute("begin immediate" if road.database.startswith("sqlite") else "begin")
            other.execute(lock)
            with pytest.raises(TimedOut):
                produced(producer, 2, numbered(3, begin=50))
            other.execute("commit")
        assert producer.number() == 1
        assert produced(producer, 2, numbered(1, begin=1)) == Settlement(2)
    assert payloads(road.database) == ["0", "1"]


def test_old_numbers_are_pruned_and_a_pruned_one_is_no_ground_to_stand_on(
    road: ProducerRoad, log: Log, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(builtin_producer, "PRUNE_STEPS", 60)
    with closing(opened(log)) as old, closing(opened(log)) as producer:
        for number in range(1, 2 * KEEP_STEPS + 2):
            assert produced(producer, number, numbered(1, begin=number)) == Settlement(number)
        steps = [row[0] for row in rows(road.database, "select step from log_chunk order by step")]
        assert steps == list(range(steps[0], steps[-1] + 1))
        assert KEEP_STEPS <= len(steps) <= KEEP_STEPS + 60
        with pytest.raises(Fenced):
            produced(old, 1, numbered(1, begin=9999))
    with closing(opened(log, epoch=2)) as again:
        assert again.number() == 2 * KEEP_STEPS + 1


def test_what_the_log_cannot_store_is_that_messages_fault_and_nothing_of_its_chunk_is_stored(
    road: ProducerRoad, log: Log
):
    odd = a_message(key="a\0b", payload=b"9")
    with closing(opened(log)) as producer:
        failure = produced(producer, 1, [*numbered(2), odd]).failure
        if road.database.startswith("postgresql"):
            assert failure is not None
            assert failure.permanent
            assert failure.entry.message.id == odd.id
            assert "NUL" in failure.reason
            assert produced(producer, 1, numbered(2)) == Settlement(1)
        expected = [0, 1] if failure else [0, 1, 9]
        assert sorted(numbers(Member(log, "orders").read(len(expected)).records())) == expected
