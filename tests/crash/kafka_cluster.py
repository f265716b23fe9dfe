"""Three Kafka brokers that are one cluster: leaders and coordinators of one move to another when it dies."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from kafka_server import KafkaServer, new_cluster
from postgresql_server import free_port

BROKERS = 3
IN_SYNC = 2
"""So many have a record when it counts as stored: any one may die, and what was acknowledged is there."""


class KafkaCluster:
    """Brokers and controllers, each of the three both.

    Attributes:
        brokers: all of them.
    """

    def __init__(self, programs: Path) -> None:
        controllers = [free_port() for _ in range(BROKERS)]
        voters = ",".join(f"{number}@127.0.0.1:{port}" for number, port in enumerate(controllers, 1))
        cluster = new_cluster()
        self.brokers = [
            KafkaServer(
                programs=programs,
                controller_port=port,
                cluster=cluster,
                settings={
                    "node.id": str(number),
                    "controller.quorum.voters": voters,
                    "min.insync.replicas": str(IN_SYNC),
                    "offsets.topic.replication.factor": str(BROKERS),
                    "transaction.state.log.replication.factor": str(BROKERS),
                    "transaction.state.log.min.isr": str(IN_SYNC),
                    "replica.lag.time.max.ms": "5000",  # one that was killed and is back is in sync again soon
                },
            )
            for number, port in enumerate(controllers, 1)
        ]
        try:
            self.start(self.brokers)
        except BaseException:
            self.delete()
            raise

    def start(self, brokers: Iterable[KafkaServer]) -> None:
        """Start brokers together: one alone has no majority of controllers, and waits for another."""
        with ThreadPoolExecutor(BROKERS) as together:
            list(together.map(KafkaServer.start, brokers))

    def url(self) -> str:
        """Return the URL of all brokers."""
        return "kafka://" + ",".join(f"127.0.0.1:{broker.port}" for broker in self.brokers)

    def delete(self) -> None:
        """End them, and delete what they have."""
        for broker in self.brokers:
            broker.delete()
