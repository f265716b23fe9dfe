"""`--concurrency N` under faults: twins, lost claims, COMMITs in doubt, partitions taken away, groups forgotten."""

import random
import threading
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from databases import rows, wait_until
from inbox_road import INSERT, TOPIC, Road, effect, message, on, running
from inbox_twins import GROUP, Twin, twins
from sqlalchemy import MetaData, create_engine, make_url, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from inbox import Delivery, Inbox
from inbox.claims import Claim, Limits, Taking
from inbox.claims.postgresql import PostgresqlDialect
from inbox.forgetting import forget
from inbox.lending import Lent
from inbox.registration import Registration
from outbox.errors import Forgotten
from outbox.message import Offset
from outbox.process.urls import parse_url, with_driver
from outbox.retry import RetryPolicy
from outbox.tables import Place, inbox_tables
from relay.logs.contract import Bounds, Partition
from relay.logs.memory import MemoryConsumer

PARTITION = Partition(TOPIC, "11111111-1111-1111-1111-111111111111", 0)


@pytest.fixture
def road(postgresql_url: str) -> Road:
    return Road(postgresql_url)


def sent_and_found(road: Road, sent: dict[str, list[str]]) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    found: dict[str, list[str]] = {}
    for one in road.effects:
        key, _, number = one.partition(":")
        found.setdefault(key, []).append(number)
    return sent, found


def put_by_chance(road: Road, chance: random.Random, count: int, keys: int) -> dict[str, list[str]]:
    """Put messages in batches, some of them twice; return their numbers by key."""
    sent: dict[str, list[str]] = {}
    number = 0
    while number < count:
        batch = []
        for _ in range(chance.randint(1, 40)):
            key = f"k{chance.randrange(keys)}"
            sent.setdefault(key, []).append(str(number))
            batch.append(message(str(number), key=key))
            if chance.random() < 0.1:
                batch.append(batch[-1])
            number += 1
        road.put(*batch)
    return sent


@pytest.mark.parametrize("concurrencies", [(3, 3, 1), (4, 2, 3)])
def test_twins_side_by_side_double_skip_and_disorder_nothing(
    road: Road, concurrencies: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """INVARIANT I4, I5: consumers that each believe they own every partition, some with one hand and some with many.

    Handlers fail and connections are cut. Each begins at a claim below which all is done, and goes on in a key only
    behind an id that is committed: so even the order of a key is kept.
    """
    monkeypatch.setattr("inbox.hands.many.CLAIM_SECONDS", 0.02)
    monkeypatch.setattr("inbox.lane.FIRST_SIZE", 3)
    monkeypatch.setattr("inbox.lane.MOST", 7)
    monkeypatch.setattr("inbox.upkeep.PRUNE_SECONDS", 0.05)
    monkeypatch.setattr("inbox.upkeep.KEEP_STEPS", 2)
    chance = random.Random(11)

    def body(delivery: Delivery[str], session: Session) -> None:
        session.execute(text(INSERT), {"body": f"{delivery.message.key}:{delivery.data}", "attempt": delivery.attempt})
        if chance.random() < 0.02:
            raise RuntimeError("by chance")
        if chance.random() < 0.02:
            session.execute(text("select pg_terminate_backend(pg_backend_pid())"))

    options: dict[str, Any] = {"retry": RetryPolicy(attempts=1000, first_seconds=0.005), "timeout_seconds": 20}
    members = [Twin(road, name, body, concurrency=n, **options) for name, n in zip("abc", concurrencies, strict=True)]
    with twins(*members):
        sent = put_by_chance(road, chance, 600, 6)
        total = sum(map(len, sent.values()))
        wait_until(lambda: len(road.effects) >= total, "all are handled", seconds=90)
        wait_until(lambda: lag(road) == 0, "all is claimed")
    sent, found = sent_and_found(road, sent)
    assert found == sent


def lag(road: Road) -> int:
    """How many records lie behind the newest claims."""
    newest = "select coalesce(sum(e), 0) from (select max(end_offset) as e from inbox_offset where partition >= 0"
    claimed = rows(road.database, f"{newest} group by incarnation, partition) as newest")[0][0]
    return sum(held.end for held in road.open_log().partitions([TOPIC]).values()) - int(claimed)


def test_too_few_connections_slow_the_hands_down_and_stop_nothing(road: Road) -> None:
    """A role with three connections to spare: one for the claims, and two of the five hands can work."""
    role = f"few_{uuid4().hex[:8]}"
    rows(road.database, f"create role {role} login password 'few' connection limit 3")
    rows(road.database, f"grant all on all tables in schema public to {role}")
    inbox = Inbox(GROUP)

    def slow(delivery: Delivery[str], session: Session) -> None:
        effect(delivery, session)
        session.execute(text("select pg_sleep(0.01)"))

    on(inbox, "def", slow, retry=RetryPolicy(attempts=1))
    road.put(*(message(str(number), key=f"k{number}") for number in range(40)))
    try:
        few = make_url(road.database).set(username=role, password="few")
        inbox.run(few.render_as_string(hide_password=False), road.log, once=True, concurrency=5)
    finally:
        rows(road.database, f"drop owned by {role}")
        rows(road.database, f"drop role {role}")
    assert sorted(road.effects, key=int) == [str(number) for number in range(40)]
    assert road.counts() == (40, 0, 0)


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("kind", ["def", "async def"])
def test_a_commit_in_doubt_is_settled_by_the_id_and_the_newest_claim(
    road: Road, kind: str, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """INVARIANT I4: of a message as of a claim, what was committed is found there, and what was not is done again."""
    monkeypatch.setattr("inbox.hands.many.CLAIM_SECONDS", 0.0)
    lock, doubts = threading.Lock(), iter([False, True] * 10)
    commit = Lent.commit

    def doubtful(self: Lent) -> None:
        with lock:
            doubtful_now = road.ids() > 0 and next(doubts, False)
        if kept or not doubtful_now:
            commit(self)
        if doubtful_now:
            raise OperationalError("commit", {}, psycopg.OperationalError("server closed the connection unexpectedly"))

    monkeypatch.setattr(Lent, "commit", doubtful)
    inbox = Inbox(GROUP)
    on(inbox, kind, effect, retry=RetryPolicy(attempts=1))
    road.put(*(message(str(number), key=f"k{number % 3}") for number in range(12)))
    inbox.run(road.database, road.log, once=True, concurrency=3)
    assert sorted(road.effects, key=int) == [str(number) for number in range(12)]
    assert lag(road) == 0
    handled, duplicates, _ = road.counts()
    assert handled + duplicates == 12


def test_a_partition_is_given_up_when_its_handlers_are_through_and_what_they_did_is_claimed(
    road: Road, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Taken away while handlers run: its next owner must not find them at work, nor handle again what they did."""
    monkeypatch.setattr("inbox.hands.many.CLAIM_SECONDS", 3600.0)
    inbox = Inbox(GROUP)
    begun, goes_on = threading.Semaphore(0), threading.Event()
    inside: list[str] = []
    told: list[tuple[list[str], int, int]] = []

    def handle(delivery: Delivery[str], session: Session) -> None:
        inside.append(delivery.data)
        begun.release()
        assert goes_on.wait(20)
        effect(delivery, session)
        inside.remove(delivery.data)

    poll = MemoryConsumer.poll

    def taking_away(self: MemoryConsumer, timeout_seconds: float) -> Any:
        if len(inside) == 2 and not told:
            goes_on.set()
            partitions = list(self._positions)
            self._listener.revoked(partitions)
            told.append((list(inside), len(road.effects), lag(road)))
            for partition in partitions:
                del self._positions[partition]
                self._turns.remove(partition)
        return poll(self, timeout_seconds)

    monkeypatch.setattr(MemoryConsumer, "poll", taking_away)
    on(inbox, "def", handle)
    road.put(*(message(f"{number}", key=f"k{number}") for number in range(8)))
    inbox.run(road.database, road.log, once=True, concurrency=2)
    ((left_inside, effects, behind),) = told
    assert (left_inside, effects) == ([], 2)
    assert behind == 6, "both were first of their partition, or the first two: the prefix is claimed"
    assert sorted(road.effects) == sorted(str(number) for number in range(8))
    assert road.counts() == (8, 0, 0)


def test_a_claim_that_was_lost_drops_what_another_consumer_is_ahead_with(
    road: Road, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes on from the newest claim; what it had in memory below that is handled by nobody a second time."""
    monkeypatch.setattr("inbox.hands.many.CLAIM_SECONDS", 0.0)
    inbox = Inbox(GROUP)
    calls: list[str] = []

    def handle(delivery: Delivery[str], session: Session) -> None:
        calls.append(delivery.data)
        if delivery.data == "0":
            # Another consumer, which has handled all up to 6 since.
            rows(
                road.database,
                "insert into inbox_offset select consumer_group, incarnation, partition, step + 1, topic, end_offset,"
                " 6, 6, 0, 0 from inbox_offset where partition = ? and incarnation <> '' and step = 0",
                delivery.partition,
            )
        effect(delivery, session)

    on(inbox, "def", handle)
    road.write(*map(str, range(10)), key="k")
    inbox.run(road.database, road.log, once=True, concurrency=2)
    assert [one for one in calls if int(one) >= 6] == ["6", "7", "8", "9"]
    assert lag(road) == 0


def test_a_predecessor_that_hangs_with_an_id_is_ended(road: Road, monkeypatch: pytest.MonkeyPatch) -> None:
    """I8: a stopped process can hold an id where no time-out of the server ends it."""
    monkeypatch.setattr("inbox.claims.SLACK_SECONDS", 1.0)
    inbox = Inbox(GROUP)
    calls: list[tuple[str, int]] = []

    def handle(delivery: Delivery[str], session: Session) -> None:
        calls.append((delivery.data, delivery.attempt))
        if delivery.data == "slow":
            threading.Event().wait(1.9)
        effect(delivery, session)

    on(inbox, "def", handle, timeout_seconds=3, retry=RetryPolicy(attempts=1))
    held = message("held", key="a")
    road.put(held, *(message("slow", key=f"k{number}") for number in range(4)))
    with psycopg.connect(road.database, application_name=f"inbox {GROUP}") as hanging:
        hanging.execute(
            "insert into inbox (consumer_group, source, message_id) values (%s, %s, %s)", (GROUP, "/shop", held.id)
        )
        inbox.run(road.database, road.log, once=True, concurrency=3)
        with pytest.raises(psycopg.OperationalError):
            hanging.execute("select 1")
    assert sorted(road.effects) == ["held", "slow", "slow", "slow", "slow"]
    assert len(calls) == 5


def test_forget_waits_for_a_handler_and_no_id_comes_behind_its_back(road: Road) -> None:
    """Ids of a group that was forgotten would be taken, by the one registered anew, for messages it has handled."""
    inbox = Inbox(GROUP)
    begun, goes_on = threading.Event(), threading.Event()

    def handle(delivery: Delivery[str], session: Session) -> None:
        begun.set()
        assert goes_on.wait(20)
        effect(delivery, session)

    on(inbox, "def", handle)
    road.put(*(message(str(number), key=f"k{number}") for number in range(8)))
    forgetting = threading.Thread(target=forget, args=(road.database, "memory://another", GROUP))
    waits = "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
    told = pytest.raises(Forgotten, match="'billing' is no longer registered")
    with told, running(inbox.run, road.database, road.log, concurrency=2):
        assert begun.wait(20)
        forgetting.start()
        wait_until(lambda: rows(road.database, f"{waits} and query ilike ?", "delete%")[0][0] == 1, "forget waits")
        goes_on.set()
        forgetting.join(30)
        assert not forgetting.is_alive()
        wait_until(lambda: not any("inbox-handlers" in one.name for one in threading.enumerate()), "it ends")
    assert road.ids() == 0
    assert rows(road.database, "select count(*) from inbox_offset")[0][0] == 0


# One message's statement


class Hand:
    """Connections by which ids are inserted and claims made directly."""

    def __init__(self, url: str) -> None:
        parsed = parse_url(url)
        self.claimer = PostgresqlDialect(Place(), GROUP)
        self.dialects = [self.claimer, *self.claimer.others(1)]
        self.engine = create_engine(with_driver(parsed))
        self.connections = [self.engine.connect() for _ in self.dialects]
        for dialect, connection in zip(self.dialects, self.connections, strict=True):
            dialect.prepare(connection, Limits(20))
        self.registration = Registration(inbox_tables(MetaData()).inbox_offset, GROUP)

    def register(self) -> None:
        with self.connections[0].begin():
            held = {PARTITION: Bounds(Offset(0), Offset(0))}
            self.registration.register(self.connections[0], held, latest=False)

    def claim(self, claim: Claim, end: int) -> None:
        with self.connections[0].begin():
            self.claimer.take(self.connections[0], Taking(PARTITION, claim, Offset(end), [], 0, 0, handled=end))

    def remember(self, offset: int, identity: Any) -> bool:
        with self.connections[1].begin():
            return self.dialects[1].remember(self.connections[1], PARTITION, Offset(offset), identity)

    def close(self) -> None:
        for connection in self.connections:
            connection.close()
        self.engine.dispose()


@pytest.fixture
def hand(road: Road) -> Any:
    hand = Hand(road.database)
    yield hand
    hand.close()


def test_an_id_is_new_once(hand: Hand, road: Road) -> None:
    hand.register()
    one, other = ("/shop", uuid4()), ("", uuid4())
    assert [hand.remember(0, one), hand.remember(1, other), hand.remember(2, one)] == [True, True, False]
    assert road.ids() == 2


def test_what_lies_below_the_newest_claim_is_not_new_though_its_id_was_pruned(hand: Hand, road: Road) -> None:
    """INVARIANT I4: a consumer can be stopped for longer than ids are kept, with messages in its hands."""
    hand.register()
    one = ("/shop", uuid4())
    assert hand.remember(2, one)
    hand.claim(Claim(0, Offset(0)), 3)
    rows(road.database, "delete from inbox")
    assert not hand.remember(2, one)
    assert hand.remember(3, ("/shop", uuid4()))


def test_without_a_registration_nothing_is_inserted(hand: Hand, road: Road) -> None:
    with pytest.raises(Forgotten, match="'billing' is no longer registered for topic 'orders'"):
        hand.remember(0, ("/shop", uuid4()))
    assert road.ids() == 0


def test_sessions_that_hang_are_ended_and_none_of_our_own_hands(hand: Hand, road: Road) -> None:
    """Ours wait for the same lock, or have waited; ended with it, they would begin again for nothing."""
    hand.register()
    with psycopg.connect(road.database, application_name=f"inbox {GROUP}") as hanging, hand.connections[1].begin():
        hanging.execute("select 1")
        hand.connections[1].execute(text("select pg_sleep(0.1)"))
        with hand.connections[0].begin():
            assert hand.claimer.end_stuck(hand.connections[0], Limits(0.05)) == 1
        assert hand.connections[1].scalar(text("select 1")) == 1
        with pytest.raises(psycopg.OperationalError):
            hanging.execute("select 1")


def test_a_message_in_hand_keeps_no_claim_and_no_registration_waiting(hand: Hand) -> None:
    hand.register()
    with hand.connections[1].begin():
        hand.dialects[1].remember(hand.connections[1], PARTITION, Offset(0), ("/shop", uuid4()))
        with hand.connections[0].begin():
            hand.connections[0].execute(text("set local lock_timeout = '1s'"))
            held = {PARTITION._replace(number=number): Bounds(Offset(0), Offset(0)) for number in range(2)}
            assert hand.registration.register(hand.connections[0], held, latest=False) is False
        hand.claim(Claim(0, Offset(0)), 0)
