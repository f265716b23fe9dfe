"""A log on Kafka, as relay and inbox open it."""

import logging
from collections.abc import Iterator, Mapping, Sequence

from outbox.message import Offset
from relay.logs.contract import (
    Bounds,
    Capabilities,
    Consumer,
    Listener,
    LogOptions,
    Partition,
    Producer,
    ProducerIdentity,
    Record,
)
from relay.logs.kafka.address import Address, parse_address
from relay.logs.kafka.cluster import Cluster
from relay.logs.kafka.consumer import KafkaConsumer
from relay.logs.kafka.groups import committed, forget
from relay.logs.kafka.producer import open_producer
from relay.logs.kafka.tail import tail
from relay.logs.kafka.topics import Topics

logger = logging.getLogger("relay")


def open_kafka(url: str, options: LogOptions) -> "KafkaLog":  # noqa: ARG001 - the shape of every adapter's door
    """Open the log of a Kafka URL; see `Log`. The brokers need not be reachable.

    Raises:
        ConfigurationError: the URL cannot be read, or librdkafka does not know a setting in it.
    """
    return KafkaLog(parse_address(url))


class KafkaLog:
    """A Kafka cluster; each topic of ours is a topic there.

    Attributes:
        capabilities: what it promises. Records of an older epoch are refused where exactly-once is asked for; at
            least once, what an old relay still sends are repeats.
    """

    capabilities = Capabilities(exactly_once=True)

    def __init__(self, address: Address) -> None:
        self.address = address
        self._cluster = Cluster(address)
        self._topics = Topics(self._cluster, address)
        self._identity: str | None = None

    def check(self) -> None:
        """See that a broker answers, and that it is the cluster that it was."""
        self._identity = self._cluster.identity()

    def identity(self) -> str:
        """Return the cluster's id."""
        return self._identity or self._cluster.identity()

    def producer(self, identity: ProducerIdentity) -> Producer:
        """Open a relay's hand; for exactly-once it ends what older epochs have begun, and fences them."""
        return open_producer(self.address, self._topics, identity)

    def consumer(self, group: str, topics: Sequence[str], listener: Listener) -> Consumer:
        """Open a group member's hand."""
        return KafkaConsumer(self.address, self._cluster, group, topics, listener)

    def committed(self, group: str) -> Mapping[Partition, Offset]:
        """Return the offsets that the group has reported."""
        return committed(self._cluster, group)

    def forget(self, group: str) -> bool:
        """Let go of a group; see `Log.forget`.

        Raises:
            Permanent: it has a member.
        """
        return forget(self._cluster, group)

    def partitions(self, topics: Sequence[str]) -> Mapping[Partition, Bounds]:
        """Return the partitions of those of the topics that exist, and what each holds."""
        found = self._cluster.topics(topics)
        return self._cluster.bounds(part for topic in found.values() for part in topic.parts())

    def tail(self, topic: str, *, from_start: bool, follow: bool) -> Iterator[Record | None]:
        """Yield a topic's committed records; see `Log.tail`."""
        return tail(self.address, self._cluster, topic, from_start=from_start, follow=follow)

    def close(self) -> None:
        """Nothing is held that does not end with this object."""
