"""I1, I3, I4, I5 and I8 on the whole road by way of Kafka: writers, relays, broker and consumers, under fault.

Every run is bounded; OUTBOX_TEST_CHAOS_SECONDS makes the first one longer, OUTBOX_TEST_SEED makes it another.
"""

import logging
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from kafka_consumers import OffsetsWatch
from kafka_server import KafkaServer
from road import Watch
from road_to_kafka import only_repeats
from whole_road_to_kafka import Whole

from relay.failpoints import Failpoint
from tests.databases import rows, wait_until

CHAOS_SECONDS = float(os.environ.get("OUTBOX_TEST_CHAOS_SECONDS", "0"))
SEED = int(os.environ.get("OUTBOX_TEST_SEED", "1"))
KEPT_CLAIMS = 100
"""A partition's claims are pruned when there are more."""

logger = logging.getLogger(__name__)


Roads = Callable[..., Whole]


@pytest.fixture
def roads(database: str, tmp_path: Path) -> Iterator[Roads]:
    """Makes the test's road, for a broker, a delivery and an inbox."""
    made: list[Whole] = []

    def make(url: str, delivery: str = "at-least-once", inbox: str = "inbox") -> Whole:
        made.append(Whole(database, tmp_path, url, delivery, inbox, seed=SEED))
        return made[-1]

    yield make
    for whole in made:
        whole.close()


def in_rounds(seconds: float, *faults: Callable[[], None]) -> None:
    """Let all faults happen, in a random order, and again while the time is not over."""
    choose = random.Random(f"{SEED}/rounds")
    deadline = time.monotonic() + seconds
    while True:
        for fault in choose.sample(faults, len(faults)):
            fault()
        if time.monotonic() >= deadline:
            return


def disturbed(whole: Whole, faults: Sequence[Callable[[], None]]) -> OffsetsWatch:
    """Write while relays and members come and go; return what a watch has seen when all is handled."""
    road, consumers = whole.road, whole.consumers
    writers = road.writers(CHAOS_SECONDS + 300, seed=SEED + 4, pause_seconds=0.2).start()
    road.leave_a_repeat()
    # One that lives until it is killed: doomed ones may all have come to their end before anything is handled.
    road.start_relay()
    road.start_doomed_relay()
    for _ in range(3):
        consumers.join()
    with Watch(road) as relays, OffsetsWatch(consumers) as watch:
        consumers.more()
        in_rounds(CHAOS_SECONDS, *faults, road.kill_holder, road.kill_holder, road.kill_holder)
        road.start_relay()
        writers.stop()
        whole.caught_up()
    assert relays.regressed == []
    assert watch.looked > 20
    return watch


@pytest.mark.timeout(CHAOS_SECONDS + 300)
@pytest.mark.parametrize(
    ("delivery", "inbox"), [("at-least-once", "inbox"), ("exactly-once", "by_offset")], ids=["by id", "by offset"]
)
def test_each_message_takes_effect_once_whoever_dies_or_oversleeps(
    roads: Roads, kafka_url: str, delivery: str, inbox: str, record_property: Callable[[str, object], None]
):
    """INVARIANT I4, I3: of each message one effect, per key in order, though relays and members come and go and die.

    I5: neither claims nor the group's offsets in Kafka go back. I8: the lag is zero again. At least once Kafka holds
    repeats, and the inbox has to pass them by: a test without some would see nothing. Exactly once nothing is
    remembered but the newest claims: a member that went on behind another's claim, or a partition that was begun at an
    offset in Kafka instead of its claim, would double, and no id would catch it.
    """
    whole = roads(kafka_url, delivery, inbox)
    road, consumers = whole.road, whole.consumers
    by_id = inbox == "inbox"
    watch = disturbed(whole, [consumers.join, consumers.leave, consumers.kill, consumers.oversleep])
    report = consumers.report()
    handled, duplicates = consumers.counts()
    happened = dict(consumers.happened)
    record_property("run", f"{report}; {duplicates} repeats; {happened}, {road.killed} relays killed; {watch.looked}")
    assert report.committed > 300
    assert not report.wrong(), f"{report}\n{whole.words()}"
    assert watch.regressed == []
    assert happened.keys() >= {"killed", "overslept"}
    assert handled == report.committed
    ((ids,),) = rows(road.database, "select count(*) from inbox")
    assert ids == (report.committed if by_id else 0)
    if by_id:
        assert duplicates > 0, "nothing had to be recognised"
    else:
        assert duplicates == 0
        assert len(road.topics.read()) == report.committed
    wait_until(lambda: claims(whole) <= KEPT_CLAIMS, f"claims are pruned\n{whole.words()}")
    assert whole.lag() == whole.no_lag()


def claims(whole: Whole) -> int:
    """Return how many claims a partition has, at most."""
    found = rows(
        whole.road.database,
        "select coalesce(max(n), 0) from (select count(*) as n from inbox_offset where partition >= 0"
        " group by incarnation, partition) as of_each",
    )
    return int(found[0][0])


def test_by_offset_the_repeats_of_an_at_least_once_relay_are_seen_here(roads: Roads, kafka_url: str):
    """INVARIANT I4: what is said of exactly-once above has to be seen when it is not so: this must double effects.

    The relay is killed between Kafka's acknowledgement and its step; by offset each record is a message.
    """
    whole = roads(kafka_url, "at-least-once", "by_offset")
    whole.consumers.start()
    writers = whole.road.writers(200, seed=SEED + 5).start()
    whole.road.killed_at(f"{Failpoint.PRODUCED}:3")
    whole.road.killed_at(f"{Failpoint.PRODUCED}:1")
    whole.road.start_relay()
    whole.consumers.more()
    writers.stop()
    whole.caught_up()
    report = whole.consumers.report()
    assert report.doubled, report
    assert only_repeats(report), report


@pytest.mark.parametrize(
    ("delivery", "inbox"), [("at-least-once", "inbox"), ("exactly-once", "by_offset")], ids=["by id", "by offset"]
)
def test_all_go_on_by_themselves_when_the_broker_dies_and_comes_back(
    own_kafka_server: KafkaServer, roads: Roads, delivery: str, inbox: str
):
    """INVARIANT I8: the broker dies under relay and members, and nobody lends a hand.

    A process that ended, a member that waited for an answer that never comes, or a partition that was begun again
    behind records that the claims do not have, would leave a lag, or a message out.
    """
    whole = roads(own_kafka_server.url(), delivery, inbox)
    road, consumers = whole.road, whole.consumers
    relays = [road.start_relay(), road.start_relay()]
    members = [consumers.start(), consumers.start()]
    with OffsetsWatch(consumers) as watch:
        writers = road.writers(300, seed=SEED + 6, pause_seconds=0.2).start()
        consumers.more()
        own_kafka_server.kill()
        before = road.written()
        wait_until(lambda: road.written() > before + 20, "the application goes on")
        own_kafka_server.start()
        consumers.more()
        writers.stop()
        whole.caught_up()
    report = consumers.report()
    assert all(process.is_running() for process in [*relays, *members]), whole.words()
    assert not report.wrong(), f"{report}\n{whole.words()}"
    assert report.committed > 100
    assert watch.regressed == []
    assert whole.lag() == whole.no_lag()
    if delivery == "exactly-once":
        assert not road.report().wrong()


@pytest.mark.parametrize("delivery", ["at-least-once", "exactly-once"])
def test_two_members_that_run_once_both_end_when_all_is_handled(roads: Roads, kafka_url: str, delivery: str):
    """INVARIANT I1: neither leaves to the other what the other has left to it, and neither waits for ever.

    Exactly once a partition ends with a transaction's mark, which no record follows: one that waited for the record
    before the end would never be through.
    """
    whole = roads(kafka_url, delivery)
    whole.write(200)
    whole.relay_once()
    members = [whole.consumers.start(once=True) for _ in range(2)]
    assert [member.ended() for member in members] == [0, 0], whole.words()
    report = whole.consumers.report()
    assert report.arrived == report.committed == 400
    assert not report.wrong(), report
    assert whole.consumers.members() == []
    assert whole.consumers.lag() == 0, "it is reported before they leave"
    assert whole.lag() == whole.no_lag()
    last = Counter[tuple[str, int]]()
    for arrival in whole.road.topics.read():
        last[arrival.topic, arrival.partition] = arrival.offset
    behind = {end - last[place] for place, end in whole.consumers.ends().items()}
    assert behind == {2 if delivery == "exactly-once" else 1}


def test_a_group_is_forgotten_when_nobody_is_in_it_and_then_begins_anew(roads: Roads, kafka_url: str):
    """INVARIANT I5: a group goes back by an explicit word alone, never while a member is alive.

    What stayed in Kafka or in the database would have the new group skip what it has not handled.
    """
    whole = roads(kafka_url, "exactly-once")
    whole.write(100)
    whole.relay_once()
    member = whole.consumers.start()
    whole.consumers.caught_up()
    refused = whole.inbox("forget", whole.consumers.group)
    assert refused.code == 1
    assert "is alive" in refused.talk
    assert "Traceback" not in refused.talk
    assert whole.consumers.lag() == 0
    member.terminate()
    assert member.ended() == 0, whole.words()
    assert whole.inbox("forget", whole.consumers.group).code == 0
    assert whole.consumers.committed() == {}
    assert rows(whole.road.database, "select count(*) from inbox") == [(0,)]
    assert rows(whole.road.database, "select count(*) from inbox_offset") == [(0,)]
    assert whole.inbox("forget", whole.consumers.group).code == 2, "it is not known any more"
    assert whole.consumers.start(once=True).ended() == 0, whole.words()
    assert whole.consumers.effects() == 400
    assert whole.lag() == whole.no_lag()
