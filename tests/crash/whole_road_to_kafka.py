"""The whole road by way of Kafka: writers, relays, brokers, members of a group, and what they do."""

from pathlib import Path

import billing
from acceptance.commands import Ended, User
from kafka_consumers import KafkaConsumers
from kafka_topics import PARTITIONS, Topics
from road_to_kafka import KafkaRoad
from writers import write_without_keys

from tests.databases import rows


class Whole:
    """The whole road, from writers to effects, with topics of its own.

    Args:
        database: the outbox's and the handlers'.
        folder: for what the processes say.
        url: of the brokers.
        delivery: the relays' guarantee.
        inbox: which one of `kafka_billing`.
        seed: of everything random.
        replication: how many brokers have each partition.
        lease: the relays' lease in seconds.

    Attributes:
        road: from the outbox to Kafka.
        consumers: from Kafka to the effects.
    """

    def __init__(
        self,
        database: str,
        folder: Path,
        url: str,
        delivery: str,
        inbox: str,
        *,
        seed: int = 1,
        replication: int = 1,
        lease: float = 1.0,
    ) -> None:
        rows(database, billing.SCHEMA)
        topics = Topics(f"{url}?log_level=0").make(replication)
        self.road = KafkaRoad(database, folder, url, topics, delivery, seed=seed, lease=lease)
        self.consumers = KafkaConsumers(database, folder, url, topics, inbox=inbox, seed=seed)
        self._user = User(folder, database)
        self._log = url

    def words(self) -> str:
        return f"{self.consumers.words()}\n{self.road.words()}"

    def caught_up(self) -> None:
        """Wait until all that was committed is in Kafka, and all of that is handled and reported (I8)."""
        self.road.drained()
        self.consumers.caught_up()

    def inbox(self, command: str, *arguments: str) -> Ended:
        """Run another command of `inbox` than `run`."""
        return self._user.run("inbox", command, *arguments, "--database", self.road.database, "--log", self._log)

    def lag(self) -> dict[str, dict[str, int]]:
        """Return the lag that `inbox status` says."""
        (group,) = self.inbox("status", "--json").objects()
        assert group["group"] == self.consumers.group
        lag: dict[str, dict[str, int]] = group["lag_messages"]
        return lag

    def no_lag(self) -> dict[str, dict[str, int]]:
        return {name: dict.fromkeys(map(str, range(PARTITIONS)), 0) for name in self.road.topics.names}

    def write(self, count: int) -> None:
        """Write so many messages without keys into every topic."""
        for topic in self.road.topics.names:
            write_without_keys(self.road.database, topic, count)

    def relay_once(self) -> None:
        assert self.road.ended(self.road.start_relay(once=True)) == 0, self.words()

    def close(self) -> None:
        self.consumers.end()
        self.road.close()
