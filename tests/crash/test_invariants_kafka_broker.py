"""I1 to I3, I6 and I8 on a real Kafka that is killed, and cut off from its relays at the requests that matter.

Every run is bounded; OUTBOX_TEST_CHAOS_SECONDS makes the last one longer.
"""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kafka_proxy import KafkaProxy, ProxiedBroker, Request
from kafka_topics import Topics
from processes import relay_status
from proxy import Direction
from road import Watch, under_faults
from road_to_kafka import KafkaRoad, only_repeats

from tests.databases import wait_until

CHAOS_SECONDS = float(os.environ.get("OUTBOX_TEST_CHAOS_SECONDS", "8"))
SEED = int(os.environ.get("OUTBOX_TEST_SEED", "1"))
DELIVERIES = ["exactly-once", "at-least-once"]
AT_OPENING = [Request.INIT_PRODUCER_ID, Request.OFFSET_FETCH]
OF_A_CHUNK = {
    "exactly-once": [
        Request.ADD_PARTITIONS_TO_TXN,
        Request.PRODUCE,
        Request.ADD_OFFSETS_TO_TXN,
        Request.TXN_OFFSET_COMMIT,
        Request.END_TXN,
    ],
    "at-least-once": [Request.PRODUCE],
}

Roads = Callable[..., KafkaRoad]


@pytest.fixture(scope="module")
def brokers() -> Iterator[list[ProxiedBroker]]:
    """The one broker of these tests, once there is one: it outlives them all, and all that they do to it."""
    started: list[ProxiedBroker] = []
    yield started
    for broker in started:
        broker.delete()


@pytest.fixture
def broker(brokers: list[ProxiedBroker], kafka_programs: Path) -> ProxiedBroker:
    if not brokers:
        brokers.append(ProxiedBroker(kafka_programs))
    brokers[0].mend()
    return brokers[0]


@pytest.fixture
def proxy(broker: ProxiedBroker) -> KafkaProxy:
    return broker.proxy


@pytest.fixture
def roads(database: str, broker: ProxiedBroker, tmp_path: Path) -> Iterator[Roads]:
    """Makes the test's road, for a delivery: by way of the proxy, if nothing else is said."""
    made: list[KafkaRoad] = []

    def make(delivery: str, url: str = broker.proxied_url, lease: float = 1.0) -> KafkaRoad:
        made.append(
            KafkaRoad(
                database,
                tmp_path,
                url,
                Topics(broker.url).make(),
                delivery,
                seed=SEED,
                lease=lease,
            )
        )
        return made[-1]

    yield make
    broker.mend()
    for road in made:
        road.close()


def nothing_wrong(road: KafkaRoad) -> None:
    report = road.report()
    assert report.committed > 50
    assert only_repeats(report), f"{report}\n{road.words()}"
    assert not report.doubled or road.delivery == "at-least-once", f"{report}\n{road.words()}"


@pytest.mark.parametrize("delivery", DELIVERIES)
def test_a_broker_killed_in_mid_flow_comes_back_and_the_lag_returns_to_zero(
    roads: Roads, broker: ProxiedBroker, delivery: str
):
    """INVARIANT I1, I8: the relay outlives its broker, and goes on by itself when it is back, with nothing lost.

    A restarting broker answers "coordinator load in progress" and the like; a relay that took that for the end, or an
    unanswered commit for a failed one, would stop or double.
    """
    road = roads(delivery, broker.url)
    relay = road.start_relay()
    writers = road.writers(120, seed=SEED).start()
    for _ in range(2 if delivery == "exactly-once" else 1):
        road.moves_on()
        broker.kill_and_start()
        road.moves_on()
    writers.stop()
    road.drained()
    wait_until(lambda: relay_status(road.database)[0]["lag_messages"] == 0, f"lag of zero\n{road.words()}")
    assert relay.is_running(), road.words()
    nothing_wrong(road)


@pytest.mark.parametrize("delivery", DELIVERIES)
def test_connections_cut_at_each_request_of_a_chunk_lose_and_double_nothing(
    roads: Roads, proxy: KafkaProxy, delivery: str
):
    """INVARIANT I1, I8: the request is lost, or it arrives and its answer is lost: a relay cannot tell which.

    One that took an unanswered commit for one that failed would send the chunk again; one that took an unanswered
    batch for stored would leave it out. The client connects again and goes on: one that forgot its brokers meanwhile
    would hang, until the relay has waited for two leases.
    """
    road = roads(delivery, lease=10.0)
    road.start_relay()
    writers = road.writers(200, seed=SEED + 1).start()
    road.moves_on()
    for cut in (proxy.cut_before, proxy.cut_behind):
        for kind in OF_A_CHUNK[delivery]:
            cut(kind)
            wait_until(lambda: not proxy.is_set(), f"no request {kind.name}\n{road.words()}")
            road.moves_on()
    writers.stop()
    nothing_wrong(road)
    assert "has not answered" not in road.all_words()


def test_connections_cut_as_a_producer_is_opened_cost_another_attempt(roads: Roads, proxy: KafkaProxy):
    """INVARIANT I1, I8: a producer that is fenced or not, an answer that never comes: the relay opens another.

    One that went on without the log's number would not know whether its open chunk is there.
    """
    road = roads("exactly-once")
    road.start_relay()
    writers = road.writers(200, seed=SEED + 1).start()
    for cut in (proxy.cut_before, proxy.cut_behind):
        for kind in AT_OPENING:
            road.moves_on()
            cut(kind)
            road.kill_one()
            wait_until(lambda: not proxy.is_set(), f"no request {kind.name}\n{road.words()}")
    road.moves_on()
    writers.stop()
    nothing_wrong(road)


@pytest.mark.parametrize("delivery", DELIVERIES)
def test_a_chunk_that_was_stored_and_is_given_up_is_sent_again_whole(roads: Roads, proxy: KafkaProxy, delivery: str):
    """INVARIANT I1: the answer to a batch is lost, and no connection is to be had until the chunk is given up.

    A client that aborts and goes on numbers the next records as those of the lost answer: the broker, which has them in
    the transaction that was aborted, takes the same chunk for a repeat, acknowledges it, and stores nothing.
    """
    road = roads(delivery, lease=3.0)
    road.start_relay()
    writers = road.writers(120, seed=SEED + 4).start()
    for _ in range(2):
        road.moves_on()
        proxy.shut_behind(Request.PRODUCE)
        wait_until(lambda: not proxy.is_set(), f"no batch\n{road.words()}")
        step = road.newest()[1]
        # The lease was renewed twice, each time after a third of it; a chunk has half of it to be taken in.
        wait_until(lambda step=step: road.newest()[1] >= step + 2, f"the chunk is given up\n{road.words()}")
        proxy.let_go()
    road.moves_on()
    writers.stop()
    nothing_wrong(road)


@pytest.mark.parametrize("delivery", DELIVERIES)
def test_a_broker_that_hangs_or_refuses_costs_time_and_nothing_else(roads: Roads, proxy: KafkaProxy, delivery: str):
    """INVARIANT I8: while the broker does not answer the relay says so and keeps trying; then it catches up by itself.

    What was under way then may have arrived or not; a relay that did not ask would double or lose.
    """
    road = roads(delivery)
    relay = road.start_relay()
    writers = road.writers(120, seed=SEED + 2).start()
    road.moves_on()
    for fault in (proxy.hang, lambda: (proxy.refuse(), proxy.cut())):
        said = road.words().count("waiting for")
        fault()
        wait_until(lambda said=said: road.words().count("waiting for") > said, f"it says so\n{road.words()}")
        proxy.let_go()
        road.moves_on()
    writers.stop()
    road.drained()
    assert relay.is_running(), road.words()
    nothing_wrong(road)


@pytest.mark.parametrize(
    ("delivery", "kind"),
    [
        ("exactly-once", Request.PRODUCE),
        ("exactly-once", Request.END_TXN),
        ("at-least-once", Request.PRODUCE),
    ],
)
def test_what_a_stopped_relay_had_sent_arrives_after_its_successors(
    roads: Roads, broker: ProxiedBroker, delivery: str, kind: Request
):
    """INVARIANT I6: a request that was on its way when the lease ran out reaches the broker after the takeover.

    Exactly once the broker refuses it: the successor's producer has fenced the older one, and a producer of another
    transactional id would not have. At least once it is stored, and repeats what the successor has sent.
    """
    road = roads(delivery)
    proxy = broker.proxy
    stopped = road.start_relay()
    writers = road.writers(120, seed=SEED + 3).start()
    road.moves_on()
    proxy.hold(kind)
    wait_until(lambda: not proxy.is_set(), f"no request {kind.name}\n{road.words()}")
    stopped.stop()
    epoch = road.newest()[0]
    successor = road.start_relay(log=broker.url)
    wait_until(lambda: road.newest()[0] > epoch, f"nobody took over\n{road.words()}")
    road.moves_on()
    answered = proxy.answered
    proxy.let_go()
    wait_until(lambda: proxy.answered > answered, "the late request is answered")
    said = len(road.all_words())
    stopped.resume()
    wait_until(lambda: "stands by" in road.all_words()[said:], f"it stands by\n{road.words()}")
    road.moves_on()
    successor.kill()
    road.relays.remove(successor)
    road.moves_on()
    assert stopped.is_running(), road.words()
    writers.stop()
    report = road.report()
    assert only_repeats(report), f"{report}\n{road.words()}"
    assert bool(report.doubled) == (delivery == "at-least-once"), f"{report}\n{road.words()}"


@pytest.mark.timeout(CHAOS_SECONDS + 300)
@pytest.mark.parametrize("delivery", DELIVERIES)
def test_all_faults_at_random(roads: Roads, broker: ProxiedBroker, delivery: str):
    """INVARIANT I1, I2, I3, I5, I6, I8: every fault there is, one after another and on top of each other."""
    road = roads(delivery)
    proxy = broker.proxy
    for _ in range(2):
        road.start_doomed_relay()
    choose = road.choose

    def time_passes(most: float) -> None:
        until = time.monotonic() + choose.random() * most
        wait_until(lambda: time.monotonic() > until, "time passes")

    def stop_and_go_on() -> None:
        relay = choose.choice(road.relays)
        relay.stop()
        time_passes(2.5)
        relay.resume()

    def cut_somewhere() -> None:
        proxy.cut_after(choose.randint(1, 20_000), choose.choice(list(Direction)))

    def cut_at_a_request() -> None:
        choose.choice([proxy.cut_before, proxy.cut_behind])(choose.choice(OF_A_CHUNK[delivery]))

    def come_late() -> None:
        proxy.hold(choose.choice(OF_A_CHUNK[delivery]))
        time_passes(2.5)
        proxy.let_go()

    def hang() -> None:
        proxy.hang()
        time_passes(2.5)
        proxy.let_go()

    faults = (
        road.kill_any,
        road.kill_any,
        broker.kill_and_start,
        stop_and_go_on,
        stop_and_go_on,
        come_late,
        come_late,
        hang,
        cut_somewhere,
        cut_at_a_request,
        cut_at_a_request,
        proxy.cut,
        road.goes_on,
    )
    with Watch(road) as watch:
        under_faults(road.writers(CHAOS_SECONDS + 60, seed=SEED + 5), CHAOS_SECONDS, *faults, least=6)
        proxy.let_go()
        road.start_relay()
        road.drained()
    assert watch.regressed == []
    nothing_wrong(road)
