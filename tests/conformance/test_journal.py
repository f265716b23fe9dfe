"""The journal with a lease, on both dialects, and the traps that were fallen into."""

import sqlite3
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest
from databases import install, rows, wait_until
from psycopg.errors import LockNotAvailable
from sqlalchemy import make_url

from outbox.errors import Fenced, Forgotten
from outbox.journal import Lease
from outbox.journal.postgresql import PostgresqlLease, prune_steps
from outbox.journal.sqlite import SqliteLease
from outbox.process import postgresql, sqlite
from outbox.process.postgresql import Connection

COLUMNS = ("snapshot_from", "snapshot_to", "last", "position")
Opener = Callable[[str, float], Lease]


@pytest.fixture
def key() -> uuid.UUID:
    return uuid.uuid4()


@pytest.fixture
def opener(database_url: str, key: uuid.UUID) -> Iterator[Opener]:
    """Opens the lease of one key for an owner, each on a connection of its own."""
    install(database_url)
    url = make_url(database_url)
    connections: list[Connection | sqlite3.Connection] = []
    stored = key.hex if url.drivername == "sqlite" else key
    rows(
        database_url,
        "insert into relay_checkpoint (incarnation, step, epoch, backend, lease_seconds, lease_until, snapshot_from, "
        "last, position) values (?, 0, 0, 0, 0, '2000-01-01 00:00:00.000000', '1:1:', 0, 0)",
        stored,
    )

    def open_lease(owner: str, seconds: float) -> Lease:
        if url.drivername == "sqlite":
            file = sqlite.connect(url)
            connections.append(file)
            return SqliteLease(
                file, "relay_checkpoint", {"incarnation": key.hex}, owner=owner, lease_seconds=seconds, state=COLUMNS
            )
        connection = postgresql.connect(url, name="test", statement_seconds=20, lock_seconds=10)
        connections.append(connection)
        return PostgresqlLease(
            connection, "relay_checkpoint", {"incarnation": key}, owner=owner, lease_seconds=seconds, state=COLUMNS
        )

    yield open_lease
    for connection in connections:
        connection.close()


def test_one_of_two_holds_the_lease_and_the_other_learns_who(opener: Opener):
    first, second = opener("first", 60), opener("second", 60)
    assert first.take().held is not None
    taken = second.take()
    assert (taken.held, taken.holder) == (None, "first")
    assert 0 < taken.remaining_seconds <= 60


def test_a_released_lease_is_free_at_once(opener: Opener):
    first, second = opener("first", 60), opener("second", 60)
    first.take()
    first.release()
    assert second.take().held is not None


def test_the_state_goes_from_holder_to_holder(opener: Opener):
    first, second = opener("first", 60), opener("second", 60)
    first.take()
    first.advance(last=7, position=7)
    first.advance(snapshot_from="5:9:6")
    first.release()
    held = second.take().held
    assert held is not None
    assert held.state == {"snapshot_from": "5:9:6", "snapshot_to": None, "last": 7, "position": 7}


def test_who_lost_the_lease_moves_nothing(opener: Opener, database_url: str):
    """INVARIANT I6: an epoch that is no longer the newest moves no position; without the look at the epoch it would."""
    first, second = opener("first", 60), opener("second", 60)
    first.take()
    rows(database_url, "update relay_checkpoint set lease_until = '2000-01-01 00:00:00.000000'")
    held = second.take().held
    assert held is not None
    assert held.epoch == 2
    with pytest.raises(Fenced):
        first.advance(last=99)
    assert second.advance(last=1).state["last"] == 1


def test_a_lease_given_by_a_clock_set_back_since_does_not_bind_for_longer_than_its_length(
    opener: Opener, database_url: str
):
    opener("first", 60).take()
    rows(database_url, "update relay_checkpoint set lease_until = '2999-01-01 00:00:00.000000'")
    assert opener("second", 60).take().held is not None


def test_the_owner_takes_its_own_lease_again_after_a_lost_connection_with_a_higher_epoch(opener: Opener):
    lost, again = opener("me", 60), opener("me", 60)
    lost.take()
    lost.advance(last=3)
    held = again.take().held
    assert held is not None
    assert (held.epoch, held.state["last"]) == (2, 3)
    with pytest.raises(Fenced):
        lost.advance(last=4)


def test_a_forgotten_registration_is_told(opener: Opener, database_url: str):
    lease = opener("first", 60)
    rows(database_url, "delete from relay_checkpoint")
    with pytest.raises(Forgotten):
        lease.take()


@pytest.fixture
def pair(postgresql_url: str, key: uuid.UUID) -> Iterator[tuple[Connection, PostgresqlLease]]:
    """A lease on PostgreSQL that is held, and its connection."""
    install(postgresql_url)
    rows(
        postgresql_url,
        "insert into relay_checkpoint (incarnation, step, epoch, backend, lease_seconds, lease_until, snapshot_from, "
        "last, position) values (?, 0, 0, 0, 0, now(), '1:1:', 0, 0)",
        key,
    )
    with closing(postgresql.connect(make_url(postgresql_url), name="test")) as connection:
        lease = PostgresqlLease(
            connection, "relay_checkpoint", {"incarnation": key}, owner="me", lease_seconds=60, state=COLUMNS
        )
        lease.take()
        yield connection, lease


def test_a_late_insert_of_a_pruned_step_finds_no_step_to_stand_on(
    pair: tuple[Connection, PostgresqlLease], postgresql_url: str, key: uuid.UUID
):
    """With the unique key alone the late insert finds no conflict, its step being pruned: the chunk goes twice."""
    _, lease = pair
    late = {**lease.parameters}
    for _ in range(3):
        lease.advance()
    rows(postgresql_url, "delete from relay_checkpoint where step < ?", lease.held.step)
    found = rows(
        postgresql_url,
        "select count(*) from relay_checkpoint where incarnation = ? and step = ? and epoch = ?",
        key,
        late["step"],
        late["epoch"],
    )
    assert found == [(0,)]
    stale = PostgresqlLease(
        pair[0], "relay_checkpoint", {"incarnation": key}, owner="me", lease_seconds=60, state=COLUMNS
    )
    stale._held = type(lease.held)(late["step"], late["epoch"], 60, 0, {})
    with pytest.raises(Fenced):
        stale.advance(last=99)
    assert rows(postgresql_url, "select max(last) from relay_checkpoint") == [(0,)]


def test_a_statement_that_waited_behind_a_hanging_insert_while_steps_went_on_and_were_pruned_is_fenced(
    pair: tuple[Connection, PostgresqlLease], postgresql_url: str, key: uuid.UUID
):
    """Random faults do not find this schedule: `only if the newest is n` is fooled by the snapshot that waited."""
    connection, lease = pair
    stand = lease.held
    url = make_url(postgresql_url)
    with (
        closing(postgresql.connect(url, name="hanging")) as hanging,
        closing(postgresql.connect(url, name="other")) as other,
    ):
        # Somebody's insert of the next step hangs, and will be rolled back.
        hanging.execute("begin")
        hanging.execute(
            "insert into relay_checkpoint (incarnation, step, epoch, backend, lease_seconds, lease_until,"
            " snapshot_from, last, position) values (%s, %s, 9, 0, 0, now(), '1:1:', 0, 0)",
            (key, stand.step + 1),
        )
        outcome: list[object] = []

        def advance() -> None:
            try:
                outcome.append(lease.advance(last=99))
            except Fenced as fenced:
                outcome.append(fenced)

        waiting = threading.Thread(target=advance)
        waiting.start()
        try:
            wait_until(
                lambda: bool(
                    rows(
                        postgresql_url,
                        "select 1 from pg_stat_activity where pid = ? and wait_event_type = 'Lock'",
                        connection.info.backend_pid,
                    )
                ),
                "the step waits on the index",
            )
            # The steps go on (the step stood on is locked, so only without that lock could it be pruned meanwhile).
            other.execute("set lock_timeout = '300ms'")
            with pytest.raises(LockNotAvailable):
                other.execute("delete from relay_checkpoint where incarnation = %s and step <= %s", (key, stand.step))
        finally:
            hanging.execute("rollback")
            waiting.join(20)
    assert len(outcome) == 1
    assert not isinstance(outcome[0], Fenced)
    assert rows(postgresql_url, "select count(*) from relay_checkpoint where step = ?", stand.step + 1) == [(1,)]


def test_pruning_takes_a_prefix_and_never_the_newest(
    pair: tuple[Connection, PostgresqlLease], postgresql_url: str, key: uuid.UUID
):
    connection, lease = pair
    for _ in range(250):
        lease.advance()
    lowest = prune_steps(connection, "relay_checkpoint", {"incarnation": key}, newest=lease.held.step)
    kept = [row[0] for row in rows(postgresql_url, "select step from relay_checkpoint order by step")]
    assert kept == list(range(lowest, lease.held.step + 1))
    assert (
        prune_steps(connection, "relay_checkpoint", {"incarnation": key}, newest=lease.held.step, lowest=lowest)
        == lowest
    )
    lease.advance()


def test_a_commit_in_doubt_is_settled_by_the_takeover(
    pair: tuple[Connection, PostgresqlLease], postgresql_url: str, key: uuid.UUID
):
    """Reading the newest row would not wait for the insert that is still under way; the takeover does."""
    _, lease = pair
    url = make_url(postgresql_url)
    with (
        closing(postgresql.connect(url, name="in doubt")) as doubtful,
        closing(postgresql.connect(url, name="again")) as again,
    ):
        doubtful.execute("begin")
        doubtful.execute(
            "select 1 from relay_checkpoint where incarnation = %s and step = %s for update", (key, lease.held.step)
        )
        doubtful.execute(
            "insert into relay_checkpoint select incarnation, step + 1, epoch, owner, backend, lease_seconds,"
            " lease_until, snapshot_from, snapshot_to, 42, position from relay_checkpoint"
            " where incarnation = %s and step = %s",
            (key, lease.held.step),
        )
        mine = PostgresqlLease(
            again, "relay_checkpoint", {"incarnation": key}, owner="me", lease_seconds=60, state=COLUMNS
        )
        answers: list[object] = []
        taking = threading.Thread(target=lambda: answers.append(mine.take()))
        taking.start()
        wait_until(
            lambda: bool(
                rows(
                    postgresql_url,
                    "select 1 from pg_stat_activity where pid = ? and wait_event_type = 'Lock'",
                    again.info.backend_pid,
                )
            ),
            "the takeover waits for the insert under way",
        )
        doubtful.execute("commit")
        taking.join(20)
    assert mine.held.state["last"] == 42
    assert len(answers) == 1
