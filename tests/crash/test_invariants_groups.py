"""I4, I5, I6 and I8 for a group with several members, as processes that join, leave, die and oversleep.

Every run is bounded; OUTBOX_TEST_CHAOS_SECONDS makes the first one longer, OUTBOX_TEST_SEED makes it another.
"""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import billing
import pytest
from consumers import GONE_SECONDS, Consumers, OwnersWatch
from road import Road, under_faults
from writers import Writers, write_without_keys

from tests.databases import rows, wait_until

CHAOS_SECONDS = float(os.environ.get("OUTBOX_TEST_CHAOS_SECONDS", "15"))
SEED = int(os.environ.get("OUTBOX_TEST_SEED", "1"))

logger = logging.getLogger(__name__)


@pytest.fixture
def road(database: str, tmp_path: Path) -> Iterator[Road]:
    rows(database, billing.SCHEMA)
    road = Road(database, tmp_path, seed=SEED)
    yield road
    road.end()


@pytest.fixture
def consumers(road: Road, tmp_path: Path) -> Iterator[Consumers]:
    consumers = Consumers(road.database, tmp_path, SEED)
    yield consumers
    consumers.end()


def relay_once(road: Road) -> None:
    road.start_relay()
    road.drained()


def test_a_group_whose_members_come_and_go_handles_each_message_once(road: Road, consumers: Consumers):
    """INVARIANT I4: each message once, and per key in order, whoever joins, leaves, is killed or oversleeps.

    Also I5: no offset goes back. I8: no partition is nobody's for longer than two time-outs while somebody is there to
    have it, and the lag is zero again. A partition taken before it was given up, an owner that is gone and stays in the
    group, or a member that does not learn of others, would break one of them.
    """
    road.start_relay()
    for _ in range(3):
        consumers.join()
    with OwnersWatch(road.database) as watch:
        under_faults(
            Writers(road.database, seed=SEED + 8, seconds=CHAOS_SECONDS + 120, writers=4, pause_seconds=0.1),
            CHAOS_SECONDS,
            consumers.join,
            consumers.leave,
            consumers.kill,
            consumers.oversleep,
            least=8,
        )
        road.drained()
        consumers.caught_up()
    report = consumers.report()
    logger.info("%s; %s; nobody's for %.1f s at most", report, dict(consumers.happened), watch.longest)
    assert report.committed > 200
    assert not report.wrong(), f"{report}\n{consumers.words()}"
    assert not watch.regressed
    assert watch.longest < 2 * GONE_SECONDS
    assert watch.looked > 50


def test_a_group_goes_on_by_itself_when_a_member_is_stopped_inside_its_transaction(road: Road, consumers: Consumers):
    """INVARIANT I8: the stopped member holds a claim and ids, and the server or its successor ends that.

    Without a time-out on idle transactions, and an end to sessions that hold a claim for too long, its partition waits
    until somebody wakes it up.
    """
    write_without_keys(road.database, "orders", 300)
    write_without_keys(road.database, "payments", 300)
    relay_once(road)
    members = [consumers.start("one_stops") for _ in range(3)]
    consumers.caught_up()
    (stopped,) = [member for member in members if is_stopped(member.pid)]
    assert consumers.effects() == 600
    stopped.resume()
    wait_until(lambda: bool(consumers.member(stopped)), f"it is in the group again\n{consumers.words()}")
    write_without_keys(road.database, "orders", 100)
    road.drained()
    consumers.caught_up()
    report = consumers.report()
    assert report.committed == 700
    assert not report.wrong(), report


def test_a_slow_handler_costs_no_membership(road: Road, consumers: Consumers):
    """INVARIANT I4: partitions are not taken from a member that works, however long, and its work is not repeated."""
    assert billing.SLOW_SECONDS > 1.5 * GONE_SECONDS
    write_without_keys(road.database, "orders", 300)
    relay_once(road)
    first = consumers.start("one_slow")
    wait_until(consumers.mark.exists, "it handles slowly")
    second = consumers.start("one_slow")
    consumers.caught_up()
    wait_until(lambda: len(owners(road)) == 2, "they share the partitions")
    assert owners(road) == {*consumers.member(first), *consumers.member(second)}
    assert rows(road.database, "select epoch from log_group") == [(2,)], "nobody was called gone"
    assert rows(road.database, "select sum(duplicates) from inbox_offset") == [(0,)]
    assert not consumers.report().wrong()


def test_while_a_new_version_is_rolled_out_nobody_gets_what_it_does_not_handle(road: Road, consumers: Consumers):
    """INVARIANT I7: a topic that nobody handles any more waits, whole, and it is said."""
    relay_once(road)
    old = consumers.start("before_payments", said="old.txt")
    new = consumers.start("inbox", said="new.txt")
    wait_until(lambda: bool(consumers.member(old) and consumers.member(new)), "both are in the group")
    write_without_keys(road.database, "orders", 100)
    write_without_keys(road.database, "payments", 100)
    road.drained()
    consumers.caught_up()
    assert len(owners(road, "orders")) == 2
    assert owners(road, "payments") == set(consumers.member(new))
    new.terminate()
    assert new.ended() == 0
    write_without_keys(road.database, "payments", 50)
    write_without_keys(road.database, "orders", 50)
    road.drained()
    wait_until(lambda: consumers.effects() == 250, f"the orders are handled\n{old.words()}")
    wait_until(lambda: "topic payments waits" in old.words(), "it is said")
    wait_until(lambda: consumers.lag() == 50, "what is handled is reported, and no more")
    consumers.start("inbox")
    consumers.caught_up()
    assert not consumers.report().wrong()


def test_two_members_that_run_once_both_end_when_all_is_handled(road: Road, consumers: Consumers):
    """INVARIANT I1: neither leaves to the other what the other has left to it."""
    write_without_keys(road.database, "orders", 500)
    write_without_keys(road.database, "payments", 500)
    relay_once(road)
    members = [consumers.start(once=True) for _ in range(2)]
    assert [member.ended() for member in members] == [0, 0], consumers.words()
    assert not consumers.report().wrong()
    assert consumers.effects() == 1000
    assert rows(road.database, "select * from log_member") == []


def owners(road: Road, topic: str = "orders") -> set[str]:
    found = rows(
        road.database,
        "select distinct o.member from log_group_offset o join log_topic t using (topic_id) where name = ?",
        topic,
    )
    return {member for (member,) in found}


def is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
