"""`deduplicate="offset"`: no ids, so the claim alone decides what was handled; on both databases, by both kinds."""

import asyncio
import random
import threading
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from databases import rows, wait_until
from inbox_hands import GROUP, PARTITION, Hand, newest, register, registration, wait_until_waiting, waits_for
from inbox_road import INSERT, Road, effect, message, on
from inbox_twins import Twin, twins
from sqlalchemy import MetaData, create_engine, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from inbox import Delivery, Inbox
from inbox.claims import Claim
from inbox.deduplicate import ByOffset
from inbox.lane import Segment
from inbox.lending import Lent
from inbox.status import status
from outbox.errors import ConfigurationError, Fenced, OutboxError, Permanent
from outbox.message import Offset
from outbox.process.urls import parse_url, with_driver
from outbox.retry import RetryPolicy
from outbox.tables import inbox_tables
from relay.logs.contract import Record
from relay.logs.memory import MemoryConsumer

AT_ONCE = RetryPolicy(first_seconds=0)


@pytest.fixture
def road(database_url: str) -> Road:
    return Road(database_url)


@pytest.fixture(params=["def", "async def"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def by_offset(kind: str = "def", body: Callable[[Delivery[Any], Session], None] = effect, **options: Any) -> Inbox:
    inbox = Inbox(GROUP, deduplicate="offset")
    on(inbox, kind, body, **options)
    return inbox


# What a user sees


def test_each_message_is_handled_once_and_in_order_and_leaves_no_id(road: Road, kind: str) -> None:
    inbox = by_offset(kind)
    road.write(*map(str, range(200)))
    inbox.run(road.database, road.log, once=True)
    inbox.run(road.database, road.log, once=True)
    assert road.effects == [str(number) for number in range(200)]
    assert road.counts() == (200, 0, 0)
    assert road.ids() == 0


def test_a_message_that_lies_in_the_log_twice_is_handled_twice(road: Road, kind: str) -> None:
    """The contract: for logs that are written exactly once, each record is a message."""
    inbox = by_offset(kind)
    one, two = message("one"), message("two")
    road.put(one, two, one)
    inbox.run(road.database, road.log, once=True)
    road.put(two)
    inbox.run(road.database, road.log, once=True)
    assert road.effects == ["one", "two", "one", "two"]
    assert road.counts() == (4, 0, 0)


def test_status_counts_each_record_with_a_handler_and_no_duplicates(road: Road) -> None:
    inbox = by_offset(type="Placed")
    one = message("one")
    road.put(one, one, message("no", type="Cancelled"))
    inbox.run(road.database, road.log, once=True)
    road.write("two")
    (found,) = status(road.database, log=road.log)
    assert (found.group, found.handled, found.duplicates, found.ignored) == (GROUP, 2, 0, 1)
    assert sum((found.lag_messages or {})["orders"].values()) == 1


def test_a_handler_that_fails_in_the_middle_of_a_batch_costs_no_other_message(road: Road, kind: str) -> None:
    """The batch is rolled back with its claim; then each record has a claim of its own."""
    calls: list[tuple[str, int]] = []

    def fails_twice(delivery: Delivery[str], session: Session) -> None:
        calls.append((delivery.data, delivery.attempt))
        effect(delivery, session)
        if delivery.data == "two" and calls.count(("two", 1)) + calls.count(("two", 2)) < 3:
            raise RuntimeError("fails in the batch, and once more alone")

    inbox = by_offset(kind, fails_twice, retry=AT_ONCE)
    road.write("one", "two", "three")
    inbox.run(road.database, road.log, once=True)
    assert road.effects == ["one", "two", "three"]
    assert calls == [("one", 1), ("two", 1), ("one", 1), ("two", 1), ("two", 2), ("three", 1)]
    assert steps(road) == [(0, 1), (1, 2), (2, 3)]
    assert road.counts() == (3, 0, 0)


def test_a_message_at_fault_stops_its_partition_and_a_restart_goes_on_there(road: Road, kind: str) -> None:
    mended = threading.Event()

    def refuses(delivery: Delivery[str], session: Session) -> None:
        effect(delivery, session)
        if delivery.data == "bad" and not mended.is_set():
            raise RuntimeError("no such customer")

    inbox = by_offset(kind, refuses, retry=RetryPolicy(attempts=2, first_seconds=0))
    road.write("one", "bad", "three")
    with pytest.raises(Permanent, match="failed 2 times"):
        inbox.run(road.database, road.log, once=True)
    assert road.effects == ["one"]
    mended.set()
    inbox.run(road.database, road.log, once=True)
    assert road.effects == ["one", "bad", "three"]
    assert road.counts() == (3, 0, 0)


def steps(road: Road) -> list[tuple[int, int]]:
    found = rows(
        road.database,
        "select begin_offset, end_offset from inbox_offset where step > 0 and partition >= 0 order by step",
    )
    return [tuple(row) for row in found]


def test_the_space_is_constant(road: Road, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many messages: no ids, and of the claims those since the last pruning, on this side of its bound."""
    monkeypatch.setattr("inbox.upkeep.PRUNE_SECONDS", 0.0)
    monkeypatch.setattr("inbox.upkeep.KEEP_STEPS", 10)
    inbox = by_offset(batch=False)
    sizes = []
    for _ in range(3):
        road.write(*map(str, range(100)))
        inbox.run(road.database, road.log, once=True)
        assert road.ids() == 0
        sizes.append(rows(road.database, "select count(*) from inbox_offset")[0][0])
    registrations_and_first_steps = 2 + 4
    assert max(sizes) <= registrations_and_first_steps + 21
    assert road.counts() == (300, 0, 0)


# Crashes


def test_a_crash_between_the_handlers_commit_and_the_logs_repeats_nothing(
    road: Road, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """INVARIANT I4: the group resumes from its claim, which was committed with the effects.

    The log's own offset is a report that may not have come. Resumed from there, with claims that are not compared with
    where the run begins, everything since would be handled again, with no id to tell.
    """
    monkeypatch.setattr(MemoryConsumer, "commit", lambda self, offsets: None)
    inbox = by_offset(kind)
    road.write("one", "two")
    inbox.run(road.database, road.log, once=True)
    assert road.open_log().committed(GROUP) == {}
    road.write("three")
    inbox.run(road.database, road.log, once=True)
    assert road.effects == ["one", "two", "three"]
    assert road.counts() == (3, 0, 0)


@pytest.mark.parametrize("kept", [True, False])
def test_a_commit_in_doubt_is_settled_by_the_newest_claim(
    road: Road, kind: str, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """INVARIANT I4: when the answer to a COMMIT is lost, nothing is handled on the strength of what it may have been.

    Taken for done, with claims that are not compared, its records would be skipped; taken for undone, handled twice.
    """
    doubts = iter([False, True, False, True])
    commit = Lent.commit

    def doubtful(self: Lent) -> None:
        doubtful_now = bool(road.counts()[0]) and next(doubts, False)
        if kept or not doubtful_now:
            commit(self)
        if doubtful_now:
            lost = psycopg.OperationalError if not road.database.startswith("sqlite") else Busy
            raise OperationalError("commit", {}, lost("server closed the connection unexpectedly"))

    monkeypatch.setattr(Lent, "commit", doubtful)
    road.write(*map(str, range(8)))
    by_offset(kind, batch=False, retry=RetryPolicy(attempts=1)).run(road.database, road.log, once=True)
    assert next(doubts, None) is None, "both doubts came"
    assert road.effects == [str(number) for number in range(8)]
    assert road.counts() == (8, 0, 0)


class Busy(Exception):
    sqlite_errorcode = 5


# Members that both believe they own the partition


@pytest.mark.parametrize("first_fails", [False, True])
def test_a_member_that_lost_its_claim_handles_nothing_and_one_whose_twin_failed_handles_all(
    road: Road, first_fails: bool
) -> None:
    """INVARIANT I4: the second waits inside its first statement, before any handler, and is fenced or goes on.

    Were the claim taken after the handlers, both would have handled the batch before they learn of one another.
    """
    calls: list[str] = []
    in_hand, go_on = threading.Event(), threading.Event()

    def first_waits(delivery: Delivery[str], session: Session) -> None:
        calls.append(delivery.data)
        effect(delivery, session)
        if len(calls) == 1:
            in_hand.set()
            assert go_on.wait(20)
            if first_fails:
                raise RuntimeError("the first of all fails")

    road.write("one", "two", "three")
    options: dict[str, Any] = {"deduplicate": "offset", "retry": RetryPolicy(first_seconds=1), "timeout_seconds": 30}
    with twins(Twin(road, "a", first_waits, **options)):
        assert in_hand.wait(20)
        with twins(Twin(road, "b", first_waits, **options)):
            wait_until_another_waits(road)
            assert calls == ["one"]
            go_on.set()
            wait_until(lambda: len(road.effects) >= 3, "all are handled")
    assert road.effects == ["one", "two", "three"]
    assert road.counts() == (3, 0, 0)
    if not first_fails:
        assert calls == ["one", "two", "three"]


def wait_until_another_waits(road: Road) -> None:
    """On SQLite there is nothing to see: it waits for the file, and cannot be told from one that is on its way."""
    if road.database.startswith("sqlite"):
        return
    waiting = "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
    wait_until(lambda: rows(road.database, waiting)[0][0] >= 1, "the other waits for the claim")


def test_twins_double_skip_and_disorder_nothing(road: Road, monkeypatch: pytest.MonkeyPatch) -> None:
    """INVARIANT I4, I5: three consumers that each believe they own every partition; handlers fail, connections are cut.

    There is no id behind the claims. A claim that was not compared whole (its step, and where it ends) before the
    next one is made, or not in the handlers' transaction, or a consumer that went on with what it had fetched behind a
    claim that it lost, would double messages or skip them for good.
    """
    monkeypatch.setattr("inbox.lane.FIRST_SIZE", 3)
    monkeypatch.setattr("inbox.lane.MOST", 7)
    monkeypatch.setattr("inbox.upkeep.PRUNE_SECONDS", 0.05)
    monkeypatch.setattr("inbox.upkeep.KEEP_STEPS", 2)
    chance = random.Random(11)
    on_sqlite = road.database.startswith("sqlite")

    def body(delivery: Delivery[str], session: Session) -> None:
        session.execute(text(INSERT), {"body": f"{delivery.message.key}:{delivery.data}", "attempt": delivery.attempt})
        if chance.random() < 0.02:
            raise RuntimeError("by chance")
        if chance.random() < 0.02 and not on_sqlite:
            session.execute(text("select pg_terminate_backend(pg_backend_pid())"))

    retry = RetryPolicy(attempts=1000, first_seconds=0.005)
    count, keys = (400, 4) if on_sqlite else (800, 6)
    sent: dict[str, list[str]] = {}
    with twins(*(Twin(road, one, body, deduplicate="offset", retry=retry, timeout_seconds=20) for one in "abc")):
        number = 0
        while number < count:
            batch = []
            for _ in range(chance.randint(1, 40)):
                key = f"k{chance.randrange(keys)}"
                sent.setdefault(key, []).append(str(number))
                batch.append(message(str(number), key=key))
                number += 1
            road.put(*batch)
        wait_until(lambda: len(road.effects) >= number, "all are handled", seconds=90)
    found: dict[str, list[str]] = {}
    for one in road.effects:
        key, _, body_ = one.partition(":")
        found.setdefault(key, []).append(body_)
    assert found == sent
    assert road.counts() == (number, 0, 0)
    assert road.ids() == 0


# One claim


@pytest.fixture
def hands(road: Road) -> Iterator[Callable[[], Hand]]:
    made: list[Hand] = []

    def make() -> Hand:
        made.append(Hand(road.database))
        return made[-1]

    yield make
    for hand in made:
        hand.close()


def handle(hand: Hand, claim: Claim, end: int) -> None:
    """Claim a run by offset, and leave an effect of each record that is due; in the hand's transaction."""
    records = [
        Record(PARTITION, Offset(number), message(str(number)), {}) for number in range(claim.end, max(end, claim.end))
    ]
    segment = Segment(PARTITION, claim, Offset(end), records, 1, Offset(0))
    way = ByOffset(inbox_tables(MetaData()), GROUP, hand.dialect)
    for record, _ in way.take(hand.connection, segment, by_offset()._handlers):
        hand.connection.execute(text(INSERT), {"body": str(record.offset), "attempt": 1})


def test_a_run_that_does_not_begin_where_the_newest_claim_ends_is_fenced(road: Road, hands: Callable[[], Hand]) -> None:
    """INVARIANT I4: compared by its number alone, a step that another made with another end lets records be skipped.

    A consumer whose COMMIT was in doubt may believe in a step that was undone, and that another has made since.
    """
    hand = hands()
    register(hand)
    with hand.connection.begin():
        handle(hand, Claim(0, Offset(0)), 3)
    for lost in (Claim(1, Offset(5)), Claim(0, Offset(0)), Claim(2, Offset(3))):
        with pytest.raises(Fenced), hand.connection.begin():
            handle(hand, lost, 10)
    assert newest(hand) == Claim(1, Offset(3))
    assert road.effects == ["0", "1", "2"]


HANGS = """
create function hangs() returns trigger language plpgsql as 'begin
    if current_setting(''test.hangs'', true) = ''yes'' then perform pg_advisory_xact_lock(7); end if;
    return new;
end';
create trigger hangs before insert on inbox_offset for each row execute function hangs()
"""


def test_a_late_claim_of_a_pruned_step_is_fenced(postgresql_url: str) -> None:
    """INVARIANT I4: a claim is inserted by who holds the one it was decided on, from the comparison to the COMMIT.

    The schedule that random faults do not find: a consumer has compared, and stands still before it inserts, while
    others go on and prune. With the lock on the step it compared, that step cannot be pruned, nor the next one, which
    it then runs into. Without `for update` it inserts a step that is free again, and hands all its records out once
    more; no id is there to tell.
    """
    road = Road(postgresql_url)
    rows(road.database, HANGS)
    one, late = Hand(road.database), Hand(road.database)
    register(one)
    with late.connection.begin():
        late.connection.execute(text("select set_config('test.hangs', 'yes', false)"))
    outcome: list[Any] = []

    def twin() -> None:
        try:
            with late.connection.begin():
                handle(late, Claim(0, Offset(0)), 5)
            outcome.append("handled")
        except OutboxError as error:
            outcome.append(error)

    hanging = psycopg.connect(road.database)
    hanging.execute("select pg_advisory_xact_lock(7)")
    thread = threading.Thread(target=twin)
    with one.connection.begin():
        handle(one, Claim(0, Offset(0)), 3)
        thread.start()
        wait_until_waiting(road.database, thread)
    wait_until(lambda: waits_for(road.database) == hanging.info.backend_pid, "the twin stands still before its insert")
    with one.connection.begin():
        handle(one, Claim(1, Offset(3)), 5)
    try:
        with one.dialect.translated(), one.connection.begin():
            one.connection.execute(text("set local lock_timeout = '200ms'"))
            registration().prune(one.connection, PARTITION, Claim(2, Offset(5)), 0)
    except OutboxError:
        pass  # as it must be: the twin holds the step
    hanging.close()
    thread.join(20)
    assert len(outcome) == 1
    assert isinstance(outcome[0], Fenced), outcome
    assert road.effects == [str(number) for number in range(5)]
    assert newest(one) == Claim(2, Offset(5))
    one.close()
    late.close()


# What it cannot do


def test_more_than_one_at_a_time_is_refused(road: Road, kind: str) -> None:
    inbox = by_offset(kind)
    with pytest.raises(ConfigurationError, match=r"'billing' knows by its offsets alone .* leave --concurrency out"):
        inbox.run(road.database, road.log, once=True, concurrency=2)
    assert road.counts() == (0, 0, 0)


def test_first_time_is_an_error_in_words(road: Road) -> None:
    inbox = by_offset()
    words = r"'billing' remembers no ids \(deduplicate='offset'\), so it cannot tell"
    engine = create_engine(with_driver(parse_url(road.database)))
    with Session(engine) as session, pytest.raises(ConfigurationError, match=words):
        inbox.first_time(session, "order-7")
    engine.dispose()

    async def ask() -> None:
        async with AsyncSession() as session:
            await inbox.first_time(session, "order-7")

    with pytest.raises(ConfigurationError, match=words):
        asyncio.run(ask())
