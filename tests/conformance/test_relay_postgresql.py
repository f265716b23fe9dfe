"""What only PostgreSQL can break: snapshots, open transactions, crashes, standbys, clones, locks."""

import threading
from contextlib import closing
from uuid import uuid4

import psycopg
import pytest
from databases import by_key, install, payloads, rows, wait_until, write
from postgresql_server import PostgresqlServer
from sqlalchemy import make_url
from standby import standby_of

from outbox.errors import ConfigurationError, MessageAtFault, Permanent
from outbox.journal.postgresql import PostgresqlLease
from outbox.tables import Place
from relay import Relay
from relay.database.postgresql import PostgresqlOutbox
from relay.logs.registry import open_log
from relay.move.contract import Work
from relay.move.postgresql import LocalPostgresqlMover
from relay.reader.contract import Limits
from relay.registration import register
from relay.status import status
from relay.topics import parse_topics
from tests.unit.transaction_pooler import TransactionPooler


@pytest.fixture
def postgresql_url(each_postgresql_url: str) -> str:
    """These tests run on every version that is there: snapshots, plans and locks are the servers' own."""
    return each_postgresql_url


@pytest.fixture
def url(postgresql_url: str) -> str:
    return install(postgresql_url)


def drain(url: str, **settings: object) -> None:
    Relay(url, url, **settings).run(once=True)


def test_an_open_transaction_stops_nobody_and_its_entries_come_when_they_are_visible(url: str):
    with psycopg.connect(url) as slow:
        slow.execute("insert into outbox (topic, key, payload) values ('orders', 'slow', 'first drawn, last seen')")
        for number in range(5):
            write(url, "orders", str(number), key="quick")
        drain(url)
        assert sorted(payloads(url)) == ["0", "1", "2", "3", "4"]
        slow.commit()
    drain(url)
    assert by_key(url) == {"quick": ["0", "1", "2", "3", "4"], "slow": ["first drawn, last seen"]}


def test_a_transaction_that_drew_its_id_early_and_took_the_lock_late_keeps_its_place(url: str):
    """INVARIANT I3: by (transaction_id, position) B would come before A, because B's id is the older one."""
    with psycopg.connect(url) as early:
        early.execute("select pg_current_xact_id()")
        write(url, "orders", "A", key="k")
        early.execute("insert into outbox (topic, key, payload) values ('orders', 'k', 'B')")
        early.commit()
    drain(url)
    assert by_key(url)["k"] == ["A", "B"]


def test_what_was_read_is_not_read_again_when_a_window_reaches_back_behind_it(url: str):
    """A window of a long transaction begins at its first position: most of what lies behind that was read before."""
    with psycopg.connect(url) as slow:
        for number in range(10):
            slow.execute(
                "insert into outbox (topic, key, payload) values ('orders', 'slow', %s)", (str(number).encode(),)
            )
            write(url, "orders", str(number), key="quick")
        drain(url)
        slow.commit()
    with closing(PostgresqlOutbox(make_url(url), Place(), name="t", lease_seconds=10)) as database:
        mover = _mover(database, url)
        mover._limits = Limits(entries=3)
        for _ in range(20):
            mover.step()
            mover._limits = Limits(entries=3)
    assert by_key(url) == {key: [str(n) for n in range(10)] for key in ("quick", "slow")}


def test_what_was_open_when_a_relay_was_registered_with_latest_is_still_delivered(url: str):
    write(url, "orders", "before")
    with psycopg.connect(url) as still_open:
        still_open.execute("insert into outbox (topic, payload) values ('orders', 'open')")
        drain(url, start="latest")
        still_open.commit()
    drain(url)
    assert payloads(url) == ["open"]


def test_the_lag_counts_what_is_committed_and_not_done(url: str):
    for number in range(10):
        write(url, "orders", str(number))
    drain(url)
    with psycopg.connect(url) as still_open:
        still_open.execute("insert into outbox (topic, payload) values ('orders', 'open')")
        assert status(url)[0].lag_messages == 0
        still_open.commit()
    write(url, "orders", "11")
    (shown,) = status(url)
    assert shown.lag_messages == 2
    assert shown.lag_seconds > 0


def test_nobody_but_the_default_writes_a_transaction_id(url: str):
    """A foreign id can be one that counts as sent: the message is lost. COPY and a hand are refused by the check."""
    with pytest.raises(psycopg.errors.CheckViolation), psycopg.connect(url) as hand:
        hand.execute("insert into outbox (topic, payload, transaction_id) values ('orders', '', '3')")
    copy = "copy outbox (topic, payload, transaction_id) from stdin"
    with (
        pytest.raises(psycopg.errors.CheckViolation),
        psycopg.connect(url) as hand,
        hand.cursor().copy(copy) as copying,
    ):
        copying.write_row(("orders", b"", "3"))
    with pytest.raises(psycopg.errors.GeneratedAlways), psycopg.connect(url) as hand:
        hand.execute("insert into outbox (position, topic, payload) values (1, 'orders', '')")


def test_a_snapshot_kept_over_a_crash_would_lose_what_reuses_its_ids(own_postgresql_server: PostgresqlServer):
    """INVARIANT I1: the server hands out the same ids again; a relay that kept its snapshot calls new entries old."""
    own_postgresql_server.settings["wal_writer_delay"] = "10000ms"
    own_postgresql_server.stop()
    own_postgresql_server.start()
    url = install(own_postgresql_server.url())
    stop = threading.Event()
    errors: list[BaseException] = []

    def run() -> None:
        try:
            Relay(url, url, lease=2).run(stop=stop)
        except BaseException as error:
            errors.append(error)

    relay = threading.Thread(target=run)
    relay.start()
    try:
        write(url, "orders", "before", key="k")
        wait_until(lambda: payloads(url) == ["before"], "moved before the crash")
        with psycopg.connect(url) as burner:
            for _ in range(200):  # ids that end without a word in the WAL that is flushed
                burner.execute("select pg_current_xact_id()")
                burner.rollback()
            burned = burner.execute("select pg_snapshot_xmax(pg_current_snapshot())::text::bigint").fetchone()
        wait_until(lambda: _seen_snapshots(url), "the relay has looked since")
        own_postgresql_server.crash()
        own_postgresql_server.start()
        write(url, "orders", "after", key="k")
        reused = rows(url, "select max(transaction_id::text::bigint) from outbox")[0]
        assert burned is not None
        assert reused[0] < burned[0], "the schedule did not make the server use ids again"
        wait_until(lambda: payloads(url) == ["before", "after"], "moved after the crash")
    finally:
        stop.set()
        relay.join(30)
    assert not errors


def _seen_snapshots(url: str) -> bool:
    """Return whether the relay's connection has run a statement after this one began."""
    with psycopg.connect(url, autocommit=True) as connection:
        row = connection.execute("select clock_timestamp()").fetchone()
        assert row is not None
        wait_until(
            lambda: bool(
                connection.execute(
                    "select 1 from pg_stat_activity where application_name = 'relay default' and query_start > %s", row
                ).fetchone()
            ),
            "the relay polls",
        )
    return True


def test_a_copy_of_the_database_is_not_the_database(url: str):
    """Snapshots of another database or cluster mean nothing: told by the registration, with what to do."""
    drain(url)
    server, name = url.rsplit("/", 1)
    with psycopg.connect(f"{server}/postgres", autocommit=True) as connection:
        connection.execute(f'create database "{name}_copy" template "{name}"')
    try:
        copy = f"{server}/{name}_copy"
        with pytest.raises(ConfigurationError, match=r"another cluster or database.*relay forget default"):
            drain(copy)
    finally:
        with psycopg.connect(f"{server}/postgres", autocommit=True) as connection:
            connection.execute(f'drop database "{name}_copy" with (force)')


def test_a_standby_is_refused(own_postgresql_server: PostgresqlServer):
    """There a snapshot lists no open transactions, so what commits later would count as read: lost."""
    install(own_postgresql_server.url())
    refusal = pytest.raises(ConfigurationError, match="standby, where snapshots leave out open transactions")
    with standby_of(own_postgresql_server) as standby, refusal:
        drain(standby.url())


def test_an_append_that_cannot_get_the_logs_lock_halves_its_chunk_keeps_its_lease_and_goes_on(url: str):
    """Without this two relays took over from each other for ever, each with an append that timed out."""
    for number in range(20):
        write(url, "orders", str(number), key="k")
    stop = threading.Event()
    relay = threading.Thread(target=lambda: Relay(url, url, lease=1).run(stop=stop))
    with psycopg.connect(url) as blocker:
        rows(url, "insert into log_identity (single) values (1) on conflict do nothing")
        blocker.execute("select 1 from log_identity for update")
        relay.start()
        try:
            step = "select coalesce(max(step), 0), coalesce(max(epoch), 0) from relay_checkpoint"
            wait_until(lambda: rows(url, step)[0][0] >= 4, "it renewed its lease in spite of the lock")
            assert rows(url, step)[0][1] == 1
            blocker.rollback()
            wait_until(lambda: len(payloads(url)) == 20, "it goes on")
        finally:
            blocker.rollback()
            stop.set()
            relay.join(30)
    assert payloads(url) == [str(n) for n in range(20)]


def test_a_record_that_the_database_swallows_takes_the_step_back_with_it(url: str):
    """INVARIANT I1: records stored must equal entries of the chunk, before the COMMIT behind the statement."""
    rows(url, "create function swallow() returns trigger language plpgsql as 'begin return null; end'")
    rows(
        url,
        "create trigger swallow before insert on log_record for each row when (new.key = 'k7')"
        " execute function swallow()",
    )
    for number in range(10):
        write(url, "orders", str(number), key=f"k{number}")
    with pytest.raises(Permanent, match="trigger or rule"):
        drain(url)
    assert payloads(url) == []
    assert status(url)[0].lag_messages == 10
    rows(url, "drop trigger swallow on log_record")
    drain(url)
    assert len(payloads(url)) == 10


def test_a_message_at_fault_in_a_large_window_is_named_behind_all_before_it(url: str):
    for number in range(9):
        write(url, "orders", str(number), key="k")
    rows(url, "insert into outbox (topic, payload, headers) values ('orders', 'bad', '\"text\"')")
    write(url, "orders", "after", key="k")
    with closing(PostgresqlOutbox(make_url(url), Place(), name="t", lease_seconds=10)) as database:
        mover = _mover(database, url)
        mover._limits = Limits(entries=4)
        with pytest.raises(MessageAtFault):
            for _ in range(50):
                mover.step()
    assert payloads(url) == [str(n) for n in range(9)]


def _mover(database: PostgresqlOutbox, url: str) -> LocalPostgresqlMover:
    log = open_log(url)
    registration, _ = register(database, name="default", topics="*", log=log.identity(), latest=False)
    lease = database.lease(registration.incarnation, f"test-{uuid4()}")
    assert isinstance(lease, PostgresqlLease)
    assert lease.take().held is not None
    mover = database.mover(
        lease,
        parse_topics("*"),
        Work("default", database.installation(), registration.incarnation, log, "exactly-once", local=True),
    )
    assert isinstance(mover, LocalPostgresqlMover)
    return mover


def test_a_transaction_pooler_is_refused(url: str):
    """A lease and a snapshot hold in one session; a transaction pooler hands statements to different ones."""
    with TransactionPooler(url) as pooled, pytest.raises(ConfigurationError, match="pooler"):
        drain(pooled)


def test_a_topic_that_another_process_makes_at_the_same_moment_is_one_topic(url: str):
    for number in range(8):
        write(url, f"topic{number % 4}", str(number))
    relays = [
        threading.Thread(target=lambda n=n: drain(url, name=f"relay{n}", topics=f"topic{n},topic{(n + 1) % 4}"))
        for n in range(4)
    ]
    for relay in relays:
        relay.start()
    for relay in relays:
        relay.join(60)
    assert rows(url, "select count(*), count(distinct name) from log_topic") == [(4, 4)]
    assert sorted(payloads(url)) == sorted(str(n) for n in range(8) for _ in range(2))
