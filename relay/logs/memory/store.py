"""What a log in memory holds, and its consumer groups."""

import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import count
from uuid import UUID, uuid4

from outbox.message import Epoch, Offset
from relay.logs.contract import Bounds, Partition, Record


@dataclass(slots=True)
class Group:
    """A consumer group: who is in it, with the topics stated, whose each partition is, and how far it has come."""

    members: dict[str, frozenset[str]] = field(default_factory=dict)
    owners: dict[Partition, str] = field(default_factory=dict)
    committed: dict[Partition, Offset] = field(default_factory=dict)


class Store:
    """What one log holds. Whoever touches it holds `changed`, which is notified of records and of changes in groups."""

    def __init__(self) -> None:
        self.id = uuid4()
        self.changed = threading.Condition()
        self.topics: dict[str, list[Partition]] = {}
        self.records: dict[Partition, list[Record]] = {}
        self.epochs: dict[tuple[UUID, UUID], Epoch] = {}
        self.groups: dict[str, Group] = {}
        self.joined = count(1)

    def make_topic(self, topic: str, partitions: int) -> list[Partition]:
        """Make a topic; return its partitions."""
        incarnation = str(uuid4())
        self.topics[topic] = [Partition(topic, incarnation, number) for number in range(partitions)]
        self.records.update((partition, []) for partition in self.topics[topic])
        return self.topics[topic]

    def partitions(self, topics: Iterable[str]) -> list[Partition]:
        """Return the partitions of those of the topics that exist."""
        return [partition for topic in topics for partition in self.topics.get(topic, ())]

    def bounds(self, partitions: Iterable[Partition]) -> dict[Partition, Bounds]:
        """Return what each of those partitions that exist holds."""
        return {
            partition: Bounds(Offset(0), Offset(len(self.records[partition])))
            for partition in partitions
            if partition in self.records
        }
