"""The suite's part on producers, for logs that take chunks of entries."""

import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from itertools import count
from typing import Any, cast

import pytest
from log_contract import WAIT_SECONDS, Member, Road, a_message, numbered, numbers

from outbox.errors import Fenced, Retryable
from outbox.message import Entry, Epoch, Message, Position
from relay.logs.contract import Log, NumberedProducer, Producer, ProducerIdentity, Settlement

IDENTITY = ProducerIdentity("default", uuid.uuid4(), uuid.uuid4(), Epoch(1))
STORED = datetime(2026, 1, 2, 3, 4, 5, 678_000, UTC)
BROKEN_HEADERS: list[Any] = ["text", ["a"], {"a": 1}, {"a": None}, 3]


def entries(messages: Sequence[Message], begin: int = 1) -> list[Entry]:
    return [
        Entry(Position(position), replace(message, sequence=Position(position), time=message.time or STORED))
        for position, message in zip(count(begin), messages, strict=False)
    ]


def settled(producer: Producer) -> Settlement:
    settlement = producer.settle(WAIT_SECONDS)
    assert settlement is not None
    return settlement


def next_number(producer: Producer) -> int:
    """Which number the next chunk has: on from the last one in the log, where the log keeps it."""
    return (producer.number() or 0) + 1 if isinstance(producer, NumberedProducer) else 1


def refused(opened: Callable[[], Producer], messages: Sequence[Message]) -> bool:
    """Whether a producer is fenced: told at its opening, when it produces, or when that is settled."""
    try:
        producer = opened()
        producer.produce(2, entries(messages, begin=2))
        settled(producer)
    except Fenced:
        return True
    return False


class ProducerContract:
    """What holds for a relay's hand."""

    @pytest.fixture
    def log(self, road: Road):
        log = road.open()
        yield log
        log.close()

    def test_chunks_are_settled_in_their_order(self, log: Log):
        producer = log.producer(IDENTITY)
        assert producer.settle(0) is None
        for number in (1, 2, 3):
            producer.produce(number, entries(numbered(2, begin=2 * number), begin=2 * number))
        assert [settled(producer) for _ in range(3)] == [Settlement(1), Settlement(2), Settlement(3)]
        assert producer.settle(0) is None
        assert numbers(Member(log, "orders").read(6).records()) == [2, 3, 4, 5, 6, 7]

    def test_an_empty_chunk_is_settled(self, log: Log):
        producer = log.producer(IDENTITY)
        producer.produce(1, [])
        assert settled(producer) == Settlement(1)

    @pytest.mark.parametrize("headers", BROKEN_HEADERS)
    def test_headers_that_are_no_object_of_texts_are_the_messages_fault(self, log: Log, headers: Any):
        producer = log.producer(IDENTITY)
        chunk = entries(numbered(3))
        broken = Entry(chunk[1].position, replace(chunk[1].message, headers=cast("Any", headers)))
        producer.produce(1, [chunk[0], broken, chunk[2]])
        settlement = settled(producer)
        assert settlement.number == 1
        assert settlement.failure is not None
        assert settlement.failure.permanent
        assert settlement.failure.entry == broken
        assert "headers" in settlement.failure.reason
        stored = 0 if log.capabilities.exactly_once else 1
        assert numbers(Member(log, "orders").read(stored).records()) == [0][:stored], (
            "what came before it is durable (all or nothing, where the number is stored with it), nothing passes it"
        )

    def test_nothing_passes_a_failed_entry_before_its_relay_knows(self, log: Log):
        producer = log.producer(IDENTITY)
        broken = replace(a_message(), headers=cast("Any", ["x"]))
        producer.produce(1, entries([broken]))
        with suppress(Retryable):
            producer.produce(2, entries(numbered(1), begin=2))
            assert settled(producer).failure
            assert settled(producer).failure
        member = Member(log, "orders")
        member.until(lambda: member.consumer.assignment() is not None, "settled")
        assert member.poll() is None
        again = log.producer(replace(IDENTITY, epoch=Epoch(2)))
        again.produce(1, entries(numbered(2)))
        assert settled(again) == Settlement(1)
        assert numbers(member.read(2).records()) == [0, 1]

    def test_a_repeat_has_the_ids_and_sequences_of_the_first(self, log: Log):
        if log.capabilities.exactly_once:
            pytest.skip("this log recognises a repeat")
        chunk = entries(numbered(2))
        for epoch in (1, 2):
            producer = log.producer(replace(IDENTITY, epoch=Epoch(epoch)))
            producer.produce(1, chunk)
            assert settled(producer) == Settlement(1)
        records = Member(log, "orders").read(4).records()
        assert numbers(records) == [0, 1, 0, 1]
        assert [record.message for record in records[:2]] == [record.message for record in records[2:]]
        assert [record.headers["ce_relayepoch"] for record in records] == ["1", "1", "2", "2"]

    def test_an_epoch_that_is_no_longer_the_newest_is_refused(self, log: Log):
        if not log.capabilities.fences:
            pytest.skip("this log does not fence")
        old = log.producer(IDENTITY)
        old.produce(1, entries(numbered(1)))
        assert settled(old) == Settlement(1)
        new = log.producer(replace(IDENTITY, epoch=Epoch(2)))
        following = next_number(new)
        assert refused(lambda: old, numbered(1, begin=90))
        assert refused(lambda: log.producer(IDENTITY), numbered(1, begin=91))
        new.produce(following, entries(numbered(1, begin=1), begin=2))
        assert settled(new) == Settlement(following)
        assert numbers(Member(log, "orders").read(2).records()) == [0, 1]

    def test_a_relay_of_one_name_in_another_outbox_or_registered_anew_fences_nobody(self, log: Log):
        first = log.producer(replace(IDENTITY, epoch=Epoch(5)))
        elsewhere = log.producer(replace(IDENTITY, installation=uuid.uuid4(), incarnation=uuid.uuid4(), epoch=Epoch(1)))
        anew = log.producer(replace(IDENTITY, incarnation=uuid.uuid4(), epoch=Epoch(1)))
        for producer in (first, elsewhere, anew):
            producer.produce(1, entries(numbered(1)))
            assert settled(producer) == Settlement(1)
        assert numbers(Member(log, "orders").read(3).records()) == [0, 0, 0]

    def test_closing_twice_does_no_harm(self, log: Log):
        producer = log.producer(IDENTITY)
        producer.produce(1, entries(numbered(1)))
        assert settled(producer) == Settlement(1)
        producer.close()
        producer.close()
        assert numbers(Member(log, "orders").read(1).records()) == [0]
