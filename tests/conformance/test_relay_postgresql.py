"""What only PostgreSQL can break: snapshots, open transactions, crashes, standbys, clones, locks."""

import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psycopg
import pytest
from databases import by_key, install, payloads, rows, wait_until, write
from postgresql_server import PostgresqlServer, free_port
from sqlalchemy import make_url

from outbox.errors import ConfigurationError, MessageAtFault, Permanent
from outbox.journal.postgresql import PostgresqlLease
from outbox.message import Position
from outbox.process import postgresql
from outbox.tables import Place
from relay import Relay
from relay.checkpoint import BEGINNING, Checkpoint
from relay.database.postgresql import PostgresqlOutbox
from relay.move.postgresql import LocalPostgresqlMover
from relay.reader.contract import Limits
from relay.reader.postgresql import PostgresqlReader, Selection
from relay.status import status
from relay.topics import parse_topics


@pytest.fixture
def postgresql_url(each_postgresql_url: str) -> str:
    """These tests run on every version that is there: snapshots, plans and locks are the servers' own."""
    return each_postgresql_url

@pytest.fixture
def url(postgresql_url: str) -> str:
    return install(postgresql_url)


def drain(url: str, **settings: object) -> None:
    Relay(url, url, **settings).run(once=True)


@contextmanager
def reading(url: str, topics: str = "*") -> Iterator[PostgresqlReader]:
    with closing(postgresql.connect(make_url(url), name="test")) as connection:
        yield PostgresqlReader(connection, Place(), parse_topics(topics))


def read_all(url: str, limits: Limits, *, forget_each: bool = False) -> list[list[bytes | None]]:
    """Read an outbox to its end chunk by chunk; `forget_each`: with nothing kept but the saved checkpoint."""
    checkpoint = Checkpoint(BEGINNING, None, Position(0), Position(0))
    chunks: list[list[bytes | None]] = []
    with reading(url) as first:
        reader = first
        for _ in range(10_000):
            fresh = checkpoint.snapshot_to is None
            checkpoint, selection = reader.look(checkpoint, limits)
            if selection is None:
                if fresh:
                    return chunks
                continue
            chunk = reader.fetch(selection, limits)
            checkpoint = chunk.after
            if chunk.entries:
                chunks.append([entry.message.payload for entry in chunk.entries])
            if forget_each:
                reader = PostgresqlReader(reader._connection, Place(), parse_topics("*"))
    raise AssertionError("the reader never came to the end")


@pytest.mark.parametrize("forget_each", [False, True])
@pytest.mark.parametrize("entries", [1, 2, 7, 49, 50, 51])
def test_a_checkpoint_is_restartable_at_every_chunk_of_every_size(url: str, entries: int, forget_each: bool):
    for number in range(50):
        write(url, "orders", str(number))
    chunks = read_all(url, Limits(entries=entries), forget_each=forget_each)
    assert all(len(chunk) <= entries for chunk in chunks)
    assert [payload for chunk in chunks for payload in chunk] == [str(n).encode() for n in range(50)]


def test_a_chunk_is_bounded_by_bytes_where_large_messages_follow_small_ones(url: str):
    rows(
        url,
        "insert into outbox (topic, payload) select 'orders', convert_to(repeat('s', 10), 'UTF8') from generate_series(1, 300)",
    )
    rows(
        url,
        "insert into outbox (topic, payload) select 'orders', convert_to(repeat('l', 20000), 'UTF8') from generate_series(1, 20)",
    )
    chunks = read_all(url, Limits(entries=500, bytes=50_000))
    sizes = [sum(len(payload or b"") for payload in chunk) for chunk in chunks]
    assert max(sizes) <= 50_000 + 20_000
    assert sum(len(chunk) for chunk in chunks) == 320


def test_a_message_larger_than_a_whole_chunk_goes_alone(url: str):
    rows(
        url,
        "insert into outbox (topic, payload) select 'orders', convert_to(repeat('l', 20000), 'UTF8') from generate_series(1, 3)",
    )
    assert [len(chunk) for chunk in read_all(url, Limits(bytes=1_000))] == [1, 1, 1]


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


def test_a_large_window_keeps_its_order_across_chunks_and_takeovers(url: str):
    """INVARIANT I3: in a window of many chunks the order is by position, also for ids that are older than others."""
    with psycopg.connect(url) as early:
        early.execute("select pg_current_xact_id()")
        for number in range(30):
            write(url, "orders", str(number), key="k")
        early.execute("insert into outbox (topic, key, payload) values ('orders', 'k', '30')")
        early.commit()
    for number in range(31, 40):
        write(url, "orders", str(number), key="k")
    chunks = read_all(url, Limits(entries=7), forget_each=True)
    assert [payload for chunk in chunks for payload in chunk] == [str(n).encode() for n in range(40)]


def test_what_was_read_is_not_read_again_when_a_window_reaches_back_behind_it(url: str):
    """A window of a long transaction begins at its first position: most of what lies behind that was read before."""
    with psycopg.connect(url) as slow:
        for number in range(10):
            slow.execute("insert into outbox (topic, key, payload) values ('orders', 'slow', %s)", (str(number).encode(),))
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


def test_a_relay_that_only_reads_some_topics_walks_a_large_window_of_others_to_its_end(url: str, monkeypatch):
    monkeypatch.setattr("relay.reader.postgresql.SLICE", 10)
    rows(url, "insert into outbox (topic, payload) select 'other', 'x' from generate_series(1, 95)")
    write(url, "orders", "1", key="k")
    rows(url, "insert into outbox (topic, payload) select 'other', 'x' from generate_series(1, 95)")
    write(url, "orders", "2", key="k")
    with reading(url, "orders") as reader:
        checkpoint = Checkpoint(BEGINNING, None, Position(0), Position(0))
        seen = []
        for _ in range(100):
            checkpoint, selection = reader.look(checkpoint, Limits(entries=1))
            if selection is None:
                break
            chunk = reader.fetch(selection, Limits(entries=1))
            seen += [entry.message.payload for entry in chunk.entries]
            checkpoint = chunk.after
    assert seen == [b"1", b"2"]
    assert checkpoint.snapshot_to is None


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
    with pytest.raises(psycopg.errors.CheckViolation), psycopg.connect(url) as copying:
        with copying.cursor().copy("copy outbox (topic, payload, transaction_id) from stdin") as copy:
            copy.write_row(("orders", b"", "3"))
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


def test_a_standby_is_refused(own_postgresql_server: PostgresqlServer, tmp_path: Path):
    """There a snapshot lists no open transactions, so what commits later would count as read: lost."""
    install(own_postgresql_server.url())
    own_postgresql_server.stop()
    own_postgresql_server.start()
    standby = PostgresqlServer(settings={"fsync": "off"}, port=free_port())
    try:
        standby._reachable()
        standby._run(
            "pg_basebackup", "-D", str(standby.data), "-h", "127.0.0.1", "-p", str(own_postgresql_server.port),
            "-U", "postgres", "-R", "-X", "stream", "-c", "fast",
        )  # fmt: skip
        standby.start()
        with pytest.raises(ConfigurationError, match="standby"):
            drain(standby.url())
    finally:
        standby.delete()


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
    """INVARIANT I1: records stored must equal entries of the chunk, in the same statement, before the COMMIT behind it."""
    rows(url, "create function swallow() returns trigger language plpgsql as 'begin return null; end'")
    rows(
        url,
        "create trigger swallow before insert on log_record for each row when (new.key = 'k7') execute function swallow()",
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
    from uuid import uuid4

    from relay.logs.registry import open_log
    from relay.move.contract import Work
    from relay.registration import register

    log = open_log(url)
    registration, _ = register(database, name="default", topics="*", log=log.identity(), latest=False)
    lease = database.lease(registration.incarnation, f"test-{uuid4()}")
    assert isinstance(lease, PostgresqlLease)
    assert lease.take().held is not None
    mover = database.mover(
        lease,
        parse_topics("*"),
        Work("default", database.installation(), registration.incarnation, log, "exactly-once"),
    )
    assert isinstance(mover, LocalPostgresqlMover)
    return mover


def test_a_connection_behind_a_pooler_is_refused(url: str, monkeypatch: pytest.MonkeyPatch):
    """A pooler names a server process of its own making in the handshake; statements are answered by another."""
    monkeypatch.setattr(psycopg.ConnectionInfo, "backend_pid", property(lambda self: 1))
    with pytest.raises(ConfigurationError, match="pooler"):
        drain(url)


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


def test_a_selection_before_the_first_entry_is_empty(url: str):
    write(url, "orders", "1")
    with reading(url) as reader:
        checkpoint, selection = reader.look(Checkpoint(BEGINNING, None, Position(0), Position(0)), Limits())
        assert isinstance(selection, Selection)
        assert reader.fetch(reader.before(selection, Position(1)), Limits()).entries == []
    assert checkpoint.snapshot_to is not None
