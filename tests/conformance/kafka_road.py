"""A broker that many tests share at a time: each sees the topics and groups of its own, under their plain names.

the test says "orders", "g"   ->  the broker has "t3f9a1c.orders", "t3f9a1c.g"
"""

import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TypeVar

from confluent_kafka import IsolationLevel, KafkaError, KafkaException, TopicCollection, TopicPartition
from confluent_kafka import Producer as Client
from confluent_kafka.admin import AdminClient, NewTopic, OffsetSpec
from log_contract import PARTITIONS, WAIT_SECONDS

from outbox.errors import OutboxError
from outbox.message import Epoch, Message, Offset, Position
from relay.logs import Log, open_log
from relay.logs.cloudevents import resolved, wire_headers
from relay.logs.contract import Batch, Bounds, Consumer, Listener, Partition, Producer, ProducerIdentity, Record

T = TypeVar("T")
INSTALLATION = uuid.uuid4()


class KafkaRoad:
    """Topics and groups of one test, on a broker that it shares.

    Args:
        url: of the broker.
        transactional: whether each `put` is a transaction; its mark is a hole in the offsets.
    """

    def __init__(self, url: str, *, transactional: bool = False) -> None:
        self.url = url
        self.dense = not transactional
        self.prefix = f"t{uuid.uuid4().hex[:8]}."
        self.servers = url.removeprefix("kafka://").partition("?")[0]
        self.admin = AdminClient({"bootstrap.servers": self.servers})
        self.transactional = transactional
        self._client: Client | None = None
        self._made: set[str] = set()
        self._position = 0

    def open(self, settings: str = "") -> "NamedLog":
        return NamedLog(open_log(self.url + settings), self.prefix)

    def make(self, *topics: str, partitions: int = PARTITIONS, config: Mapping[str, str] | None = None) -> None:
        wanted = [NewTopic(self.prefix + topic, partitions, 1, config=dict(config or {})) for topic in topics]
        for future in self.admin.create_topics(wanted).values() if wanted else ():
            future.result()
        self._made |= set(topics)

    def delete(self, topic: str) -> None:
        self.admin.delete_topics([self.prefix + topic])[self.prefix + topic].result()
        self._made.discard(topic)

    def put(self, messages: Sequence[Message]) -> None:
        self.make(*sorted({message.topic for message in messages} - self._made))
        with self.producing() as client:
            for message in messages:
                self._position += 1
                sent = replace(resolved(message, INSTALLATION), sequence=Position(self._position))
                headers = [(name, value.encode()) for name, value in wire_headers(sent, Epoch(1)).items()]
                client.produce(self.prefix + sent.topic, sent.payload, sent.key, headers=headers)
                client.poll(0)

    @contextmanager
    def producing(self) -> Iterator[Client]:
        """Produce with a plain client; what was produced is readable afterwards."""
        client = self.client()
        if self.transactional:
            client.begin_transaction()
        yield client
        assert client.flush(30) == 0
        if self.transactional:
            client.commit_transaction(30)
            self.until_readable()

    def until_readable(self) -> None:
        """Wait for the marks of a transaction: they are written after its commit is answered."""
        names = [self.prefix + topic for topic in self._made]
        found = self.admin.describe_topics(TopicCollection(names))
        parts = [
            TopicPartition(name, partition.id)
            for name, topic in found.items()
            for partition in topic.result().partitions
        ]

        def are_readable() -> bool:
            try:
                levels = (IsolationLevel.READ_COMMITTED, IsolationLevel.READ_UNCOMMITTED)
                committed, all_there_is = (self._ends(parts, level) for level in levels)
            except KafkaException as error:
                # Of a topic that was just made.
                if error.args[0].code() != KafkaError.NOT_LEADER_FOR_PARTITION:
                    raise
                return False
            return committed == all_there_is

        until(are_readable, "what was committed is readable")

    def _ends(self, parts: Sequence[TopicPartition], level: IsolationLevel) -> dict[TopicPartition, int]:
        asked = self.admin.list_offsets(dict.fromkeys(parts, OffsetSpec.latest()), isolation_level=level)
        return {part: future.result().offset for part, future in asked.items()}

    def client(self) -> Client:
        """Return the plain client that records are produced with."""
        if self._client is None:
            settings = {
                "bootstrap.servers": self.servers,
                "partitioner": "murmur2_random",
                "sticky.partitioning.linger.ms": 0,
                "enable.idempotence": True,
                "linger.ms": 0,
            }
            if self.transactional:
                settings["transactional.id"] = self.prefix
            self._client = Client(settings)
            if self.transactional:
                self._client.init_transactions(30)
        return self._client


def until(holds: Callable[[], bool], what: str) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not holds():
        assert time.monotonic() < deadline, f"waited {WAIT_SECONDS} s: {what}"


class NamedLog:
    """A log whose topics and groups are known by plain names, and are kept under longer ones."""

    def __init__(self, log: Log, prefix: str) -> None:
        self.log = log
        self.names = Names(prefix)
        self.capabilities = log.capabilities

    def check(self) -> None:
        self.log.check()

    def identity(self) -> str:
        return self.log.identity()

    def producer(self, identity: ProducerIdentity) -> Producer:
        raise AssertionError(f"nothing is produced for {identity.relay!r} here: see `KafkaRoad.put`")

    def consumer(self, group: str, topics: Sequence[str], listener: Listener) -> Consumer:
        with self.names.plain_words():
            long = [self.names.long(topic) for topic in topics]
            opened = self.log.consumer(self.names.long(group), long, NamedListener(listener, self.names))
        return NamedConsumer(opened, self.names)

    def committed(self, group: str) -> Mapping[Partition, Offset]:
        return self.names.keys(self.log.committed(self.names.long(group)))

    def forget(self, group: str) -> bool:
        with self.names.plain_words():
            return self.log.forget(self.names.long(group))

    def partitions(self, topics: Sequence[str]) -> Mapping[Partition, Bounds]:
        return self.names.keys(self.log.partitions([self.names.long(topic) for topic in topics]))

    def tail(self, topic: str, *, from_start: bool, follow: bool) -> Iterator[Record | None]:
        return self._tail(self.log.tail(self.names.long(topic), from_start=from_start, follow=follow))

    def _tail(self, records: Iterator[Record | None]) -> Iterator[Record | None]:
        for record in records:
            yield None if record is None else self.names.record(record)

    def close(self) -> None:
        self.log.close()


class NamedConsumer:
    """A consumer of plain names."""

    def __init__(self, consumer: Consumer, names: "Names") -> None:
        self.consumer = consumer
        self.names = names

    def poll(self, timeout_seconds: float) -> Batch | None:
        with self.names.plain_words():
            batch = self.consumer.poll(timeout_seconds)
        return None if batch is None else self.names.batch(batch)

    def assignment(self) -> frozenset[Partition] | None:
        found = self.consumer.assignment()
        return None if found is None else frozenset(map(self.names.plain_partition, found))

    def missing(self) -> frozenset[str]:
        return frozenset(map(self.names.plain, self.consumer.missing()))

    def abandoned(self) -> frozenset[str]:
        return frozenset(map(self.names.plain, self.consumer.abandoned()))

    def bounds(self, partitions: Sequence[Partition]) -> Mapping[Partition, Bounds]:
        return self.names.keys(self.consumer.bounds(list(map(self.names.long_partition, partitions))))

    def seek(self, partition: Partition, offset: Offset) -> None:
        self.consumer.seek(self.names.long_partition(partition), offset)

    def pause(self, partition: Partition) -> None:
        self.consumer.pause(self.names.long_partition(partition))

    def resume(self, partition: Partition) -> None:
        self.consumer.resume(self.names.long_partition(partition))

    def commit(self, offsets: Mapping[Partition, Offset]) -> None:
        self.consumer.commit({self.names.long_partition(one): offset for one, offset in offsets.items()})

    def close(self) -> None:
        self.consumer.close()


class NamedListener:
    """A listener of plain names, told by a consumer of long ones."""

    def __init__(self, listener: Listener, names: "Names") -> None:
        self.listener = listener
        self.names = names

    def assigned(self, partitions: Sequence[Partition]) -> Mapping[Partition, Offset]:
        begins = self.listener.assigned(list(map(self.names.plain_partition, partitions)))
        return {self.names.long_partition(one): offset for one, offset in begins.items()}

    def revoked(self, partitions: Sequence[Partition]) -> None:
        self.listener.revoked(list(map(self.names.plain_partition, partitions)))


class Names:
    """Plain names and long ones."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix

    def long(self, name: str) -> str:
        return self.prefix + name

    def plain(self, name: str) -> str:
        assert name.startswith(self.prefix)
        return name.removeprefix(self.prefix)

    def long_partition(self, partition: Partition) -> Partition:
        return partition._replace(topic=self.long(partition.topic))

    def plain_partition(self, partition: Partition) -> Partition:
        return partition._replace(topic=self.plain(partition.topic))

    def keys(self, found: Mapping[Partition, T]) -> dict[Partition, T]:
        return {self.plain_partition(one): value for one, value in found.items()}

    def record(self, record: Record) -> Record:
        message = replace(record.message, topic=self.plain(record.message.topic))
        return replace(record, partition=self.plain_partition(record.partition), message=message)

    def batch(self, batch: Batch) -> Batch:
        return replace(
            batch, partition=self.plain_partition(batch.partition), records=list(map(self.record, batch.records))
        )

    @contextmanager
    def plain_words(self) -> Iterator[None]:
        """Have errors say plain names."""
        try:
            yield
        except OutboxError as error:
            raise type(error)(str(error).replace(self.prefix, "")) from error
