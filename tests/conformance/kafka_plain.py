"""Kafka as others see it: topics and records by a plain client, nothing of what is tested."""

import uuid
from typing import NamedTuple

from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, NewTopic, ResourceType

WAIT_SECONDS = 30.0


class Plain(NamedTuple):
    """A record as it lies there."""

    partition: int
    offset: int
    key: str | None
    value: bytes | None
    headers: dict[str, str]


def servers(url: str) -> str:
    return url.removeprefix("kafka://").partition("?")[0]


class Broker:
    """What a test does to a broker, beside the relay."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.settings = {"bootstrap.servers": servers(url)}
        self.admin = AdminClient(self.settings)

    def topic(self, partitions: int = 2, **config: str) -> str:
        """Make a topic of this test's own; settings with _ for the dots."""
        return self.make(f"t{uuid.uuid4().hex[:10]}", partitions, **config)

    def make(self, name: str, partitions: int, **config: str) -> str:
        """Make a topic of this name; settings with _ for the dots."""
        wanted = NewTopic(name, partitions, 1, config={key.replace("_", "."): value for key, value in config.items()})
        self.admin.create_topics([wanted])[name].result(WAIT_SECONDS)
        return name

    def delete(self, topic: str) -> None:
        self.admin.delete_topics([topic])[topic].result(WAIT_SECONDS)

    def set(self, topic: str, **config: str) -> None:
        entries = [
            ConfigEntry(key.replace("_", "."), value, incremental_operation=AlterConfigOpType.SET)
            for key, value in config.items()
        ]
        resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=entries)
        for future in self.admin.incremental_alter_configs([resource]).values():
            future.result(WAIT_SECONDS)

    def records(self, topic: str) -> list[Plain]:
        """Return the committed records of a topic, in the order of each partition."""
        reader = Consumer(
            {
                **self.settings,
                "group.id": f"plain-{uuid.uuid4().hex}",
                "enable.auto.commit": False,
                "isolation.level": "read_committed",
                "auto.offset.reset": "earliest",
                "enable.partition.eof": True,
            }
        )
        try:
            found = reader.list_topics(topic, timeout=WAIT_SECONDS).topics[topic].partitions
            reader.assign([TopicPartition(topic, number, 0) for number in found])
            left, records = set(found), []
            while left:
                message = reader.poll(WAIT_SECONDS)
                assert message is not None, f"{topic} is not read to its end"
                if message.error():
                    left.discard(message.partition())
                else:
                    records.append(_plain(message))
            return sorted(records, key=lambda one: (one.partition, one.offset))
        finally:
            reader.close()

    def values(self, topic: str) -> list[str]:
        return [(one.value or b"").decode() for one in self.records(topic)]

    def by_key(self, topic: str) -> dict[str | None, list[str]]:
        found: dict[str | None, list[str]] = {}
        for one in self.records(topic):
            found.setdefault(one.key, []).append((one.value or b"").decode())
        return found


def _plain(message) -> Plain:
    key = message.key()
    headers = {name: (value or b"").decode() for name, value in message.headers() or ()}
    return Plain(message.partition(), message.offset(), None if key is None else key.decode(), message.value(), headers)


def first_appearances(values: list[str]) -> list[str]:
    return list(dict.fromkeys(values))
