"""Which entries a relay deletes, and which it must not: one test a rule, on both dialects."""

import contextlib
import logging
import threading
from datetime import timedelta

import psycopg
import pytest
from databases import install, rows, wait_until
from retention_road import DAY, drain, left, prune, prune_batch, write

from outbox.errors import TimedOut
from outbox.process.urls import parse_url
from outbox.tables import Place
from relay import Relay
from relay.database import open_database
from relay.registration import forget, register
from relay.retention import chores


@pytest.fixture
def url(database_url: str) -> str:
    return install(database_url)


@pytest.fixture
def server_url(postgresql_url: str) -> str:
    return install(postgresql_url)


def test_what_every_relay_has_read_and_is_old_goes(url: str):
    write(url, "old")
    write(url, "young", age=timedelta(hours=23))
    drain(url)
    prune(url)
    assert left(url) == ["young"]


def test_an_entry_that_no_relay_has_read_stays_however_old(url: str):
    """INVARIANT I7: the relay's saved position decides, not the age. Deleted, it would be lost for good (I1)."""
    write(url, "read")
    drain(url)
    write(url, "unread", age=365 * DAY)
    prune(url)
    assert left(url) == ["unread"]


def test_nothing_goes_while_no_relay_is_registered(url: str):
    """INVARIANT I1: "every relay has read it" is true of an empty set of relays."""
    write(url, "alone", age=365 * DAY)
    prune(url)
    assert left(url) == ["alone"]


def test_an_entry_that_no_relay_wants_stays(url: str):
    """INVARIANT I1: "every relay that wants it has read it" is true of what nobody wants."""
    write(url, "wanted", topic="orders")
    write(url, "unclaimed", topic="audit")
    drain(url, topics="orders")
    prune(url)
    assert left(url) == ["unclaimed"]


def test_the_slowest_relay_that_wants_an_entry_decides(url: str):
    drain(url, name="slow", topics="orders,pay*")
    for topic in ("orders", "payments", "audit"):
        write(url, topic, topic=topic)
    drain(url, name="quick", topics="*")
    prune(url)
    assert left(url) == ["orders", "payments"], "audit is only the quick one's"
    drain(url, name="slow", topics="orders,pay*")
    prune(url)
    assert left(url) == []


def test_patterns_match_as_they_do_for_the_reader(url: str):
    """A pattern taken for another one's beginning, or with a _ that matches anything, would free what is unread."""
    names = ["a", "ab", "a_b", "axb", "a.b", "A"]
    drain(url, name="slow", topics="a_*,a.b,A")
    for name in names:
        write(url, name, topic=name)
    drain(url, name="quick")
    prune(url)
    assert left(url) == ["a_b", "a.b", "A"]


def test_a_forgotten_relay_holds_nothing_back(url: str):
    drain(url, name="slow")
    write(url, "old")
    drain(url, name="quick")
    prune(url)
    assert left(url) == ["old"]
    forget(url, "slow")
    prune(url)
    assert left(url) == []


def test_when_the_last_relay_is_forgotten_nothing_goes(url: str):
    write(url, "old")
    drain(url)
    forget(url, "default")
    prune(url)
    assert left(url) == ["old"]


def test_a_relay_of_another_cluster_or_database_holds_its_entries_back(url: str):
    """INVARIANT I1: after a move its snapshot says nothing about the transactions here."""
    write(url, "old")
    drain(url)
    drain(url, name="other", topics="orders")
    for column in ("cluster", "database"):
        before = rows(url, f"select {column} from relay where name = 'other'")[0][0]
        rows(url, f"update relay set {column} = 'elsewhere' where name = 'other'")
        prune(url)
        assert left(url) == ["old"], column
        rows(url, f"update relay set {column} = ? where name = 'other'", before)
    prune(url)
    assert left(url) == []


def test_positions_are_never_used_again(url: str):
    write(url, "old")
    drain(url)
    prune(url)
    assert left(url) == []
    write(url, "next", age=timedelta(0))
    drain(url)
    assert rows(url, "select max(position) from outbox") == [(2,)]
    assert rows(url, "select count(*) from log_record") == [(2,)]


def test_batches_go_forward_over_what_has_to_stay(url: str, monkeypatch: pytest.MonkeyPatch):
    """A prefix that stays is looked at once a pass, and what lies behind it is still reached."""
    monkeypatch.setattr(chores, "FEWEST", 10)
    monkeypatch.setattr(chores, "MOST", 40)
    drain(url, topics="orders")
    for number in range(120):
        write(url, f"{number}", topic="audit")
    for number in range(25):
        write(url, f"read {number}")
    drain(url, topics="orders")
    prune(url)
    assert left(url) == [f"{number}" for number in range(120)]


def test_a_batch_tells_what_it_left_and_why(url: str):
    drain(url, name="slow", topics="orders")
    write(url, "held")
    write(url, "unclaimed", topic="audit")
    write(url, "young", age=timedelta(0))
    drain(url, name="quick", topics="orders")
    batch = prune_batch(url)
    assert (batch.seen, batch.old, batch.deleted, batch.unclaimed) == (3, 2, 0, 1)
    assert dict(batch.unread) == {"slow": 1}
    rest = prune_batch(url, batch.last)
    assert (rest.seen, rest.last) == (0, batch.last)


def test_what_stays_is_said_in_words(url: str, caplog: pytest.LogCaptureFixture):
    drain(url, name="slow", topics="orders")
    write(url, "held")
    write(url, "unclaimed", topic="audit")
    with caplog.at_level(logging.WARNING, "relay"):
        prune(url)
    assert "1 entries older than 1d stay in the outbox, because relay 'slow' is not past them" in caplog.text
    assert "1 entries older than 1d stay in the outbox, because no relay's --topics match them" in caplog.text


def test_once_prunes_at_its_end(url: str):
    write(url, "old")
    write(url, "young", age=timedelta(0))
    Relay(url, url).run(once=True)
    assert left(url) == ["young"]


def test_a_running_relay_prunes_beside_its_work(url: str):
    stop = threading.Event()
    relay = Relay(url, url, retain=timedelta(seconds=1))
    thread = threading.Thread(target=lambda: relay.run(stop=stop))
    thread.start()
    try:
        write(url, "old")
        wait_until(lambda: left(url) == [], "the old entry is deleted")
        assert rows(url, "select count(*) from log_record") == [(1,)]
    finally:
        stop.set()
        thread.join(30)
    assert not thread.is_alive()


def test_an_entry_of_an_open_window_stays(server_url: str):
    """INVARIANT I1: the window's start decides. After a crash in the middle of it, it is read again from there."""
    drain(server_url)
    write(server_url, "in the window")
    rows(
        server_url,
        "insert into relay_checkpoint (incarnation, step, epoch, backend, lease_seconds, lease_until, snapshot_from,"
        " snapshot_to, last, position) select incarnation, step + 1, epoch, 0, 0, lease_until, snapshot_from,"
        " pg_current_snapshot()::text, 1, 1 from relay_checkpoint order by step desc limit 1",
    )
    prune(server_url)
    assert left(server_url) == ["in the window"]


def test_an_entry_that_commits_behind_the_relay_stays(server_url: str):
    """INVARIANT I1: a position below the relay's, of a transaction that it has not seen, is unread."""
    drain(server_url)
    with psycopg.connect(server_url) as late:
        late.execute(
            "insert into outbox (topic, payload, created_at) values ('orders', 'late', now() - interval '9 days')"
        )
        write(server_url, "early")
        drain(server_url)
        assert rows(server_url, "select max(position) from relay_checkpoint") == [(2,)]
        late.commit()
    prune(server_url)
    assert left(server_url) == ["late"]


def test_a_registration_in_the_making_is_waited_for(server_url: str):
    """INVARIANT I1: a batch never deletes by a snapshot from before a registration that is there when it commits.

    It would take entries from the middle of what a relay with `--start earliest` reads at that moment.
    """
    write(server_url, "old")
    drain(server_url)
    deleted: list[int] = []
    with psycopg.connect(server_url) as connection:
        register_in(connection, "earliest")
        with pytest.raises(TimedOut):
            prune_batch(server_url)
        thread = threading.Thread(target=lambda: deleted.append(patient_batch(server_url)))
        thread.start()
        wait_until(
            lambda: rows(server_url, "select count(*) from pg_locks where not granted")[0][0] > 0,
            "the batch waits for the registration",
        )
        connection.commit()
        thread.join(30)
    assert deleted == [0]
    assert left(server_url) == ["old"]


def register_in(connection: psycopg.Connection, name: str) -> None:
    """Register a relay as `--start earliest` does, and leave the transaction open."""
    connection.execute(
        "with made as (insert into relay (name, incarnation, topics, log, cluster, database)"
        " select %s, gen_random_uuid(), topics, log, cluster, database from relay returning incarnation)"
        " insert into relay_checkpoint (incarnation, step, epoch, backend, lease_seconds, lease_until, snapshot_from,"
        " last, position) select incarnation, 0, 0, 0, 0, now(), '1:1:', 0, 0 from made",
        (name,),
    )


def patient_batch(url: str) -> int:
    while True:
        with contextlib.suppress(TimedOut):
            return prune_batch(url).deleted


def test_a_relay_registered_as_earliest_protects_everything_that_is_left(url: str):
    write(url, "gone")
    drain(url)
    prune(url)
    write(url, "left")
    drain(url)
    with contextlib.closing(open_database(parse_url(url), Place(None, ""), name="new", lease_seconds=10)) as database:
        register(database, name="new", topics="*", log="a log", latest=False)
    prune(url)
    assert left(url) == ["left"]


def test_a_held_snapshot_hinders_neither_pruning_nor_reading(server_url: str):
    for number in range(20):
        write(server_url, f"{number}")
    drain(server_url)
    with psycopg.connect(server_url) as reader:
        reader.execute("set transaction isolation level repeatable read")
        reader.execute("select count(*) from outbox")
        prune(server_url)
        write(server_url, "next", age=timedelta(0))
        drain(server_url)
        assert reader.execute("select count(*) from outbox").fetchone() == (20,)
    assert left(server_url) == ["next"]
    assert rows(server_url, "select count(*) from log_record") == [(21,)]


def test_the_plan_walks_the_primary_key(server_url: str):
    """On a table without statistics, and after ANALYZE, no batch may sort or scan the whole outbox."""
    drain(server_url)
    rows(
        server_url,
        "insert into outbox (topic, payload, created_at) select 'orders', 'x', now() - interval '2 days'"
        " from generate_series(1, 20000)",
    )
    for analyzed in (False, True):
        if analyzed:
            rows(server_url, "analyze outbox")
        assert "Seq Scan on outbox" not in plan(server_url)
        assert plan(server_url).count("outbox_pkey") == 2, "one scan for the slice, one for the DELETE"


def plan(url: str) -> str:
    from relay.retention.postgresql import _PRUNE  # noqa: PLC0415

    text = _PRUNE.format(outbox="outbox", relay="relay", checkpoint="relay_checkpoint")
    with psycopg.connect(url, cursor_factory=psycopg.ClientCursor) as connection:
        connection.execute("set enable_seqscan = off; set enable_bitmapscan = off")
        found = connection.execute(f"explain {text}", {"after": 0, "most": 2000, "retain": 86400}).fetchall()
        return "\n".join(row[0] for row in found)
