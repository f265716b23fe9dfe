"""I1 to I3, I5, I6 and I8 on a real Kafka, under each delivery, with relays killed and stopped.

Every run is bounded; OUTBOX_TEST_CHAOS_SECONDS or OUTBOX_TEST_CHAOS_KILLS makes the one with random kills longer, with
15 to 30 kills a minute.
"""

import json
import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
import writers as workload
from kafka_topics import Topics
from processes import relay_status
from road import Watch
from road_to_kafka import ONCE_A_LEASE, KafkaRoad, moments, only_repeats

from relay.failpoints import Failpoint
from tests.databases import wait_until

CHAOS_SECONDS = float(os.environ.get("OUTBOX_TEST_CHAOS_SECONDS", "0"))
SEED = int(os.environ.get("OUTBOX_TEST_SEED", "1"))
CHAOS_KILLS = int(os.environ.get("OUTBOX_TEST_CHAOS_KILLS", "0"))
LEAST_KILLS = {"exactly-once": max(CHAOS_KILLS, 15), "at-least-once": max(CHAOS_KILLS, 10)}
LONGEST_SECONDS = 300 + max(CHAOS_SECONDS, 10 * CHAOS_KILLS)

Roads = Callable[[str], KafkaRoad]


@pytest.fixture
def roads(database: str, kafka_url: str, tmp_path: Path) -> Iterator[Roads]:
    """Makes the test's road, for a delivery."""
    made: list[KafkaRoad] = []

    def make(delivery: str) -> KafkaRoad:
        made.append(KafkaRoad(database, tmp_path, kafka_url, Topics(kafka_url).make(), delivery, seed=SEED))
        return made[-1]

    yield make
    for road in made:
        road.close()


def killed_again(road: KafkaRoad, point: Failpoint) -> None:
    """Kill two relays at one moment, the second while it takes up what the first has left."""
    road.killed_at(f"{point}:{1 if point in ONCE_A_LEASE else 3}")
    road.killed_at(f"{point}:1")


@pytest.mark.parametrize("point", moments("exactly-once"))
def test_a_relay_killed_at_each_moment_leaves_nothing_out_and_sends_nothing_twice(roads: Roads, point: Failpoint):
    """INVARIANT I1, I3: exactly once, wherever a relay dies, each message is read once, in its key's commit order.

    A number that did not go in the chunk's own transaction, or that nobody compared after a crash, would double what
    was produced; a chunk that no step announced would be formed in another way, and then half of it is there twice.
    """
    road = roads("exactly-once")
    writers = road.writers(90, seed=SEED).start()
    killed_again(road, point)
    road.start_relay()
    road.moves_on()
    writers.stop()
    report = road.report()
    assert report.committed > 100
    assert not report.wrong(), f"{report}\n{road.words()}"


@pytest.mark.parametrize("point", moments("at-least-once"))
def test_a_relay_killed_at_each_moment_repeats_at_most(roads: Roads, point: Failpoint):
    """INVARIANT I1, I3: at least once, nothing is left out, and what comes again comes behind its first appearance.

    A step that were saved ahead of the acknowledgements would lose. What was acknowledged and not saved is repeated: a
    test that sees no repeats there sees nothing.
    """
    road = roads("at-least-once")
    writers = road.writers(90, seed=SEED).start()
    killed_again(road, point)
    road.start_relay()
    road.moves_on()
    writers.stop()
    report = road.report()
    assert report.committed > 100
    assert only_repeats(report), f"{report}\n{road.words()}"
    assert report.doubled or point is not Failpoint.PRODUCED


@pytest.mark.parametrize("point", moments("at-most-once"))
def test_a_relay_killed_at_each_moment_loses_at_most(roads: Roads, point: Failpoint):
    """INVARIANT I2: at most once, a relay that dies loses what was on its way, and sends nothing twice.

    It may lose the chunk that its newest step had passed and the brokers had not taken: one a kill, and no message
    that comes behind it. I1 is not promised, nor I3 when a relay outlives its lease. A step saved behind its chunk, or
    a client that tried again, would double. `relay status` counts what is lost.
    """
    road = roads("at-most-once")
    writers = road.writers(90, seed=SEED).start()
    killed_again(road, point)
    writers.stop()
    assert road.ended(road.start_relay(once=True)) == 0, road.words()
    report = road.so_far()
    assert report.arrived > 0
    assert not report.wrong().keys() - {"lost"}, f"{report}\n{road.words()}"
    assert report.lost or point is not Failpoint.ADVANCED
    assert not report.lost or point is not Failpoint.TAKEN
    counted = relay_status(road.database)[0]["maybe_lost"]
    assert counted >= len(report.lost), "every one that is lost is counted"
    assert not counted or point is not Failpoint.TAKEN


@pytest.mark.timeout(LONGEST_SECONDS)
@pytest.mark.parametrize("delivery", LEAST_KILLS)
def test_relays_killed_all_the_while(roads: Roads, delivery: str, request: pytest.FixtureRequest):
    """INVARIANT I1, I2, I3, I5: relays die under load, at failpoints and whenever it may be, and others take over.

    Exactly once everything is read once. At least once the same run has to show repeats, or it could not show that
    exactly-once has none; a repeat never makes a first appearance come out of order.
    """
    road = roads(delivery)
    writers = road.writers(LONGEST_SECONDS, seed=SEED + 1).start()
    road.leave_a_repeat()
    road.start_doomed_relay()
    road.start_doomed_relay()
    until = time.monotonic() + CHAOS_SECONDS
    with Watch(road) as watch:
        while time.monotonic() < until or road.killed < LEAST_KILLS[delivery]:
            road.kill_holder()
        road.start_relay()
        writers.stop()
        report = road.report()
    request.node.user_properties.append(("run", f"{road.killed} kills, {report}"))
    assert watch.regressed == []
    assert report.committed > 1_000
    assert only_repeats(report), f"{report}\n{road.words()}"
    assert bool(report.doubled) == (delivery == "at-least-once"), f"{report}\n{road.words()}"


@pytest.mark.parametrize("delivery", ["exactly-once", "at-least-once"])
def test_of_two_relays_one_that_sleeps_through_its_lease_is_fenced(roads: Roads, delivery: str):
    """INVARIANT I6: a relay that is stopped in the middle of its work and wakes when another has taken over stands by.

    Exactly once the brokers refuse what it had under way, since its successor's producer has fenced it. At least once
    they take it, and it repeats what the successor has sent; a step of its own would lose.
    """
    road = roads(delivery)
    road.start_relay()
    road.start_relay()
    writers = road.writers(120, seed=SEED + 2).start()
    for _ in range(4):
        wait_until(lambda: road.holder() is not None, "no relay took the lease")
        road.moves_on()
        holder, epoch = road.holder(), road.newest()[0]
        if holder is None:
            continue
        holder.stop()
        wait_until(lambda epoch=epoch: road.newest()[0] > epoch, f"nobody took over\n{road.words()}")
        road.moves_on()
        holder.resume()
        road.moves_on()
        assert holder.is_running(), road.words()
    writers.stop()
    report = road.report()
    assert road.newest()[0] > 4
    assert only_repeats(report), f"{report}\n{road.words()}"
    assert not report.doubled or delivery == "at-least-once", f"{report}\n{road.words()}"


@pytest.mark.parametrize(
    ("point", "between"),
    [
        (Failpoint.BEGUN, "at-least-once"),
        (Failpoint.PRODUCED, "at-least-once"),
        (Failpoint.SENT, "at-most-once"),
    ],
)
def test_another_delivery_settles_first_what_is_open(roads: Roads, point: Failpoint, between: str):
    """INVARIANT I1: exactly-once dies with a chunk open, another delivery goes on, then exactly-once again.

    One that began at the checkpoint would send the open chunk again, or leave it out. The log's number stays
    as it is meanwhile, and the next exactly-once has to find it where it left it.
    """
    road = roads("exactly-once")
    writers = road.writers(120, seed=SEED + 3).start()
    road.killed_at(f"{point}:2")
    assert road.is_open()
    relay = road.start_relay(delivery=between)
    road.moves_on()
    road.moves_on()
    relay.terminate()
    assert road.ended(relay) == 0, road.words()
    assert not road.is_open()
    road.start_relay()
    road.moves_on()
    writers.stop()
    report = road.report()
    assert not report.wrong(), f"{report}\n{road.words()}"


def write_one_too_large(road: KafkaRoad, key: str = "key-03") -> None:
    """Commit a message that no compression makes small, while others write behind it."""
    filling = random.Random(SEED).randbytes(60_000).hex()
    topic = workload.topic_of(key, road.topics.suffix)
    with psycopg.connect(road.database) as connection:
        found = connection.execute("update counters set version = version + 1 where key = %s returning version", [key])
        (version,) = found.fetchone() or (0,)
        connection.execute("insert into done values (99, 1, %s, %s, %s)", [topic, key, version])
        payload = json.dumps({"writer": 99, "n": 1, "key": key, "version": version, "filling": filling})
        connection.execute(
            "insert into outbox (topic, key, payload) values (%s, %s, %s)", [topic, key, payload.encode()]
        )


@pytest.mark.parametrize("delivery", ["exactly-once", "at-least-once"])
def test_nothing_overtakes_a_message_that_the_broker_refuses(roads: Roads, kafka_url: str, delivery: str):
    """INVARIANT I3, I7: what stands behind a refused message of its partition is not stored before it.

    With more requests in flight, or a client that goes on behind a failed message, the rest of the chunk is stored
    around it. The relay names the message that is at fault alone, and ends; mended, it goes on with that very one.
    """
    road = roads(delivery)
    road.topics.configure("max.message.bytes", "20000")
    road.log = f"{kafka_url}?compression.type=gzip"  # nobody weighs a message that may become smaller
    writers = road.writers(60, seed=SEED + 4, transactions=100).start()
    wait_until(lambda: road.written() > 100, "some are written")
    write_one_too_large(road)
    writers.finish()
    assert road.ended(road.start_relay()) == 1, road.words()
    assert "was refused by the log" in road.words()
    assert 0 < road.records() < road.written()
    road.topics.configure("max.message.bytes", "1000000")
    road.start_relay()
    report = road.report()
    assert report.committed > 300
    assert only_repeats(report), f"{report}\n{road.words()}"
    assert not report.doubled or delivery == "at-least-once"
