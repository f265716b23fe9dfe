"""The first message of a fresh producer to each partition goes alone, and what is behind it waits until it is durable.

The brokers know a producer's next number in a partition only from what it has stored there: of a fresh producer they
take any. So when its first batch is refused, the second would be taken (tried: with one request in flight, too), and a
message would have overtaken the one that failed. Once a first message is stored, they refuse whatever skips a number.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from relay.logs.kafka.partitioner import Partitioner

AGAIN_SECONDS = 3_600.0
"""The brokers forget a producer that is silent for a day (`producer.id.expiration.ms`)."""


@dataclass(slots=True)
class _Topic:
    """Which partitions of a topic have stored a message, and which have one on its way."""

    partitions: int
    stored: set[int] = field(default_factory=set)
    sent: set[int] = field(default_factory=set)


class Priming:
    """What of one producer is fresh.

    Args:
        partitioner: says where a key goes.
        partitions: how many a topic has.
        confirm: waits until all that was sent is stored; raises when it is not.
    """

    def __init__(self, partitioner: Partitioner, partitions: Callable[[str], int], confirm: Callable[[], None]) -> None:
        self._partitioner = partitioner
        self._partitions = partitions
        self._confirm = confirm
        self._begun: dict[str, _Topic] = {}
        self._done: set[str] = set()
        self._since = time.monotonic()

    def begin(self) -> None:
        """A chunk begins."""
        if time.monotonic() - self._since > AGAIN_SECONDS:
            self._begun.clear()
            self._done.clear()
            self._since = time.monotonic()

    def place(self, name: str, key: str | None) -> int:
        """Return the partition that a message is to go to; -1: any, as librdkafka chooses.

        Waits for what was sent before, where this message would be the second of a partition.
        """
        if name in self._done:
            return -1
        topic = self._begun.get(name) or self._begun.setdefault(name, _Topic(self._partitions(name)))
        partition = self._partitioner(None if key is None else key.encode(), topic.partitions)
        if partition in topic.sent:
            self._confirm()
            self._stored()
        if partition not in topic.stored:
            topic.sent.add(partition)
        return -1 if name in self._done else partition

    def _stored(self) -> None:
        for name, topic in list(self._begun.items()):
            topic.stored |= topic.sent
            topic.sent.clear()
            if len(topic.stored) == topic.partitions:
                self._done.add(name)
                del self._begun[name]
