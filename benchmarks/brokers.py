"""A Kafka broker of our own to measure on: a topic that is empty, and what came of it."""

import os
import time
from pathlib import Path
from typing import Any, Self

from confluent_kafka import Consumer, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from kafka_server import KafkaServer
from local_kafka import RELEASE, programs_of_kafka

from benchmarks.ground import TOPIC

PARTITIONS = 8
AGAIN_SECONDS = 0.05
JAVA_OPTIONS = (
    "-Xms1g",
    "-Xmx1g",
    "-XX:+UseG1GC",
    "-XX:MaxGCPauseMillis=20",
    "-XX:InitiatingHeapOccupancyPercent=35",
    "-XX:+ExplicitGCInvokesConcurrent",
)
"""Those of Kafka's own start script. The tests' broker does without the full compiler: it is to start fast."""
GONE_SECONDS = 30.0
SILENT_SECONDS = 30.0
AT_ONCE, AT_ONCE_SECONDS = 10_000, 0.2
QUIET = 2
"""Of librdkafka's own words only those of what ends it."""
FIRST = -2
"""The offset of what a partition begins with, as the protocol has it."""


class Broker:
    """One broker for the whole run, with Kafka's own settings but for those of a single broker.

    Raises:
        Missing: Kafka's programs are not here and cannot be fetched.
    """

    def __init__(self) -> None:
        self._server = KafkaServer(programs=programs_of_kafka(), java_options=JAVA_OPTIONS)

    def __enter__(self) -> Self:
        try:
            self._server.start()
        except BaseException:
            self._server.delete()
            raise
        self._admin = AdminClient({"bootstrap.servers": self.servers, "log_level": QUIET})
        return self

    def __exit__(self, *_: object) -> None:
        self._server.delete()

    @property
    def servers(self) -> str:
        """Return its host and port."""
        return self.url.partition("//")[2]

    @property
    def url(self) -> str:
        """Return its URL, as --log takes it."""
        return self._server.url()

    @staticmethod
    def version() -> str:
        """Return Kafka's version."""
        return RELEASE

    def cpu_seconds(self) -> float:
        """Return what it has used."""
        pid = int((self._server.folder / "server.pid").read_text())
        behind_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, behind_name[11:13])) / os.sysconf("SC_CLK_TCK")

    def empty_topic(self) -> None:
        """Make the topic, without the records of the sample before."""
        for future in self._admin.delete_topics([TOPIC]).values():
            _unless_refused(future)
        deadline = time.monotonic() + GONE_SECONDS
        # A topic is gone a moment after the broker has said that it will be.
        settings = {"file.delete.delay.ms": "1000"}
        while not all(
            _unless_refused(made)
            for made in self._admin.create_topics([NewTopic(TOPIC, PARTITIONS, 1, config=settings)]).values()
        ):
            if time.monotonic() > deadline:
                raise RuntimeError(f"the topic of the sample before is not gone after {GONE_SECONDS:g} s")
            time.sleep(AGAIN_SECONDS)

    def refuse_wrong_topic(self, entries: int) -> None:
        """See that the topic holds every entry once, each partition in the order of the outbox.

        Raises:
            AssertionError: it does not, so that nothing was measured.
        """
        found = _sequences(self.servers)
        records, messages = sum(map(len, found)), len({one for part in found for one in part})
        in_order = all(part == sorted(part) for part in found)
        if (records, messages, in_order) != (entries, entries, True):
            said = (records, messages, in_order)
            raise AssertionError(f"the topic has {said} (records, messages, in order) of {entries} entries")


def _unless_refused(future: Any) -> bool:
    try:
        future.result(GONE_SECONDS)
    except KafkaException:
        return False
    return True


def _sequences(servers: str) -> list[list[int]]:
    """Return the positions of the committed records, partition by partition."""
    consumer = Consumer(
        {
            "bootstrap.servers": servers,
            "log_level": QUIET,
            "group.id": "measured",
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
        }
    )
    try:
        consumer.assign([TopicPartition(TOPIC, number, FIRST) for number in range(PARTITIONS)])
        found: list[list[int]] = [[] for _ in range(PARTITIONS)]
        ended, silent_until = 0, time.monotonic() + SILENT_SECONDS
        while ended < PARTITIONS:
            messages = consumer.consume(AT_ONCE, AT_ONCE_SECONDS)
            if messages:
                silent_until = time.monotonic() + SILENT_SECONDS
            elif time.monotonic() > silent_until:
                raise RuntimeError(f"the broker has given nothing for {SILENT_SECONDS:g} s")
            for message in messages:
                if message.error():
                    ended += 1
                else:
                    found[message.partition()].append(int(dict(message.headers())["ce_sequence"]))
        return found
    finally:
        consumer.close()
