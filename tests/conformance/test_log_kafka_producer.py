"""A relay's hand on Kafka, at least once and exactly once, read by a group member's."""

import uuid
from collections.abc import Sequence
from dataclasses import replace

import pytest
from kafka_road import KafkaRoad, NamedLog, Names
from log_contract import LogContract
from log_contract_producer import ProducerContract, entries

from outbox.message import Entry, Epoch, Message
from relay.logs import Capabilities, Failure, NumberedProducer, Producer, ProducerIdentity, Settlement

WAY_IN = ProducerIdentity("way in", uuid.uuid4(), uuid.uuid4(), Epoch(1))


class ProducingRoad(KafkaRoad):
    """A road into which our own producer brings the messages."""

    def __init__(self, url: str, delivery: str) -> None:
        super().__init__(f"{url}?partitions=4&replication=1")
        self.delivery = delivery
        self.dense = delivery != "exactly-once"
        self._ours: Producer | None = None
        self._chunks = 0

    def open(self, settings: str = "") -> NamedLog:
        return ProducingLog(super().open(settings), self.delivery)

    def put(self, messages: Sequence[Message]) -> None:
        self._ours = self._ours or self.open().producer(WAY_IN)
        self._chunks += 1
        self._ours.produce(self._chunks, entries(messages, self._position + 1))
        self._position += len(messages)
        assert self._ours.settle(30) == Settlement(self._chunks)
        if not self.dense:
            self._made |= {message.topic for message in messages}
            self.until_readable()


class ProducingLog(NamedLog):
    """A log that promises what a producer does that was opened for one kind of delivery."""

    def __init__(self, named: NamedLog, delivery: str) -> None:
        super().__init__(named.log, named.names.prefix)
        self.delivery = delivery
        numbered = delivery == "exactly-once"
        self.capabilities: Capabilities = replace(named.capabilities, exactly_once=numbered, fences=numbered)

    def producer(self, identity: ProducerIdentity) -> Producer:
        # The incarnation of this test alone: the brokers remember its chunks.
        incarnation = uuid.uuid5(identity.incarnation, self.names.prefix)
        opened = self.log.producer(replace(identity, incarnation=incarnation, delivery=self.delivery))
        named = NumberedNamedProducer if isinstance(opened, NumberedProducer) else NamedProducer
        return named(opened, self.names)


class NamedProducer:
    """A producer of plain names."""

    def __init__(self, producer: Producer, names: Names) -> None:
        self.producer = producer
        self.names = names
        self.chunks: dict[int, Sequence[Entry]] = {}

    def produce(self, number: int, chunk: Sequence[Entry]) -> None:
        self.chunks[number] = chunk
        self.producer.produce(number, [self._long(entry) for entry in chunk])

    def _long(self, entry: Entry) -> Entry:
        message = entry.message
        # As the relay fills it in: our plain name is the type of what has none.
        named = replace(message, topic=self.names.long(message.topic), type=message.type or message.topic)
        return replace(entry, message=named)

    def settle(self, timeout_seconds: float) -> Settlement | None:
        settlement = self.producer.settle(timeout_seconds)
        if settlement is None or settlement.failure is None:
            return settlement
        failure = settlement.failure
        (entry,) = [one for one in self.chunks[settlement.number] if one.position == failure.entry.position]
        return Settlement(settlement.number, Failure(entry, failure.reason, failure.permanent))

    def close(self) -> None:
        self.producer.close()


class NumberedNamedProducer(NamedProducer):
    """One that knows its numbers."""

    def number(self) -> int | None:
        assert isinstance(self.producer, NumberedProducer)
        return self.producer.number()

    def keep(self, number: int) -> None:
        assert isinstance(self.producer, NumberedProducer)
        self.producer.keep(number)


@pytest.fixture(params=["at-least-once", "exactly-once"])
def road(request: pytest.FixtureRequest, kafka_url: str) -> ProducingRoad:
    return ProducingRoad(kafka_url, request.param)


class TestLog(LogContract):
    pass


class TestProducer(ProducerContract):
    pass
