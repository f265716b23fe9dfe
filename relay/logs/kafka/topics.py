"""The topics that a relay produces to: there or made, and how much each takes. Known per log, as long as it is open."""

import logging
import time
from collections.abc import Collection
from dataclasses import dataclass, field

from confluent_kafka import KafkaError

from outbox.outbox import MAX_PAYLOAD_BYTES
from relay.logs.kafka.address import Address
from relay.logs.kafka.cluster import Cluster, Topic
from relay.logs.kafka.errors import remedy_of

BATCH_BYTES = 1_000_000
"""What librdkafka puts into one batch by default; a topic that takes less needs smaller ones."""
HEADERS_BYTES = 5_000
"""What a record has beside its payload, mostly less."""
APPEAR_SECONDS = 5.0
LOOK_SECONDS = 0.1

logger = logging.getLogger("relay")


@dataclass(slots=True)
class Topics:
    """What is known of a log's topics.

    Attributes:
        cluster: is asked.
        address: says whether missing topics are made, and with what.
        batch_bytes: the largest batch that every topic known so far takes.
    """

    cluster: Cluster
    address: Address
    batch_bytes: int = BATCH_BYTES
    _limits: dict[str, int | None] = field(default_factory=dict)
    _partitions: dict[str, int] = field(default_factory=dict)
    _warned: set[str] = field(default_factory=set)

    def limit(self, name: str) -> int | None:
        """Return the topic's `max.message.bytes`; None where it is not known."""
        return self._limits.get(name)

    def partitions(self, name: str) -> int:
        """Return how many partitions a topic has that is there."""
        return self._partitions[name]

    def look_again(self) -> None:
        """Ask for each topic again: it may have been deleted, or changed."""
        self._limits.clear()

    def examine(self, names: Collection[str]) -> None:
        """Say at the start what a person should know of these topics, which a relay names in full.

        Raises:
            Retryable: no broker answers.
            Permanent: one may not be looked at, or cannot be made.
        """
        for name in sorted(self.missing(names)):
            if name not in self._warned:
                self._warned.add(name)
                logger.warning("topic %s: %s", name, remedy_of(KafkaError.UNKNOWN_TOPIC_OR_PART))

    def missing(self, names: Collection[str]) -> frozenset[str]:
        """Look at those topics that are not known yet, making them where that is asked; return what is missing.

        A topic that the brokers make by themselves is made by asking for it; that is waited for.

        Raises:
            Retryable: no broker answers.
            Permanent: one may not be looked at, or cannot be made.
        """
        wanted = {name for name in names if name not in self._limits}
        if not wanted:
            return frozenset()
        found = self.cluster.topics(wanted)
        if wanted - found.keys():
            found |= self._made(wanted - found.keys())
        self._learn(found)
        return frozenset(wanted - found.keys())

    def _made(self, names: Collection[str]) -> dict[str, Topic]:
        partitions = self.address.partitions
        if partitions is not None:
            self.cluster.make(names, partitions=partitions, replication=self.address.replication)
            logger.info("made topics %s with %d partitions", ", ".join(sorted(names)), partitions)
        deadline = time.monotonic() + APPEAR_SECONDS
        found: dict[str, Topic] = {}
        while len(found) < len(names) and time.monotonic() < deadline:
            if partitions is None:
                self.cluster.ask_for(set(names) - found.keys())
            found |= self.cluster.topics(set(names) - found.keys())
            if len(found) < len(names):
                time.sleep(LOOK_SECONDS)
        return found

    def _learn(self, found: dict[str, Topic]) -> None:
        configs = self.cluster.configs(found)
        for name, topic in found.items():
            config = configs.get(name, {})
            most = config.get("max.message.bytes")
            self._limits[name] = None if most is None else int(most)
            self._partitions[name] = topic.partitions
            self.batch_bytes = min(self.batch_bytes, int(most or BATCH_BYTES))
            if name not in self._warned:
                self._warned.add(name)
                _warn(topic, int(config.get("min.insync.replicas", topic.replicas)))
                if most is not None and int(most) < MAX_PAYLOAD_BYTES + HEADERS_BYTES:
                    logger.warning(
                        "topic %s takes %s bytes a record (max.message.bytes), and `write` lets payloads of %d pass: a"
                        " larger one stops the relay; raise the one, or lower Outbox(max_payload_bytes=)",
                        name,
                        most,
                        MAX_PAYLOAD_BYTES,
                    )


def _warn(topic: Topic, in_sync: int) -> None:
    """Say what a person should know of how safe a topic is."""
    if topic.replicas == 1:
        logger.warning("topic %s lies on one broker: what it holds is lost with that one's disk", topic.name)
    elif in_sync == 1:
        logger.warning(
            "topic %s has min.insync.replicas=1: a record may be acknowledged by one of its %d brokers alone, and be"
            " lost with it; 2 is usual",
            topic.name,
            topic.replicas,
        )
    elif in_sync > topic.replicas:
        logger.warning(
            "topic %s has min.insync.replicas=%d and lies on %d brokers: mend one of the two, or it may take no record",
            topic.name,
            in_sync,
            topic.replicas,
        )
