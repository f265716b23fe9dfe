"""Groups of the built-in log: heartbeats, members that are gone, and who may write what to the group's tables."""

import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest
from databases import connected, install, rows, wait_until
from log_contract import OPENED, Member
from log_contract_groups import Owners, settled, shared, together

from outbox.errors import ConfigurationError, Retryable
from outbox.message import Offset
from relay.logs.builtin import BuiltinLog
from relay.logs.builtin.address import parse_address
from relay.logs.builtin.group.membership import Membership
from relay.logs.builtin.group.store import GroupStore, Holding, Pulse, Roll
from relay.logs.builtin.store import Topic
from relay.logs.contract import LogOptions, Partition

PARTITIONS = 4
QUICK = Pulse(beat_seconds=0.2, gone_seconds=2.0)
SILENT = Pulse(beat_seconds=3600, gone_seconds=2.0)
PATIENT = Pulse(beat_seconds=3600, gone_seconds=60.0)
OVERSLEEPS = Pulse(beat_seconds=5.0, gone_seconds=2.0)


@pytest.fixture
def road(database_url: str) -> str:
    """A log with one topic, to which `put` adds records by plain SQL."""
    install(database_url)
    rows(
        database_url,
        "insert into log_topic (name, incarnation, partitions) values ('orders', ?, ?)",
        "0f" * 16,
        PARTITIONS,
    )
    return database_url


def put(url: str, *offsets: int) -> None:
    """One record at each of these offsets in every partition."""
    for partition in range(PARTITIONS):
        for offset in offsets:
            rows(
                url,
                'insert into log_record (topic_id, partition, "offset", sequence, epoch, id, source, type,'
                " content_type, time, payload) select topic_id, ?, ?, 1, 1, ?, '/shop', 'Placed', 'text/plain',"
                " '2026-01-01 00:00:00.000000', ? from log_topic",
                partition,
                offset,
                f"{partition:016x}{offset:016x}",
                b"1",
            )


def log_of(url: str, pulse: Pulse = QUICK) -> BuiltinLog:
    log = BuiltinLog(parse_address(url, LogOptions()))
    log.pulse = pulse
    return log


def member_of(url: str, pulse: Pulse = QUICK, owners: Owners | None = None) -> Member:
    return (owners or Owners()).member(log_of(url, pulse), "orders")


def names(url: str) -> list[str]:
    return [name for (name,) in rows(url, "select member from log_member order by member")]


def epoch(url: str) -> int:
    return int(rows(url, "select epoch from log_group")[0][0])


def offsets(url: str) -> set[tuple[int, int]]:
    return {(int(one), int(two)) for one, two in rows(url, 'select partition, "offset" from log_group_offset')}


@contextmanager
def busy(url: str) -> Iterator[None]:
    """Nobody can write to the group's tables."""
    with connected(url) as connection:
        connection.execute("begin immediate" if url.startswith("sqlite") else "begin")
        if not url.startswith("sqlite"):
            connection.execute("lock table log_member in access exclusive mode")
        yield
        connection.execute("rollback")


@pytest.fixture
def store(road: str) -> Iterator[GroupStore]:
    with closing(log_of(road).group_store("g")) as store:
        yield store


@pytest.fixture
def hands(road: str) -> Iterator[tuple[GroupStore, GroupStore]]:
    """Two that wait for locks, one like the other."""
    with closing(log_of(road, PATIENT).group_store("g")) as one, closing(log_of(road, PATIENT).group_store("g")) as two:
        yield one, two


def orders(url: str) -> dict[Partition, Topic]:
    with closing(log_of(url).store("test")) as store:
        topic = store.topics(["orders"])["orders"]
    return dict.fromkeys(topic.parts(), topic)


def test_partitions_of_a_member_that_is_not_heard_of_are_taken_over_after_the_time_out(road: str):
    """INVARIANT I8: nobody has to tell the group that a member was killed."""
    put(road, 0)
    killed = member_of(road, SILENT).joined()
    begun = time.monotonic()
    heir = member_of(road).joined()
    assert time.monotonic() - begun < 20
    assert len(names(road)) == 1
    assert len(heir.read(PARTITIONS).records()) == PARTITIONS
    assert killed.told.revocations == []


def test_a_member_that_is_heard_of_keeps_its_partitions_until_its_listener_has_given_them_up(road: str):
    """However long that takes; the other, meanwhile, counts them as its, so that nobody waits for it for ever."""
    first, second = member_of(road).joined(), member_of(road)
    known = names(road)
    finished = threading.Event()
    first.told.revoked = lambda partitions: finished.wait(60)  # type: ignore[method-assign]
    polls = threading.Thread(target=lambda: first.until(finished.is_set, "its work in hand is finished"))
    polls.start()
    begun = time.monotonic()
    second.until(lambda: settled(second), "it counts them as the other's")
    assert time.monotonic() - begun >= QUICK.gone_seconds
    assert second.consumer.assignment() == frozenset()
    assert second.told.assignments == []
    assert set(names(road)) > set(known)
    finished.set()
    second.joined(PARTITIONS // 2)
    polls.join(30)
    assert not polls.is_alive()
    assert set(names(road)) > set(known)


def test_a_member_whose_time_out_has_run_out_hands_out_nothing_until_it_knows(road: str):
    """INVARIANT I6: others may have taken over; it counts from before its heartbeat was sent."""
    member = member_of(road, OVERSLEEPS).joined()
    put(road, 0)
    member.read(PARTITIONS)
    time_out = time.monotonic() + OVERSLEEPS.gone_seconds
    member.until(lambda: time.monotonic() > time_out, "its time-out has run out")
    put(road, 1)
    assert member.poll() is None
    assert member.consumer.assignment() is not None
    member.read(2 * PARTITIONS)
    assert member.told.revocations == [], "nobody had called it gone"


def test_a_member_that_overslept_gives_all_up_and_joins_anew(road: str):
    """INVARIANT I6: what it still reports has no effect."""
    put(road, 0)
    sleeper = member_of(road, OVERSLEEPS).read(PARTITIONS)
    (name,) = names(road)
    heir = member_of(road).joined()
    assert name not in names(road)
    every = {batch.partition: Offset(1) for batch in sleeper.batches}
    sleeper.consumer.commit(every)
    shared(sleeper, heir)
    assert sorted(sleeper.told.revocations[0]) == sorted(every)
    assert name not in names(road)
    assert len(names(road)) == 2
    assert {offset for _, offset in offsets(road)} == {0}


def test_a_member_from_the_future_is_gone_when_the_clock_was_set_back(road: str):
    member_of(road, SILENT).joined()
    clock = (
        "strftime('%Y-%m-%d %H:%M:%f', 'now', '+1 hour')"
        if road.startswith("sqlite")
        else "clock_timestamp() + interval '1 hour'"
    )
    rows(road, f"update log_member set seen_at = {clock}")
    member_of(road).joined()
    assert len(names(road)) == 1


def test_a_log_that_was_busy_for_longer_than_the_time_out_costs_nobody_the_membership(road: str):
    members = [member_of(road, owners=(owners := Owners())), owners.member(log_of(road), "orders")]
    shared(*members)
    known, before = names(road), epoch(road)
    with busy(road):
        end = time.monotonic() + 2 * QUICK.gone_seconds
        together([], lambda: time.monotonic() > end, "the log is busy")
    put(road, 0)
    together(members, lambda: sum(len(member.records()) for member in members) == PARTITIONS, "it goes on")
    assert (names(road), epoch(road)) == (known, before)
    assert all(len(member.told.revocations) <= 1 for member in members)


def test_a_lost_connection_costs_nobody_the_membership(road: str):
    if road.startswith("sqlite"):
        pytest.skip("a file has no connections that get lost")
    member = member_of(road).joined()
    known = names(road)
    put(road, 0)
    cut = "select pg_terminate_backend(pid) from pg_stat_activity where application_name like 'inbox-%%'"
    for _ in range(3):
        rows(road, cut)
        wait_until(lambda: polled(member) is None, "it answers again")
    wait_until(lambda: polled(member) is None and len(member.records()) == PARTITIONS, "all is read")
    assert names(road) == known
    assert member.told.revocations == []


def polled(member: Member) -> Exception | None:
    try:
        member.poll(0.3)
    except Retryable as error:
        return error
    return None


def test_a_heartbeat_that_cannot_go_on_says_why_where_the_member_polls(road: str):
    member = member_of(road).joined()
    rows(road, "alter table log_member rename to something_else")
    with pytest.raises(ConfigurationError, match="log_member"):
        member.until(lambda: False, "its heartbeat fails")


def test_what_comes_and_goes_raises_the_epoch(road: str, store: GroupStore):
    assert store.join("a", ["orders"]) == 1
    assert store.join("b", ["orders"]) == 2
    beat = store.beat("a")
    assert beat is not None and (beat.epoch, beat.others_gone) == (2, False)
    store.remove_gone()
    assert store.roll() == Roll(2, {"a": frozenset({"orders"}), "b": frozenset({"orders"})}, frozenset())
    store.leave("b")
    store.leave("b")
    assert store.roll() == Roll(3, {"a": frozenset({"orders"})}, frozenset())
    assert store.beat("b") is None
    wait_until(lambda: others_gone(store, "c"), "the other is not heard of")
    store.leave("c")
    before = store.roll()
    store.remove_gone()
    store.remove_gone()
    assert store.roll() == Roll(before.epoch + 1, {}, frozenset())


def others_gone(store: GroupStore, member: str) -> bool:
    beat = store.beat(member)
    if beat is None:
        store.join(member, ["orders"])
    return beat is not None and beat.others_gone


def test_a_partition_is_taken_only_when_it_is_free_or_its_owner_is_gone(road: str, store: GroupStore):
    wanted = orders(road)
    store.join("a", ["orders"])
    roll = store.roll()
    assert store.take("a", roll, wanted) == wanted.keys()
    assert store.take("a", roll, wanted) == wanted.keys(), "again"
    store.join("b", ["orders"])
    assert store.take("b", roll, wanted) == frozenset(), "the roll is out of date"
    both = store.roll()
    assert store.take("b", both, wanted) == frozenset(), "they are another's"
    one = next(iter(wanted))
    store.give_up("a", {one: Holding(wanted[one], roll.epoch)}, {one: Offset(3)})
    assert store.take("b", both, wanted) == {one}
    assert store.committed() == {one: 3}
    store.leave("a")
    assert store.take("b", store.roll(), wanted) == wanted.keys()


def test_only_the_owner_reports_and_gives_up_and_only_for_the_holding_it_has(road: str, store: GroupStore):
    """INVARIANT I6: a statement of an earlier holding, however late it arrives, moves nothing."""
    wanted = orders(road)
    (one, *_) = wanted
    store.join("a", ["orders"])
    store.take("a", store.roll(), wanted)
    first = {one: Holding(wanted[one], 1)}
    assert store.commit("b", first, {one: Offset(5)}) == frozenset()
    store.give_up("b", first, {one: Offset(5)})
    assert store.committed() == {}
    assert store.commit("a", first, {one: Offset(5)}) == {one}
    assert store.commit("a", first, {one: Offset(4)}) == {one}
    assert store.committed() == {one: 5}
    store.give_up("a", first, {})
    store.join("b", ["orders"])
    store.take("a", store.roll(), {one: wanted[one]})
    assert store.commit("a", first, {one: Offset(9)}) == frozenset()
    store.give_up("a", first, {one: Offset(9)})
    assert store.take("b", store.roll(), {one: wanted[one]}) == frozenset()
    assert store.committed() == {one: 5}


def test_nobody_joins_while_a_partition_is_being_taken(road: str, hands: tuple[GroupStore, GroupStore]):
    """A take that waits for its row would otherwise judge an owner by a snapshot in which that had not joined yet."""
    if road.startswith("sqlite"):
        pytest.skip("a file has one writer")
    wanted = orders(road)
    store, other = hands
    store.join("a", ["orders"])
    roll = store.roll()
    store.take("a", roll, wanted)
    with connected(road) as connection:
        connection.execute("begin")
        connection.execute("select from log_group_offset for update")
        taking = threading.Thread(target=lambda: store.take("a", roll, wanted))
        joining = threading.Thread(target=lambda: other.join("b", ["orders"]))
        taking.start()
        wait_until(lambda: waiting(road) == 1, "the take waits for its row")
        joining.start()
        wait_until(lambda: waiting(road) == 2, "the join waits for the take")
        connection.execute("rollback")
        taking.join(30)
        joining.join(30)
    assert len(store.roll().members) == 2


def test_of_two_who_take_a_partition_at_the_same_moment_one_gets_it(road: str, hands: tuple[GroupStore, GroupStore]):
    """INVARIANT I6: both have seen that it is free; who waits for the row looks again."""
    if road.startswith("sqlite"):
        pytest.skip("a file has one writer")
    wanted = orders(road)
    store, other = hands
    store.join("a", ["orders"])
    store.join("b", ["orders"])
    roll = store.roll()
    store.take("a", roll, wanted)
    store.give_up("a", {partition: Holding(topic, roll.epoch) for partition, topic in wanted.items()}, {})
    taken: dict[str, frozenset[Partition]] = {}

    def take(name: str, hand: GroupStore) -> None:
        taken[name] = hand.take(name, roll, wanted)

    with connected(road) as connection:
        connection.execute("begin")
        connection.execute("select from log_group_offset for update")
        takers = [threading.Thread(target=take, args=named) for named in (("a", store), ("b", other))]
        for taker in takers:
            taker.start()
        wait_until(lambda: waiting(road) == 2, "both wait for the rows")
        connection.execute("rollback")
        for taker in takers:
            taker.join(30)
    assert sorted(taken.values(), key=len) == [frozenset(), wanted.keys()]


def waiting(url: str) -> int:
    found = rows(
        url,
        "select count(*) from pg_stat_activity where datname = current_database()"
        " and application_name like 'inbox-group%%' and wait_event_type = 'Lock'",
    )
    return int(found[0][0])


def test_a_name_is_never_used_again(road: str):
    memberships = [Membership(lambda: log_of(road).group_store("g"), ("orders",), QUICK) for _ in range(2)]
    assert memberships[0].name != memberships[1].name
    for membership in memberships:
        membership.join()
        membership.join()
    assert names(road) == sorted(membership.name for membership in memberships)
    for membership in memberships:
        membership.end(leave=True)
        membership.end(leave=True)
    assert names(road) == []


@pytest.fixture(autouse=True)
def all_closed() -> Iterator[None]:
    yield
    while OPENED:
        OPENED.pop().close()
