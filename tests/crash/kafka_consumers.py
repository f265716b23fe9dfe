"""Members of one consumer group on Kafka, as processes; and what a broker and plain SQL say of the group."""

import threading
from collections import defaultdict
from contextlib import closing, suppress
from pathlib import Path
from typing import Self

import kafka_billing
import psycopg
from confluent_kafka import Consumer, IsolationLevel, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, MemberDescription, OffsetSpec
from consumers import Consumers
from kafka_topics import SECONDS, Topics
from processes import ROOT, Process

from tests.databases import rows, wait_until

SESSION_SECONDS = 6.0
"""How long a member may be silent: the least that brokers take."""
INBOX = "from inbox.cli import main; main()"

Place = tuple[str, int]


class KafkaConsumers(Consumers):
    """Members of a group of this run's own.

    Args:
        database: the handlers'.
        folder: for what they say.
        url: of the broker.
        topics: what they handle.
        inbox: which one of `kafka_billing` those have that join.
        seed: of everything random.

    Attributes:
        group: its name.
    """

    def __init__(
        self, database: str, folder: Path, url: str, topics: Topics, *, inbox: str = "inbox", seed: int = 1
    ) -> None:
        super().__init__(database, folder, seed)
        self.group = f"billing{topics.suffix}"
        self._url = url
        self._topics = topics
        self._inbox = inbox
        self._names: dict[int, str] = {}
        self._settings = {
            "bootstrap.servers": url.removeprefix("kafka://"),
            "reconnect.backoff.max.ms": 500,
            "log_level": 0,
            "error_cb": lambda _: None,
        }
        self._admin = AdminClient(self._settings)

    def start(self, inbox: str = "", *, concurrency: int = 1, once: bool = False, said: str = "inboxes.txt") -> Process:
        name = f"m{len(self._names)}"
        settings = f"session.timeout.ms={SESSION_SECONDS * 1000:.0f}&client.id={name}"
        options = ["run", f"kafka_billing:{inbox or self._inbox}", "--group", self.group]
        options += ["--database", self.database, "--log", f"{self._url}?{settings}"]
        options += ["--concurrency", str(concurrency), *(["--once"] if once else [])]
        environment = {
            "PYTHONPATH": f"{ROOT}:{Path(kafka_billing.__file__).parent}",
            kafka_billing.SUFFIX: self._topics.suffix,
        }
        process = Process(self._folder / said, "-c", INBOX, *options, **environment)
        self._names[process.pid] = name
        self.running.append(process)
        return process

    def _start_some(self) -> Process:
        return super()._start_some() if self._inbox == "inbox" else self.start()

    def _has_left(self, process: Process) -> None:
        """Wait for it: while the group divides its partitions, brokers hear of a member's leave only behind that."""
        wait_until(lambda: not self.member(process), f"it has left, or is called gone\n{self.words()}")

    def members(self) -> list[MemberDescription]:
        """Return who is in the group, as the broker says; nobody, when it does not answer."""
        with suppress(KafkaException):
            found = self._admin.describe_consumer_groups([self.group], request_timeout=SECONDS)
            return list(found[self.group].result().members)
        return []

    def member(self, process: Process) -> list[str]:
        name = self._names[process.pid]
        return [member.member_id for member in self.members() if member.client_id == name]

    def committed(self) -> dict[Place, int]:
        """Return the group's offsets, as the broker has them; none, when it does not answer.

        By a client that never joins: librdkafka's admin client can end its process when a coordinator goes away.
        """
        with suppress(KafkaException), closing(Consumer({**self._settings, "group.id": self.group})) as client:
            parts = [TopicPartition(part.topic, part.partition) for part in self._topics.partitions()]
            found = client.committed(parts, SECONDS)
            return {(part.topic, part.partition): part.offset for part in found if part.offset >= 0}
        return {}

    def claims(self) -> dict[Place, int]:
        """Return the ends of the group's newest claims."""
        statement = (
            "select distinct on (topic, partition) topic, partition, end_offset from inbox_offset"
            " where consumer_group = ? and partition >= 0 order by topic, partition, step desc"
        )
        return {(topic, number): end for topic, number, end in rows(self.database, statement, self.group)}

    def ends(self) -> dict[Place, int]:
        """Return where the partitions end, for readers of committed records."""
        parts = [TopicPartition(part.topic, part.partition) for part in self._topics.partitions()]
        asked = self._admin.list_offsets(
            dict.fromkeys(parts, OffsetSpec.latest()), isolation_level=IsolationLevel.READ_COMMITTED
        )
        return {(part.topic, part.partition): found.result(SECONDS).offset for part, found in asked.items()}

    def lag(self) -> int:
        """Return how far the slower of both is behind: the group's claims, and what it has reported to the broker."""
        ends, claims, committed = self.ends(), self.claims(), self.committed()
        return sum(end - min(claims.get(place, 0), committed.get(place, 0)) for place, end in ends.items())

    def counts(self) -> tuple[int, int]:
        """Return how many records were handled, and how many passed by as repeats."""
        statement = (
            "select coalesce(sum(handled), 0), coalesce(sum(duplicates), 0) from (select distinct on (topic, partition)"
            " handled, duplicates from inbox_offset where consumer_group = ? and partition >= 0"
            " order by topic, partition, step desc) as newest"
        )
        ((handled, duplicates),) = rows(self.database, statement, self.group)
        return int(handled), int(duplicates)


class OffsetsWatch:
    """Looks all the while at the group's claims, and at the offsets that the broker has of it.

    Attributes:
        regressed: those that went back.
        looked: how often it has looked.
    """

    def __init__(self, consumers: KafkaConsumers) -> None:
        self.regressed: list[str] = []
        self.looked = 0
        self._consumers = consumers
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(60)

    def _look(self) -> None:
        reached: dict[tuple[str, Place], int] = defaultdict(int)
        while not self._over.wait(0.1):
            with suppress(psycopg.OperationalError):
                for kind, found in (("claim", self._consumers.claims()), ("offset", self._consumers.committed())):
                    for place, offset in found.items():
                        if offset < reached[kind, place]:
                            self.regressed.append(f"{kind} of {place}: {reached[kind, place]} -> {offset}")
                        reached[kind, place] = offset
                self.looked += 1
