"""A test's own topics on a broker, and what readers see of them: plain consumers, nothing of the product."""

import uuid
from contextlib import closing
from urllib.parse import parse_qsl, urlsplit

from checker import Arrival
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Message, TopicPartition
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, NewTopic, ResourceType
from writers import KEYS, topic_of

from tests.databases import wait_until

PARTITIONS = 3
SECONDS = 30.0


class Topics:
    """The topics of one run, of names that nobody else uses, with a few partitions each.

    Attributes:
        suffix: of their names; see `writers.Writers`.
        names: what they are called.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._settings = {"bootstrap.servers": parts.netloc, **dict(parse_qsl(parts.query)), "log_level": 0}
        self._admin = AdminClient(self._settings)
        self.suffix = f"-{uuid.uuid4().hex[:12]}"
        self.names = sorted({topic_of(key, self.suffix) for key in (None, *KEYS)})

    def make(self, replication: int = 1) -> "Topics":
        new = [NewTopic(name, PARTITIONS, replication) for name in self.names]
        for made in self._admin.create_topics(new, operation_timeout=SECONDS).values():
            made.result(SECONDS)
        return self

    def delete(self) -> None:
        for deleted in self._admin.delete_topics(self.names, operation_timeout=SECONDS).values():
            deleted.result(SECONDS)

    def configure(self, name: str, value: str) -> None:
        """Change a setting of all of them."""
        entry = ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET)
        resources = [ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[entry]) for topic in self.names]
        for done in self._admin.incremental_alter_configs(resources).values():
            done.result(SECONDS)

    def partitions(self) -> list[TopicPartition]:
        return [TopicPartition(name, number, OFFSET_BEGINNING) for name in self.names for number in range(PARTITIONS)]

    def follow(self) -> "Follower":
        """Return a reader that reads along."""
        return Follower(self._consumer(), self.partitions())

    def _consumer(self, isolation: str = "read_committed") -> Consumer:
        settings = {
            "group.id": f"checker-{uuid.uuid4()}",
            "isolation.level": isolation,
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "auto.offset.reset": "error",
            "reconnect.backoff.max.ms": 500,
            "error_cb": lambda _: None,
        }
        return Consumer({**self._settings, **settings})

    def read(self) -> list[Arrival]:
        """Read all that is committed, anew: from the beginning to an end behind which no transaction is open."""
        wait_until(self._is_settled, "an open transaction does not end")
        with closing(self._consumer()) as consumer:
            consumer.assign(self.partitions())
            ended: set[tuple[str | None, int | None]] = set()
            arrivals: list[Arrival] = []

            def is_read() -> bool:
                for message in consumer.consume(1_000, 0.1):
                    error = message.error()
                    if error is None:
                        arrivals.append(arrival_of(message))
                    elif error.code() == KafkaError._PARTITION_EOF:
                        ended.add((message.topic(), message.partition()))
                return len(ended) == len(self.partitions())

            wait_until(is_read, "the topics are read to their ends")
        return sorted(arrivals, key=lambda arrival: arrival[:3])

    def _is_settled(self) -> bool:
        """Return whether readers of committed records come to the very end: an open transaction holds them up."""
        try:
            ends = [self._ends(isolation) for isolation in ("read_committed", "read_uncommitted")]
        except KafkaException:
            return False
        return ends[0] == ends[1]

    def _ends(self, isolation: str) -> list[tuple[int, int]]:
        with closing(self._consumer(isolation)) as consumer:
            return [consumer.get_watermark_offsets(part, timeout=5.0) for part in self.partitions()]


class Follower:
    """Reads committed records as they come; outlives its broker. It may see less than is there, never more."""

    def __init__(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._consumer = consumer
        self._consumer.assign(partitions)
        self.arrivals: list[Arrival] = []
        self.ids: set[str] = set()

    def look(self) -> int:
        """Take what has come; return how many different messages there were so far."""
        while found := self._consumer.consume(1_000, 0.02):
            came = [arrival_of(message) for message in found if message.error() is None]
            self.arrivals += came
            self.ids.update(arrival.id for arrival in came)
            if not came:
                break
        return len(self.ids)

    def close(self) -> None:
        self._consumer.close()


def arrival_of(message: Message) -> Arrival:
    pairs = message.headers() or []
    headers = {name: value.decode() for name, value in pairs}
    assert len(headers) == len(pairs), pairs
    key = message.key()
    return Arrival(
        message.topic(),
        message.partition(),
        message.offset(),
        None if key is None else key.decode(),
        message.value(),
        int(headers["ce_relayepoch"]),
        headers["ce_id"],
        int(headers["ce_sequence"]),
    )
