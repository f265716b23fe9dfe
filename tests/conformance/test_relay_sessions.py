"""What a relay's sessions, leases and logs must withstand: defaults of a role, aliases, slow logs, lost records."""

import secrets
import threading
from collections.abc import Iterator
from contextlib import closing
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from databases import by_key, install, payloads, rows, wait_until, write
from sqlalchemy import make_url

from outbox.errors import Fenced, Permanent, Retryable
from outbox.journal import Held, Lease
from outbox.message import Offset
from outbox.process import postgresql
from outbox.tables import Place
from relay import Relay
from relay.checkpoint import BEGINNING, Checkpoint
from relay.database import open_database
from relay.database.contract import OutboxDatabase
from relay.logs.builtin import BuiltinLog
from relay.logs.contract import Listener, Partition
from relay.logs.memory import MemoryProducer
from relay.logs.registry import open_log
from relay.move.contract import Mover, Work
from relay.reader.contract import Limits
from relay.reader.postgresql import PostgresqlReader
from relay.registration import register
from relay.status import status
from relay.topics import parse_topics


@pytest.fixture
def url(database_url: str) -> str:
    return install(database_url)


@pytest.fixture
def served(postgresql_url: str) -> str:
    return install(postgresql_url)


def drain(url: str, log: str | None = None, **settings: Any) -> None:
    Relay(url, log or url, **settings).run(once=True)


def name_of(url: str) -> str:
    return url.rsplit("/", 1)[1]


def test_a_role_whose_defaults_are_hostile_does_not_bend_the_relay(served: str):
    """Each of these lost, reordered or stopped something: snapshots of another isolation, statements that end early."""
    hostile = {
        "statement_timeout": "20ms",
        "lock_timeout": "20ms",
        "default_transaction_isolation": "serializable",
        "synchronous_commit": "off",
        "timezone": "Asia/Kathmandu",
        "datestyle": "SQL, DMY",
        "bytea_output": "escape",
        "client_encoding": "latin1",
        "idle_in_transaction_session_timeout": "20ms",
    }
    rows(
        served,
        "insert into outbox (topic, key, payload) select 'orders', 'k', convert_to(n || ' €', 'UTF8')"
        " from generate_series(0, 4999) as n",
    )
    ((created,),) = rows(served, "select min(created_at) from outbox")
    for setting, value in hostile.items():
        rows(served, f"alter database \"{name_of(served)}\" set {setting} = '{value}'")
    drain(served)
    with closing(open_database(make_url(served), Place(), name="t", lease_seconds=10)) as database:
        connection = database._connection
        assert connection.execute("show synchronous_commit").fetchone() == {"synchronous_commit": "on"}
        assert connection.execute("show statement_timeout").fetchone() == {"statement_timeout": "5s"}
        assert connection.execute("show lock_timeout").fetchone() == {"lock_timeout": "3s"}
        assert connection.execute("show transaction_isolation").fetchone() == {
            "transaction_isolation": "read committed"
        }
    for setting in hostile:
        rows_as_owner = make_url(served).set(database="postgres").render_as_string(hide_password=False)
        rows(rows_as_owner, f'alter database "{name_of(served)}" reset {setting}')
    assert by_key(served) == {"k": [f"{number} €" for number in range(5000)]}
    assert rows(served, "select min(time) from log_record") == [(created,)]


def test_an_alias_of_the_outboxs_own_database_is_that_database(served: str):
    write(served, "orders", "1")
    drain(served, served.replace("127.0.0.1", "localhost").replace("postgresql://", "postgresql+asyncpg://"))
    assert payloads(served) == ["1"]


def test_a_clone_of_the_outboxs_database_is_another_database(served: str, postgresql_server_url: str):
    """Same cluster, same names, same identities inside: only a lock taken here and refused there can tell."""
    clone = f"{name_of(served)}_clone"
    with psycopg.connect(postgresql_server_url, autocommit=True) as server:
        server.execute(f'create database "{clone}" template "{name_of(served)}"')
        try:
            write(served, "orders", "1")
            drain(served, served.replace(name_of(served), clone))
            assert (payloads(served), payloads(served.replace(name_of(served), clone))) == ([], ["1"])
        finally:
            server.execute(f'drop database "{clone}" with (force)')


def test_an_answer_from_another_server_process_is_a_lost_connection(served: str):
    """Behind a pooler the snapshot would be of one session and the window read on another: an older snapshot, lost."""
    with closing(_connect(served)) as connection:
        reader = PostgresqlReader(connection, Place(), parse_topics("*"))
        reader._backend = 1
        with pytest.raises(Retryable, match="another server process"):
            reader.look(Checkpoint(BEGINNING, None, 0, 0), Limits())


def _connect(url: str) -> postgresql.Connection:
    return postgresql.connect(make_url(url), name="test")


class Standing:
    """A relay's parts, with the lease taken, moving to a log in memory."""

    def __init__(self, url: str, delivery: str = "at-least-once") -> None:
        self.log_url = f"memory://{secrets.token_hex(8)}"
        self.database: OutboxDatabase = open_database(make_url(url), Place(), name="t", lease_seconds=10)
        log = open_log(self.log_url)
        registration, _ = register(self.database, name="t", topics="*", log=log.identity(), latest=False)
        self.lease: Lease = self.database.lease(registration.incarnation, str(uuid4()))
        assert self.lease.take().held is not None
        work = Work("t", self.database.installation(), registration.incarnation, log, delivery)
        self.mover: Mover = self.database.mover(self.lease, parse_topics("*"), work)

    def read(self) -> list[bytes | None]:
        records = open_log(self.log_url).tail("orders", from_start=True, follow=False)
        return [record.message.payload for record in records if record]


@pytest.fixture
def standing(url: str) -> Iterator[Standing]:
    made = Standing(url)
    yield made
    made.mover.close()
    made.database.close()


def test_the_lease_is_renewed_while_a_log_takes_its_time(url: str, standing: Standing, monkeypatch: pytest.MonkeyPatch):
    write(url, "orders", "1")
    settle, before = MemoryProducer.settle, standing.lease.held.step
    answers = iter([False, False, False])
    monkeypatch.setattr(
        MemoryProducer, "settle", lambda self, seconds: settle(self, seconds) if next(answers, True) else None
    )
    assert standing.mover.step().entries == 0  # it is on its way
    assert standing.mover.step().entries == 1
    assert standing.lease.held.step == before + 3 + 1
    assert standing.read() == [b"1"]


def test_who_may_have_lost_the_lease_by_the_clock_produces_nothing(url: str, standing: Standing):
    """INVARIANT I6: the holder stops producing before another can start; it counts from before it sent its renewal."""
    write(url, "orders", "1")
    held = standing.lease.held
    standing.lease._held = Held(held.step, held.epoch, held.seconds, 0.0, held.state)
    with pytest.raises(Fenced, match="ran out"):
        standing.mover.step()
    assert standing.read() == []


def test_a_step_that_is_lost_after_the_log_has_the_chunk_makes_a_repeat_and_no_gap(
    url: str, standing: Standing, monkeypatch: pytest.MonkeyPatch
):
    for number in range(3):
        write(url, "orders", str(number), key="k")
    advance = type(standing.lease).advance

    def lose(*_: object, **__: object) -> None:
        raise Retryable("connection lost")

    monkeypatch.setattr(type(standing.lease), "advance", lose)
    standing.mover.step()
    with pytest.raises(Retryable):
        standing.mover.step()
    monkeypatch.setattr(type(standing.lease), "advance", advance)
    Relay(url, standing.log_url, name="t")  # the same registration, on a new connection
    standing.lease.release()
    drain(url, standing.log_url, name="t")
    assert standing.read() == [b"0", b"1", b"2"] * 2


def test_at_most_once_saves_its_step_before_it_produces_so_a_crash_between_repeats_nothing(
    url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    standing = Standing(url, "at-most-once")
    write(url, "orders", "lost, as was asked for")

    def crash(*_: object) -> None:
        raise Retryable("the log went away")

    with closing(standing.database), closing(standing.mover):
        with monkeypatch.context() as broken, pytest.raises(Retryable):
            broken.setattr(MemoryProducer, "produce", crash)
            standing.mover.step()
        standing.lease.release()
    write(url, "orders", "sent")
    drain(url, standing.log_url, name="t", delivery="at-most-once")
    assert standing.read() == [b"sent"]
    assert status(url)[0].maybe_lost == 1, "the one, and not what arrived"
    assert "of 1 messages up to position 1 some may be lost: the log went away" in caplog.text


class Everything(Listener):
    """Reads every partition from its first offset."""

    def assigned(self, partitions: Any) -> dict[Partition, Offset]:
        return dict.fromkeys(partitions, Offset(0))

    def revoked(self, partitions: Any) -> None:
        pass


def test_a_reader_of_the_built_in_log_that_finds_a_gap_stops_with_words(url: str):
    """INVARIANT I7: offsets are dense, so a gap is lost records; without the look they would be passed over unseen."""
    for number in range(5):
        write(url, "orders", str(number), key="k")
    drain(url)
    rows(url, 'delete from log_record where "offset" = 2')
    log = open_log(url)
    assert isinstance(log, BuiltinLog)
    told = r"lost records of topic 'orders'.*offset 2 was to be read and 3"
    with closing(log.consumer("g", ["orders"], Everything())) as consumer, pytest.raises(Permanent, match=told):
        while consumer.poll(5) is None:
            pass


def test_several_services_relays_write_into_one_log_without_a_hole(url: str):
    """Appends into one log take one lock first: two that draw offsets at once would draw the same ones."""
    for number in range(200):
        write(url, f"topic{number % 2}", str(number), key=str(number % 5))
    relays = [
        threading.Thread(target=drain, args=(url,), kwargs={"name": f"r{n}", "topics": "topic*", "lease": 30.0})
        for n in range(2)
    ]
    for relay in relays:
        relay.start()
    for relay in relays:
        relay.join(60)
    found = rows(url, 'select topic_id, partition, "offset" from log_record order by 1, 2, 3')
    expected: dict[tuple[int, int], int] = {}
    for topic, partition, offset in found:
        assert offset == expected.get((topic, partition), 0)
        expected[topic, partition] = offset + 1
    assert len(found) == 400


def test_an_append_waits_for_another_services_append_and_goes_on_behind_it(served: str):
    """Without the log's lock both draw the same offset, and the later one is fenced by the unique key."""
    write(served, "orders", "1", key="k")
    drain(served)
    write(served, "orders", "2", key="k")
    errors: list[BaseException] = []

    def run() -> None:
        try:
            drain(served, lease=60.0)
        except BaseException as error:
            errors.append(error)

    relay = threading.Thread(target=run)
    with psycopg.connect(served) as another:
        another.execute("select 1 from log_identity for update")
        another.execute(
            'insert into log_record select topic_id, partition, "offset" + 1, sequence, epoch, gen_random_uuid(),'
            " '/another', key, type, content_type, time, headers, 'another' from log_record"
        )
        relay.start()
        waits = "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and application_name = ?"
        wait_until(lambda: rows(served, waits, "relay default") == [(1,)], "the relay's append waits")
        another.commit()
    relay.join(60)
    assert errors == []
    assert by_key(served) == {"k": ["1", "another", "2"]}
