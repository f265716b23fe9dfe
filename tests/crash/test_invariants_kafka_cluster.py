"""I1, I3, I4 and I8 on a cluster of three Kafka brokers, of which one dies after the other, and two at once.

OUTBOX_TEST_LONG runs it for at-least-once, too.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from kafka_cluster import BROKERS, KafkaCluster
from whole_road_to_kafka import Whole

LEASE_SECONDS = 3.0
"""Three brokers and a relay on two cores: within two leases a producer has to be opened."""
SEED = int(os.environ.get("OUTBOX_TEST_SEED", "1"))
DELIVERIES = [("exactly-once", "by_offset"), ("at-least-once", "inbox")][
    : 2 if os.environ.get("OUTBOX_TEST_LONG") else 1
]


@pytest.fixture(scope="module")
def clusters() -> Iterator[list[KafkaCluster]]:
    """The one cluster of these tests, once there is one."""
    started: list[KafkaCluster] = []
    yield started
    for cluster in started:
        cluster.delete()


@pytest.fixture
def cluster(clusters: list[KafkaCluster], kafka_programs: Path) -> KafkaCluster:
    if not clusters:
        clusters.append(KafkaCluster(kafka_programs))
    return clusters[0]


@pytest.mark.timeout(400)
@pytest.mark.parametrize(("delivery", "inbox"), DELIVERIES)
def test_each_of_three_brokers_dies_and_the_others_go_on(
    cluster: KafkaCluster, database: str, tmp_path: Path, delivery: str, inbox: str
):
    """INVARIANT I1, I3, I4, I8: leaders and coordinators move; what was acknowledged stays; all go on by themselves.

    A relay that took "not the leader", "not the coordinator" or "too few in sync" for the end would stop, one that took
    it for a refusal would blame a message; an unanswered commit taken for a failed one would double. One that went on
    asking the controller that is dead would wait for minutes. With two dead nothing can be stored, and everybody waits.
    """
    whole = Whole(
        database, tmp_path, cluster.url(), delivery, inbox, seed=SEED, replication=BROKERS, lease=LEASE_SECONDS
    )
    try:
        road, consumers = whole.road, whole.consumers
        processes = [road.start_relay(), consumers.start(), consumers.start()]
        writers = road.writers(390, seed=SEED, pause_seconds=0.2).start()
        consumers.more()
        for broker in cluster.brokers:
            broker.kill()
            road.moves_on()
            consumers.more()
            broker.start()
        for broker in cluster.brokers[1:]:
            broker.kill()
        said = road.written()
        cluster.start(cluster.brokers)
        road.moves_on()
        consumers.more()
        writers.stop()
        whole.caught_up()
        assert road.written() > said
        assert all(process.is_running() for process in processes), whole.words()
        assert whole.lag() == whole.no_lag()
        report = consumers.report()
        assert report.committed > 300
        assert not report.wrong(), f"{report}\n{whole.words()}"
        arrived = road.report()
        assert arrived.wrong().keys() <= ({"doubled"} if delivery == "at-least-once" else set()), arrived
    finally:
        cluster.start(cluster.brokers)
        whole.close()
