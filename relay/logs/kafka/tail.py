"""Reading a topic without being anybody: no group is joined, nothing is committed."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

from confluent_kafka import Consumer as Client
from confluent_kafka import KafkaError, TopicPartition
from confluent_kafka import Message as Raw

from outbox.errors import Retryable, Unreachable
from outbox.journal import boot_seconds
from outbox.message import Offset
from relay.logs.contract import Bounds, Partition, Record
from relay.logs.kafka.address import Address
from relay.logs.kafka.asked import Asked, Place
from relay.logs.kafka.client import Faults, made
from relay.logs.kafka.cluster import Cluster, Topic
from relay.logs.kafka.errors import translated
from relay.logs.kafka.membership import DEFAULTS, FETCH_RECORDS, HELD
from relay.logs.kafka.reading import Reading, place_of
from relay.logs.kafka.troubles import judged

WAIT_SECONDS = 0.05
LOOK_SECONDS = 1.0
SILENT_SECONDS = 3.0
"""How long connections that are lost may be so before the tail ends."""
GROUP = "outbox-relay-inbox-tail"
"""A client must name a group. This one is never joined: partitions are chosen by hand."""


def tail(address: Address, cluster: Cluster, topic: str, *, from_start: bool, follow: bool) -> Iterator[Record | None]:
    """Yield a topic's committed records; see `Log.tail`.

    Raises:
        Retryable: no broker answers.
    """
    # The bounds are those of the call, so they are taken here: a generator would take them when it is first asked.
    found = cluster.topics([topic])
    bounds = cluster.bounds(part for one in found.values() for part in one.parts())
    begins = {part: held.first if from_start else held.end for part, held in bounds.items()}
    tailing = _Tail(address, cluster, topic)
    return tailing.follow(begins) if follow else tailing.held(begins, bounds)


class _Tail:
    def __init__(self, address: Address, cluster: Cluster, topic: str) -> None:
        self._address = address
        self._cluster = cluster
        self._topic = topic
        self._reading = Reading()
        self._faults = Faults()
        self._asked: Asked[dict[str, Topic]] | None = None
        self._answered = boot_seconds()

    def held(self, begins: Mapping[Partition, Offset], bounds: Mapping[Partition, Bounds]) -> Iterator[Record | None]:
        """Yield what lies between; it ends early when the topic is gone."""
        with self._opened() as client:
            self._begin(client, {part: begin for part, begin in begins.items() if begin < bounds[part].end})
            while any(self._reading.end_of(place_of(part)) < bounds[part].end for part in self._reading.partitions):
                for record in self._records(client):
                    if record.offset < bounds[record.partition].end:
                        yield record
                topics = self._look()
                if topics is not None:
                    self._end(client, topics)

    def follow(self, begins: Mapping[Partition, Offset]) -> Iterator[Record | None]:
        """Yield what lies behind these offsets, and what comes: of partitions and topics that are made later, too."""
        with self._opened() as client:
            self._begin(client, begins)
            while True:
                anything = False
                for record in self._records(client):
                    anything = True
                    yield record
                if not anything:
                    yield None
                topics = self._look()
                if topics is not None:
                    self._end(client, topics)
                    self._take(client, topics)

    @contextmanager
    def _opened(self) -> Iterator[Client]:
        defaults = {name: value for name, value in DEFAULTS.items() if name not in self._address.settings}
        client = made(Client, self._address, self._faults, {**defaults, **HELD, "group.id": GROUP})
        try:
            yield client
        finally:
            client.close()

    def _begin(self, client: Client, begins: Mapping[Partition, Offset]) -> None:
        parts = [TopicPartition(*place_of(partition), offset) for partition, offset in begins.items()]
        with translated(f"beginning to read topic {self._topic!r}"):
            client.incremental_assign(parts)
        for partition, offset in begins.items():
            self._reading.begin(partition, offset)

    def _records(self, client: Client) -> Iterator[Record]:
        with translated(f"reading topic {self._topic!r}"):
            raws = client.consume(FETCH_RECORDS, 0)
            if not raws:
                first = client.poll(WAIT_SECONDS)
                raws = [] if first is None else [first, *client.consume(FETCH_RECORDS, 0)]
        for raw in self._reading.take(raws):
            self._judge(client, raw)
        while batch := self._reading.next():
            yield from batch.records

    def _judge(self, client: Client, raw: Raw) -> None:
        error = raw.error()
        place: Place = (raw.topic() or "", raw.partition() or 0)
        partition = self._reading.find(place)
        if error is None:
            return
        if error.code() == KafkaError._AUTO_OFFSET_RESET and partition is not None:  # noqa: SLF001 - librdkafka's name
            # Deleted by age meanwhile: it shows what there is.
            held = self._cluster.bounds([partition])[partition]
            self._reading.seek(partition, held.first)
            client.incremental_unassign([TopicPartition(*place)])
            client.incremental_assign([TopicPartition(*place, held.first)])
            return
        trouble = judged(error, f"reading topic {self._topic!r}")
        if trouble is not None:
            raise trouble

    def _look(self) -> dict[str, Topic] | None:
        """Return whether there is a topic, and how many partitions it has, when there is news of it.

        Raises:
            Unreachable: no broker answers.
        """
        now = boot_seconds()
        if self._asked is None and (now - self._answered > LOOK_SECONDS or not self._reading.partitions):
            self._asked = self._cluster.ask_topics([self._topic])
        if self._asked is not None and self._asked.is_answered:
            asked, self._asked = self._asked, None
            with suppress(Retryable):
                topics = asked.answer()
                self._answered = now
                self._faults.forget()
                return topics
        if self._faults.down and now - self._answered > SILENT_SECONDS:
            words = f"; {self._faults.words}" if self._faults.words else ""
            raise Unreachable(f"reading topic {self._topic!r}: no broker answers{words}")
        return None

    def _end(self, client: Client, topics: Mapping[str, Topic]) -> None:
        """Read what is gone no longer."""
        there = {part for topic in topics.values() for part in topic.parts()}
        gone = self._reading.partitions - there
        if gone:
            with translated(f"ending to read topic {self._topic!r}"):
                client.incremental_unassign([TopicPartition(*place_of(partition)) for partition in sorted(gone)])
            self._reading.end(gone)

    def _take(self, client: Client, topics: Mapping[str, Topic]) -> None:
        """Read what is new from its first record on."""
        new = [part for topic in topics.values() for part in topic.parts() if not self._reading.has(part)]
        if new:
            self._begin(client, {part: held.first for part, held in self._cluster.bounds(new).items()})
