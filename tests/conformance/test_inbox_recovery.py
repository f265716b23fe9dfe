"""Crashes at the worst moment, twins, and sessions that hang: nothing is lost, doubled or out of order."""

import random
import threading
from typing import Any

import psycopg
import pytest
from databases import rows, wait_until
from inbox_road import INSERT, Road, effect, message, on, running
from inbox_twins import GROUP, Twin, twins
from postgresql_server import PostgresqlServer
from sqlalchemy import Connection, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from inbox import Delivery, Inbox
from inbox.lending import Lent
from inbox.registration import Registration
from outbox.errors import ConfigurationError
from outbox.retry import RetryPolicy
from relay.logs.memory import MemoryConsumer
from tests.unit.transaction_pooler import TransactionPooler


@pytest.fixture
def road(database_url: str) -> Road:
    return Road(database_url)


# Crashes


def test_a_crash_between_the_handlers_commit_and_the_logs_repeats_nothing(
    road: Road, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log's own offset is a report. Resumed from there, the group would go through everything again."""
    monkeypatch.setattr(MemoryConsumer, "commit", lambda self, offsets: None)
    inbox = Inbox(GROUP)
    on(inbox, "def", effect)
    road.write("one", "two")
    inbox.run(road.database, road.log, once=True)
    assert road.open_log().committed(GROUP) == {}
    road.write("three")
    inbox.run(road.database, road.log, once=True)
    assert road.effects == ["one", "two", "three"]
    assert road.counts() == (3, 0, 0)


def test_offsets_are_reported_to_the_log(road: Road) -> None:
    inbox = Inbox(GROUP)
    on(inbox, "def", effect)
    road.write("one", "two")
    inbox.run(road.database, road.log, once=True)
    assert sum(road.open_log().committed(GROUP).values()) == 2


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("kind", ["def", "async def"])
def test_a_commit_in_doubt_is_settled_by_the_newest_claim(
    road: Road, kind: str, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    doubts = iter([False, True, False, True])
    commit = Lent.commit

    def doubtful(self: Lent) -> None:
        doubtful_now = next(doubts, False) and road.ids() > 0
        if kept or not doubtful_now:
            commit(self)
        if doubtful_now:
            lost = psycopg.OperationalError if not road.database.startswith("sqlite") else Busy
            raise OperationalError("commit", {}, lost("server closed the connection unexpectedly"))

    monkeypatch.setattr(Lent, "commit", doubtful)
    inbox = Inbox(GROUP)
    on(inbox, kind, effect, batch=False, retry=RetryPolicy(attempts=1))
    road.write(*map(str, range(8)))
    inbox.run(road.database, road.log, once=True)
    assert road.effects == [str(number) for number in range(8)]
    assert road.counts() == (8, 0, 0)


class Busy(Exception):
    sqlite_errorcode = 5


@pytest.mark.parametrize("concurrency", [1, 3])
def test_a_server_that_crashes_and_comes_back_is_waited_for(
    own_postgresql_server: PostgresqlServer, concurrency: int
) -> None:
    """I8: lag returns to zero with no human hand; and it was nobody's attempt."""
    road = Road(own_postgresql_server.url())
    inbox = Inbox(GROUP)
    handled = threading.Event()

    def handle(delivery: Delivery[str], session: Session) -> None:
        effect(delivery, session)
        handled.set()

    on(inbox, "def", handle, retry=RetryPolicy(attempts=1))
    with running(inbox.run, road.database, road.log, concurrency=concurrency):
        for number in range(3):
            handled.clear()
            road.write(*(f"{number}-{place}" for place in range(50)))
            assert handled.wait(20)
            own_postgresql_server.crash()
            own_postgresql_server.start()
        wait_until(lambda: len(road.effects) == 150, "all are handled")
    assert road.effects == [f"{number}-{place}" for number in range(3) for place in range(50)]


# Twins


def test_twins_double_skip_and_disorder_nothing(road: Road, monkeypatch: pytest.MonkeyPatch) -> None:
    """INVARIANT I4, I5: three consumers that each believe they own every partition; handlers fail, connections are cut.

    Ids alone would keep effects single; claims keep a consumer from going on behind a batch that it lost.
    """
    monkeypatch.setattr("inbox.lane.FIRST_SIZE", 3)
    monkeypatch.setattr("inbox.lane.MOST", 7)
    monkeypatch.setattr("inbox.upkeep.PRUNE_SECONDS", 0.05)
    monkeypatch.setattr("inbox.upkeep.KEEP_STEPS", 2)
    chance = random.Random(7)
    on_sqlite = road.database.startswith("sqlite")

    def body(delivery: Delivery[str], session: Session) -> None:
        session.execute(text(INSERT), {"body": f"{delivery.message.key}:{delivery.data}", "attempt": delivery.attempt})
        if chance.random() < 0.02:
            raise RuntimeError("by chance")
        if chance.random() < 0.02 and not on_sqlite:
            session.execute(text("select pg_terminate_backend(pg_backend_pid())"))

    options: dict[str, Any] = {"retry": RetryPolicy(attempts=1000, first_seconds=0.005), "timeout_seconds": 20}
    count, keys = (400, 4) if on_sqlite else (800, 6)
    sent: dict[str, list[str]] = {}
    with twins(*(Twin(road, name, body, **options) for name in "abc")):
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
        wait_until(lambda: len(road.effects) >= number, "all are handled", seconds=90)
    found: dict[str, list[str]] = {}
    for one in road.effects:
        key, _, body_ = one.partition(":")
        found.setdefault(key, []).append(body_)
    assert found == sent
    assert road.counts()[0] == number


def test_old_claims_are_pruned_and_the_newest_stays(road: Road, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inbox.upkeep.PRUNE_SECONDS", 0.0)
    monkeypatch.setattr("inbox.upkeep.KEEP_STEPS", 10)
    inbox = Inbox(GROUP)
    on(inbox, "def", effect, batch=False)
    road.write(*map(str, range(100)))
    inbox.run(road.database, road.log, once=True)
    claims = [row[0] for row in rows(road.database, "select step from inbox_offset where step > 0 and partition >= 0")]
    assert 100 in claims
    assert len(claims) <= 21
    inbox.run(road.database, road.log, once=True)
    assert len(road.effects) == 100


@pytest.mark.parametrize("hangs_in", ["step > 0", "incarnation = ''"])
def test_a_predecessor_that_hangs_in_its_transaction_is_ended(
    postgresql_url: str, hangs_in: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I8: a stopped process can hold its claim where no time-out of the server ends it."""
    monkeypatch.setattr("inbox.claims.SLACK_SECONDS", 2.0)
    road = Road(postgresql_url)
    inbox = Inbox(GROUP)
    on(inbox, "def", effect, timeout_seconds=1)
    road.write("one")
    inbox.run(road.database, road.log, once=True)
    road.write("two")
    with psycopg.connect(road.database, application_name=f"inbox {GROUP}") as hanging:
        hanging.execute(f"select * from inbox_offset where {hangs_in} for update")
        inbox.run(road.database, road.log, once=True)
        with pytest.raises(psycopg.OperationalError):
            hanging.execute("select 1")
    assert road.effects == ["one", "two"]


def test_a_process_that_was_stopped_in_a_transaction_of_its_own_goes_on(
    postgresql_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I8: the server ends a session that idles in a transaction, with an error of no class of lost connections."""
    monkeypatch.setattr("inbox.claims.SLACK_SECONDS", 1.0)
    road = Road(postgresql_url)
    inbox = Inbox(GROUP)
    on(inbox, "def", effect, timeout_seconds=1)
    register, ended = Registration.register, []

    def stopped(self: Registration, connection: Connection, *arguments: Any, **named: Any) -> bool:
        if not ended:
            ended.append(connection.scalar(text("select pg_backend_pid()")))
            alive = "select 1 from pg_stat_activity where pid = ?"
            wait_until(lambda: not rows(road.database, alive, ended[0]), "the server has ended the session")
        return register(self, connection, *arguments, **named)

    monkeypatch.setattr(Registration, "register", stopped)
    road.write("one")
    inbox.run(road.database, road.log, once=True)
    assert ended
    assert road.effects == ["one"]


def test_a_read_only_database_is_refused_in_words(postgresql_url: str) -> None:
    road = Road(postgresql_url)
    name = postgresql_url.rsplit("/", 1)[1]
    rows(road.database, f"alter database {name} set default_transaction_read_only = on")
    inbox = Inbox(GROUP)
    on(inbox, "def", effect)
    road.write("one")
    with pytest.raises(ConfigurationError, match="read-only"):
        inbox.run(road.database, road.log, once=True)


def test_a_transaction_pooler_is_refused_in_words(postgresql_url: str) -> None:
    road = Road(postgresql_url)
    inbox = Inbox(GROUP)
    on(inbox, "def", effect)
    with TransactionPooler(road.database) as pooled, pytest.raises(ConfigurationError, match="pooler"):
        inbox.run(pooled, road.log, once=True)
