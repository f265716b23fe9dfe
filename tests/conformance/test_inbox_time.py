"""Handlers that take too long, and faults that are nobody's attempt."""

import asyncio
import threading
import time
from typing import Any

import pytest
from databases import connected, rows, wait_until
from inbox_road import INSERT, Road, effect, on, running
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.orm import Session

from inbox import Delivery, Inbox
from outbox.retry import RetryPolicy
from relay.logs.memory import MemoryConsumer

AT_ONCE = RetryPolicy(first_seconds=0)


@pytest.fixture
def road(database_url: str) -> Road:
    return Road(database_url)


@pytest.fixture(params=["def", "async def"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# Time


def test_an_async_handler_that_takes_too_long_is_cancelled(road: Road) -> None:
    inbox = Inbox("billing")
    cancelled: list[int] = []

    @inbox.handler("orders", timeout_seconds=1, retry=AT_ONCE)
    async def handle(delivery: Delivery[str], connection: AsyncConnection) -> None:
        await connection.execute(text(INSERT), {"body": delivery.data, "attempt": delivery.attempt})
        if delivery.attempt < 3:
            try:
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                cancelled.append(delivery.attempt)
                raise

    road.write("one")
    inbox.run(road.database, road.log, once=True)
    assert cancelled == [1, 2]
    assert road.effects == ["one"]


def test_an_async_handler_is_cancelled_inside_a_statement(postgresql_url: str) -> None:
    road = Road(postgresql_url)
    inbox = Inbox("billing")

    @inbox.handler("orders", timeout_seconds=1, retry=AT_ONCE)
    async def handle(delivery: Delivery[str], connection: AsyncConnection) -> None:
        await connection.execute(text(INSERT), {"body": delivery.data, "attempt": delivery.attempt})
        if delivery.attempt == 1:
            await connection.execute(text("select pg_sleep(30)"))

    road.write("one")
    begun = time.monotonic()
    inbox.run(road.database, road.log, once=True)
    assert road.effects == ["one"]
    assert time.monotonic() - begun < 20


def test_a_def_handler_that_took_too_long_is_rolled_back_and_it_was_an_attempt(road: Road) -> None:
    inbox = Inbox("billing")
    attempts: list[int] = []

    @inbox.handler("orders", timeout_seconds=1, retry=AT_ONCE)
    def handle(delivery: Delivery[str], session: Session) -> None:
        attempts.append(delivery.attempt)
        effect(delivery, session)
        if delivery.attempt < 3:
            threading.Event().wait(1.1)

    road.write("one")
    inbox.run(road.database, road.log, once=True)
    assert attempts == [1, 2, 3]
    assert [row[0] for row in rows(road.database, "select attempt from effects")] == [3]


def test_the_session_ends_a_statement_or_an_idle_handler_that_lasts_too_long_and_it_was_an_attempt(
    postgresql_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inbox.claims.SLACK_SECONDS", 2.0)
    road = Road(postgresql_url)
    inbox = Inbox("billing")
    attempts: list[int] = []
    alive = "select 1 from pg_stat_activity where pid = ?"

    @inbox.handler("orders", timeout_seconds=1, retry=AT_ONCE)
    def handle(delivery: Delivery[str], session: Session) -> None:
        attempts.append(delivery.attempt)
        effect(delivery, session)
        if delivery.attempt == 1:
            session.execute(text("select pg_sleep(60)"))
        if delivery.attempt == 2:
            backend = session.scalar(text("select pg_backend_pid()"))
            wait_until(lambda: not rows(road.database, alive, backend), "the server has ended the idle session")
            session.execute(text("select 1"))

    road.write("one")
    inbox.run(road.database, road.log, once=True)
    assert attempts == [1, 2, 3]
    assert road.effects == ["one"]


def test_a_slow_handler_does_not_keep_its_member_from_the_log(road: Road, monkeypatch: pytest.MonkeyPatch) -> None:
    """A member that does not poll for long enough loses its partitions."""
    monkeypatch.setattr("inbox.loop.POLL_SECONDS", 0.01)
    polls: list[float] = []

    poll = MemoryConsumer.poll

    def counted(self: MemoryConsumer, timeout_seconds: float) -> Any:
        polls.append(timeout_seconds)
        return poll(self, timeout_seconds)

    monkeypatch.setattr(MemoryConsumer, "poll", counted)
    inbox = Inbox("billing")

    @inbox.handler("orders")
    def handle(delivery: Delivery[str]) -> None:
        before = len(polls)
        wait_until(lambda: len(polls) > before + 5, "the loop polls on")

    road.write("one")
    inbox.run(road.database, road.log, once=True)
    assert road.counts() == (1, 0, 0)


# Nobody's attempt


def test_a_deadlock_is_nobodys_attempt(postgresql_url: str, kind: str) -> None:
    road = Road(postgresql_url)
    rows(road.database, "create table account (id integer primary key, balance integer)")
    rows(road.database, "insert into account values (1, 0), (2, 0)")
    inbox = Inbox("billing")
    attempts: list[int] = []
    met = threading.Barrier(2)

    def crossed() -> None:
        with connected(road.database) as other, other.transaction():
            other.execute("set deadlock_timeout = '1h'")  # the handler's session is the one that finds it
            other.execute("update account set balance = 2 where id = 2")
            met.wait(20)
            other.execute("update account set balance = 2 where id = 1")

    thread = threading.Thread(target=crossed)

    def handle(delivery: Delivery[str], session: Session) -> None:
        attempts.append(delivery.attempt)
        session.execute(text("set local deadlock_timeout = '100ms'"))
        session.execute(text("update account set balance = 1 where id = 1"))
        if len(attempts) == 1:
            met.wait(20)
        session.execute(text("update account set balance = 1 where id = 2"))
        effect(delivery, session)

    on(inbox, kind, handle, retry=RetryPolicy(attempts=1))
    road.write("one")
    thread.start()
    inbox.run(road.database, road.log, once=True)
    thread.join(20)
    assert attempts == [1, 1]
    assert road.effects == ["one"]


def test_a_lost_connection_is_nobodys_attempt(postgresql_url: str, kind: str) -> None:
    road = Road(postgresql_url)
    inbox = Inbox("billing")
    attempts: list[int] = []

    def handle(delivery: Delivery[str], session: Session) -> None:
        effect(delivery, session)
        attempts.append(delivery.attempt)
        if len(attempts) < 4:
            backend = session.scalar(text("select pg_backend_pid()"))
            rows(road.database, "select pg_terminate_backend(?)", backend)
            try:
                session.execute(text("select 1"))
            except DBAPIError as error:
                raise LookupError("wrapped by the handler") from error

    on(inbox, kind, handle, retry=RetryPolicy(attempts=1))
    road.write("one")
    inbox.run(road.database, road.log, once=True)
    assert attempts == [1, 1, 1, 1]
    assert road.effects == ["one"]


def test_a_file_that_another_writes_to_is_nobodys_attempt(
    sqlite_url: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inbox.claims.sqlite.BUSY_SECONDS", 0.05)
    road = Road(sqlite_url)
    inbox = Inbox("billing")
    on(inbox, kind, effect, retry=RetryPolicy(attempts=1))
    road.write("one")
    with connected(road.database) as other, running(inbox.run, road.database, road.log):
        wait_until(lambda: road.ids() == 1, "the first is handled")
        other.execute("begin immediate")
        road.write("two")
        threading.Event().wait(0.3)
        other.execute("commit")
        wait_until(lambda: road.ids() == 2, "the second is handled when the file is free")
    assert road.effects == ["one", "two"]


def test_a_batch_that_lasts_too_long_is_cut_and_nothing_of_it_is_doubled(
    road: Road, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A transaction of a batch must have a bound: its session's own time-out would end it, again and again."""
    monkeypatch.setattr("inbox.lane.BATCH_SECONDS", 0.05)
    inbox = Inbox("billing")
    calls: list[str] = []

    @inbox.handler("orders")
    def handle(delivery: Delivery[str], session: Session) -> None:
        calls.append(delivery.data)
        effect(delivery, session)
        threading.Event().wait(0.02)

    road.write(*map(str, range(20)))
    inbox.run(road.database, road.log, once=True)
    assert road.effects == [str(number) for number in range(20)]
    assert len(calls) > 20
    assert road.counts() == (20, 0, 0)


def test_handlers_that_call_others_do_not_let_their_session_be_ended_as_idle(
    postgresql_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inbox.claims.SLACK_SECONDS", 1.0)
    monkeypatch.setattr("inbox.work.SLACK_SECONDS", 1.0)
    road = Road(postgresql_url)
    inbox = Inbox("billing")
    calls: list[str] = []

    @inbox.handler("orders", timeout_seconds=2, retry=RetryPolicy(attempts=1))
    def handle(delivery: Delivery[str]) -> None:
        calls.append(delivery.data)
        threading.Event().wait(0.45)

    road.write(*"abcdefgh")
    inbox.run(road.database, road.log, once=True)
    assert calls == list("abcdefgh")
