"""Handlers that fail, take too long, or do what they must not: what is rolled back, tried again, and stopped."""

import asyncio
import contextlib
import threading
import time
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import pytest
from databases import connected, rows, wait_until
from inbox_road import INSERT, TOPIC, Road, effect, message, on, running
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.orm import Session

from inbox import Delivery, Inbox, Reject, Retry
from outbox.errors import Permanent
from outbox.retry import RetryPolicy
from relay.logs.memory import MemoryConsumer
from relay.logs.partition import partition_of

AT_ONCE = RetryPolicy(first_seconds=0)


@pytest.fixture
def road(database_url: str) -> Road:
    return Road(database_url)


@pytest.fixture(params=["def", "async def"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def key_of(partition: int) -> str:
    """A key whose messages go to this of four partitions."""
    return next(key for key in map(str, range(1000)) if partition_of(key, message("").id, 4) == partition)


def test_a_handler_that_fails_in_the_middle_of_a_batch_costs_no_other_message(road: Road, kind: str) -> None:
    """The batch is rolled back and is no attempt; its messages are handled one by one."""
    inbox = Inbox("billing")
    calls: list[tuple[str, int, bool]] = []

    def fails_once(delivery: Delivery[str], session: Session) -> None:
        calls.append((delivery.data, delivery.attempt, delivery.redelivered))
        effect(delivery, session)
        if delivery.data == "two" and calls.count(("two", 1, True)) == 1 and delivery.attempt == 1:
            raise RuntimeError("fails in the batch, and once more alone")
        if delivery.data == "two" and not delivery.redelivered:
            raise RuntimeError("fails in the batch")

    on(inbox, kind, fails_once, retry=AT_ONCE)
    road.write("one", "two", "three")
    inbox.run(road.database, road.log, once=True)
    assert road.effects == ["one", "two", "three"]
    assert calls == [
        ("one", 1, False),
        ("two", 1, False),
        ("one", 1, True),
        ("two", 1, True),
        ("two", 2, True),
        ("three", 1, True),
    ]
    assert [row[0] for row in rows(road.database, "select attempt from effects order by number")] == [1, 2, 1]
    assert road.counts() == (3, 0, 0)


def test_a_message_out_of_attempts_stops_its_partition_and_no_other(
    road: Road, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    inbox = Inbox("billing")
    attempts: list[int] = []

    def refuses(delivery: Delivery[str], session: Session) -> None:
        effect(delivery, session)
        if delivery.data == "bad":
            attempts.append(delivery.attempt)
            raise RuntimeError("no such customer")

    on(inbox, kind, refuses, retry=RetryPolicy(attempts=3, first_seconds=0))
    road.put(message("before", key=key_of(0)))
    bad = message("bad", key=key_of(0))
    road.put(bad, message("after", key=key_of(0)), message("other", key=key_of(1)))
    with pytest.raises(Permanent) as raised:
        inbox.run(road.database, road.log, once=True)
    assert sorted(road.effects) == ["before", "other"]
    assert attempts == [1, 1, 2, 3]  # the first in the batch, which was no attempt
    for words in (str(bad.id), "topic orders", "partition 0", "offset 1", "failed 3 times", "no such customer"):
        assert words in str(raised.value)
        assert words in caplog.text
    assert road.counts() == (2, 0, 0)


def test_a_restart_begins_again_at_attempt_1_and_goes_on_where_it_stopped(road: Road) -> None:
    inbox = Inbox("billing")
    attempts: list[int] = []
    mended = threading.Event()

    def handle(delivery: Delivery[str], session: Session) -> None:
        effect(delivery, session)
        if delivery.data == "bad":
            attempts.append(delivery.attempt)
            if not mended.is_set():
                raise RuntimeError("not mended")

    on(inbox, "def", handle, retry=RetryPolicy(attempts=2, first_seconds=0), batch=False)
    road.write("one", "bad", "three")
    with pytest.raises(Permanent):
        inbox.run(road.database, road.log, once=True)
    mended.set()
    inbox.run(road.database, road.log, once=True)
    assert attempts == [1, 2, 1]
    assert road.effects == ["one", "bad", "three"]


def test_a_rejected_message_is_not_tried_again(road: Road, kind: str) -> None:
    inbox = Inbox("billing")
    calls: list[str] = []

    def rejects(delivery: Delivery[str], session: Session) -> None:
        calls.append(delivery.data)
        effect(delivery, session)
        raise Reject("the order has no lines")

    on(inbox, kind, rejects, retry=AT_ONCE)
    road.write("one")
    with pytest.raises(Permanent, match=r"was rejected \(Reject: the order has no lines\)"):
        inbox.run(road.database, road.log, once=True)
    assert calls == ["one"]
    assert road.effects == []
    assert road.ids() == 0


@dataclass(frozen=True)
class Placed:
    id: int


@pytest.mark.parametrize(
    ("payload", "content_type", "words"),
    [
        (b"{", "application/json", "not application/json"),
        (b"\xff", "text/plain; charset=utf-8", "not text/plain"),
        (b'{"id": "x"}', "application/json", "id: expected int, got a text"),
        (b"{}", "application/json", "id missing"),
        (None, "application/json", "expected an object, got null"),
    ],
)
def test_a_payload_that_does_not_decode_is_the_messages_fault(
    sqlite_url: str, payload: bytes, content_type: str, words: str
) -> None:
    road = Road(sqlite_url)
    inbox = Inbox("billing")

    @inbox.handler("orders", retry=AT_ONCE)
    def handle(delivery: Delivery[Placed], session: Session) -> None:
        raise AssertionError("the handler must not see it")

    road.put(replace(message(""), payload=payload, content_type=content_type))
    with pytest.raises(Permanent, match="was rejected") as raised:
        inbox.run(road.database, road.log, once=True)
    assert words in str(raised.value)


def test_a_payload_that_is_decoded_by_the_handler_is_the_messages_fault_too(sqlite_url: str) -> None:
    road = Road(sqlite_url)
    inbox = Inbox("billing")
    on(inbox, "def", effect, retry=AT_ONCE)
    road.put(message("{", content_type="application/json"))
    with pytest.raises(Permanent, match="was rejected"):
        inbox.run(road.database, road.log, once=True)


def test_retries_keep_the_order_of_their_partition_while_others_flow(road: Road, kind: str) -> None:
    inbox = Inbox("billing")
    others_done = threading.Event()

    def handle(delivery: Delivery[str], session: Session) -> None:
        if delivery.data == "slow" and not others_done.is_set():
            raise Retry("the others first", after=timedelta(seconds=0.01))
        effect(delivery, session)

    on(inbox, kind, handle, retry=RetryPolicy(attempts=10_000))
    road.put(*(message(one, key=key_of(0)) for one in ("slow", "after slow")))
    with running(inbox.run, road.database, road.log):
        wait_until(lambda: road.open_log().committed("billing") is not None, "it runs")
        road.put(*(message(f"other {number}", key=key_of(1)) for number in range(3)))
        wait_until(lambda: len(road.effects) == 3, "the other partition flows")
        others_done.set()
        wait_until(lambda: len(road.effects) == 5, "the retry is handled")
    assert road.effects == ["other 0", "other 1", "other 2", "slow", "after slow"]


def test_messages_of_a_handler_without_batch_have_a_transaction_each(road: Road, kind: str) -> None:
    inbox = Inbox("billing")
    on(inbox, kind, effect, batch=False, type="Alone")

    @inbox.handler(TOPIC, type="Placed") if kind == "def" else (lambda function: function)
    def together(delivery: Delivery[str], session: Session) -> None:
        effect(delivery, session)

    if kind == "async def":

        @inbox.handler(TOPIC, type="Placed")
        async def together_async(delivery: Delivery[str], session: AsyncSession) -> None:
            await session.run_sync(lambda inner: effect(delivery, inner))

    types = ["Placed", "Placed", "Alone", "Alone", "Placed", "Placed"]
    road.put(*(message(str(number), type=type_) for number, type_ in enumerate(types)))
    inbox.run(road.database, road.log, once=True)
    assert road.effects == ["0", "1", "2", "3", "4", "5"]
    steps = rows(
        road.database,
        "select begin_offset, end_offset from inbox_offset where step > 0 and partition >= 0 order by step",
    )
    assert [tuple(row) for row in steps] == [(0, 2), (2, 3), (3, 4), (4, 6)]


# A handler that ends the transaction it was lent


def commit_session(session: Session) -> None:
    session.commit()


def roll_session_back(session: Session) -> None:
    session.rollback()


def close_session(session: Session) -> None:
    session.close()


def commit_connection(session: Session) -> None:
    session.connection().commit()


def commit_connection_and_go_on(session: Session) -> None:
    connection = session.connection()
    try:
        connection.commit()
    except Exception:
        connection.rollback()
    connection.execute(text(INSERT), {"body": "behind its back", "attempt": 0})
    connection.commit()


def roll_connection_back(session: Session) -> None:
    session.connection().rollback()


def begin_and_commit(session: Session) -> None:
    with session.begin() if not session.in_transaction() else session.get_transaction():
        session.execute(text(INSERT), {"body": "inside", "attempt": 0})


@pytest.mark.parametrize(
    "misdeed",
    [
        commit_session,
        roll_session_back,
        close_session,
        commit_connection,
        commit_connection_and_go_on,
        roll_connection_back,
        begin_and_commit,
    ],
)
def test_a_handler_that_ends_its_transaction_is_told_so_and_nothing_is_kept(
    road: Road, kind: str, misdeed: Any
) -> None:
    inbox = Inbox("billing")

    def handle(delivery: Delivery[str], session: Session) -> None:
        effect(delivery, session)
        misdeed(session)

    on(inbox, kind, handle, retry=RetryPolicy(attempts=2, first_seconds=0))
    road.write("one")
    words = "failed 2 times" if misdeed is commit_connection_and_go_on else "the transaction is the inbox's"
    with pytest.raises(Permanent, match=words):
        inbox.run(road.database, road.log, once=True)
    assert road.effects == []
    assert road.ids() == 0
    assert road.counts() == (0, 0, 0)


def test_an_error_of_the_database_that_the_handler_caught_is_not_committed_around(
    postgresql_url: str, kind: str
) -> None:
    """PostgreSQL answers COMMIT with ROLLBACK then, and the driver says nothing: the message would count as handled."""
    road = Road(postgresql_url)
    inbox = Inbox("billing")

    def swallows(delivery: Delivery[str], session: Session) -> None:
        effect(delivery, session)
        with contextlib.suppress(DBAPIError):
            session.connection().execute(text("select 1 / 0"))

    on(inbox, kind, swallows, retry=RetryPolicy(attempts=2, first_seconds=0))
    road.write("one", "two")
    with pytest.raises(Permanent, match="caught an error of the database"):
        inbox.run(road.database, road.log, once=True)
    assert road.effects == []
    assert road.counts() == (0, 0, 0)


def test_a_savepoint_of_the_handlers_own_may_fail(road: Road, kind: str) -> None:
    inbox = Inbox("billing")

    def tries(delivery: Delivery[str], session: Session) -> None:
        with pytest.raises(IntegrityError), session.begin_nested():
            again = "select consumer_group, source, message_id from inbox"
            session.execute(text(f"insert into inbox (consumer_group, source, message_id) {again}"))
        effect(delivery, session)

    on(inbox, kind, tries)
    road.write("one", "two")
    inbox.run(road.database, road.log, once=True)
    assert road.effects == ["one", "two"]


def test_a_commit_that_a_deferred_constraint_refuses_is_an_attempt(postgresql_url: str, kind: str) -> None:
    road = Road(postgresql_url)
    reference = "integer references parent (id) deferrable initially deferred"
    rows(road.database, "create table parent (id integer primary key)")
    rows(road.database, f"create table child (id {reference})")
    inbox = Inbox("billing")
    calls: list[int] = []

    def orphan(delivery: Delivery[str], session: Session) -> None:
        calls.append(delivery.attempt)
        session.execute(text("insert into child values (1)"))

    on(inbox, kind, orphan, retry=RetryPolicy(attempts=2, first_seconds=0))
    road.write("one")
    with pytest.raises(Permanent, match=r"(?i)failed 2 times.*foreign key"):
        inbox.run(road.database, road.log, once=True)
    assert calls == [1, 2]


# Time


def test_an_async_handler_that_takes_too_long_is_cancelled(road: Road) -> None:
    inbox = Inbox("billing")
    cancelled: list[int] = []

    @inbox.handler("orders", timeout_seconds=0.05, retry=AT_ONCE)
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

    @inbox.handler("orders", timeout_seconds=0.2, retry=AT_ONCE)
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

    @inbox.handler("orders", timeout_seconds=0.05, retry=AT_ONCE)
    def handle(delivery: Delivery[str], session: Session) -> None:
        attempts.append(delivery.attempt)
        effect(delivery, session)
        if delivery.attempt < 3:
            threading.Event().wait(0.1)

    road.write("one")
    inbox.run(road.database, road.log, once=True)
    assert attempts == [1, 2, 3]
    assert [row[0] for row in rows(road.database, "select attempt from effects")] == [3]


def test_the_session_ends_a_statement_or_an_idle_handler_that_lasts_too_long_and_it_was_an_attempt(
    postgresql_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inbox.claims.SLACK_SECONDS", 0.2)
    road = Road(postgresql_url)
    inbox = Inbox("billing")
    attempts: list[int] = []

    @inbox.handler("orders", timeout_seconds=0.1, retry=AT_ONCE)
    def handle(delivery: Delivery[str], session: Session) -> None:
        attempts.append(delivery.attempt)
        effect(delivery, session)
        if delivery.attempt == 1:
            session.execute(text("select pg_sleep(60)"))
        if delivery.attempt == 2:
            threading.Event().wait(0.6)
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
    monkeypatch.setattr("inbox.claims.SLACK_SECONDS", 0.4)
    monkeypatch.setattr("inbox.work.SLACK_SECONDS", 0.4)
    road = Road(postgresql_url)
    inbox = Inbox("billing")
    calls: list[str] = []

    @inbox.handler("orders", timeout_seconds=0.5, retry=RetryPolicy(attempts=1))
    def handle(delivery: Delivery[str]) -> None:
        calls.append(delivery.data)
        threading.Event().wait(0.25)

    road.write(*"abcdefgh")
    inbox.run(road.database, road.log, once=True)
    assert calls == list("abcdefgh")
