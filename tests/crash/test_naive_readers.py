"""Proof that the invariants' tests can fail: the naive readers fail under the same workload, and a right one passes."""

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager

import naive
import psycopg
import pytest
from checker import DONE, Arrival, Done, Report, Step, check_epochs, check_offsets, check_steps, compare
from naive import ByCreatedAt, ByGapTimeout, ByPosition, BySkipLocked, ByTransaction, ByWindow, NaiveReader
from writers import Writers, hold_open

from tests.databases import wait_until

BOUND_SECONDS = 60.0


def report_on(url: str) -> Report:
    with psycopg.connect(url) as connection:
        copied = connection.execute("select topic, 0, place, key, payload from copied order by place").fetchall()
        return compare([Done(*row) for row in connection.execute(DONE)], [Arrival(*row) for row in copied])


@contextmanager
def reading(readers: list[NaiveReader], idle: threading.Event) -> Iterator[None]:
    """Let readers read in threads, until the block ends and there is nothing left for them."""
    failures: list[Exception] = []

    def read(reader: NaiveReader) -> None:
        try:
            is_last = False
            while reader.step() or not is_last:
                # Asked before the next step: what was committed while a step found nothing is there for one more.
                is_last = idle.is_set()
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=read, args=(reader,)) for reader in readers]
    for thread in threads:
        thread.start()
    yield
    idle.set()
    for thread in threads:
        thread.join(60)
    assert not failures, failures


def run(url: str, kind: type[NaiveReader], *, count: int, seed: int, transactions: int) -> Report:
    with ExitStack() as stack:
        readers = [stack.enter_context(closing(kind(url, seed + number))) for number in range(count)]
        with reading(readers, threading.Event()):
            Writers(url, seed=seed, transactions=transactions, seconds=20).start().finish()
    return report_on(url)


@pytest.fixture
def copied(database: str) -> str:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(naive.SCHEMA)
    return database


@pytest.mark.parametrize(
    ("kind", "readers", "fault"),
    [
        (ByPosition, 1, "lost"),
        (ByTransaction, 1, "disordered"),
        (BySkipLocked, 2, "disordered"),
        (ByCreatedAt, 1, "lost"),
        (ByGapTimeout, 1, "lost"),
    ],
)
def test_a_naive_reader_is_found_out(copied: str, kind: type[NaiveReader], readers: int, fault: str):
    deadline = time.monotonic() + BOUND_SECONDS
    for seed in range(100):
        with psycopg.connect(copied, autocommit=True) as connection:
            connection.execute("truncate outbox, done, copied")
            connection.execute("update counters set version = 0")
        report = run(copied, kind, count=readers, seed=seed, transactions=60)
        assert report.committed > 100
        if fault in report.wrong():
            return
        assert time.monotonic() < deadline, f"{kind.__name__} was not found out: {report}"


def test_the_reader_by_windows_passes(copied: str):
    report = run(copied, ByWindow, count=1, seed=7, transactions=150)
    assert report.committed > 500
    assert not report.wrong(), report


def insert(connection: psycopg.Connection, key: str, version: int, writer: int) -> None:
    connection.execute("insert into done values (%s, %s, 'orders', %s, %s)", [writer, version, key, version])
    connection.execute(
        "insert into outbox (topic, key, payload) values ('orders', %s,"
        " convert_to(json_build_object('writer', %s::int, 'n', %s::int, 'version', %s::int)::text, 'UTF8'))",
        [key, writer, version, version],
    )


def drain(copied: str, reader: NaiveReader, arrive: int) -> None:
    """Read until so many have arrived, and once more. Any open transaction of the server may keep one waiting."""
    wait_until(lambda: reader.step() >= 0 and report_on(copied).arrived == arrive, f"{arrive} messages")
    reader.step()


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [(ByPosition, {"lost": 1}), (ByCreatedAt, {"lost": 1}), (ByWindow, {}), (ByTransaction, {})],
)
def test_by_hand_a_position_that_commits_late(copied: str, kind: type[NaiveReader], wrong: dict[str, int]):
    """The first of two positions commits last."""
    with closing(kind(copied)) as reader, psycopg.connect(copied) as slow, psycopg.connect(copied) as quick:
        insert(slow, "key-01", 1, 1)
        insert(quick, "key-02", 1, 2)
        quick.commit()
        reader.step()
        slow.commit()
        drain(copied, reader, 2 - len(wrong))
        assert report_on(copied).wrong() == wrong


@pytest.mark.parametrize(("kind", "wrong"), [(ByTransaction, {"disordered": 1}), (ByWindow, {}), (ByPosition, {})])
def test_by_hand_an_early_xid_with_a_late_lock(copied: str, kind: type[NaiveReader], wrong: dict[str, int]):
    """Who drew its transaction id first takes the key's lock second."""
    with closing(kind(copied)) as reader, psycopg.connect(copied) as early, psycopg.connect(copied) as late:
        early.execute("select pg_current_xact_id()")
        late.execute("select 1 from counters where key = 'key-01' for update")
        insert(late, "key-01", 1, 2)
        late.commit()
        early.execute("select 1 from counters where key = 'key-01' for update")
        insert(early, "key-01", 2, 1)
        early.commit()
        drain(copied, reader, 2)
        assert report_on(copied).wrong() == wrong


def test_by_hand_two_readers_that_skip_each_others_locks(copied: str):
    with psycopg.connect(copied, autocommit=True) as writer:
        insert(writer, "key-01", 1, 1)
        insert(writer, "key-01", 2, 1)
    with closing(BySkipLocked(copied)) as first, closing(BySkipLocked(copied)) as second:
        with first.source.transaction():
            rows = first.rows("select topic, key, payload from outbox order by position for update skip locked limit 1")
            assert second.step() == 1
            first.publish(rows)
        assert report_on(copied).wrong() == {"disordered": 1}


@pytest.mark.parametrize(("kind", "arrive"), [(ByTransaction, 0), (ByWindow, 1)])
def test_by_hand_an_old_open_transaction_stops_who_waits_for_it(copied: str, kind: type[NaiveReader], arrive: int):
    with (
        closing(kind(copied)) as reader,
        closing(hold_open(copied)),
        psycopg.connect(copied, autocommit=True) as quick,
    ):
        insert(quick, "key-01", 1, 1)
        reader.step()
        assert report_on(copied).arrived == arrive


def test_the_checker_finds_each_fault():
    done = [Done(1, n, "orders", "k", n) for n in (1, 2, 3)]

    def arrival(n: int, offset: int, *, version: int | None = None, partition: int = 0) -> Arrival:
        payload = f'{{"writer": 1, "n": {n}, "version": {version or n}}}'.encode()
        return Arrival("orders", partition, offset, "k", payload)

    right = [arrival(n, n - 1) for n in (1, 2, 3)]
    assert compare(done, right).wrong() == {}
    assert compare(done, right[:2]).wrong() == {"lost": 1}
    assert compare(done[:2], right).wrong() == {"ghosts": 1}
    assert compare(done, [*right, arrival(2, 3)]).wrong() == {"doubled": 1}
    assert compare(done, [right[0], right[2], right[1]]).wrong() == {"disordered": 1}
    assert compare(done, [right[0], right[1], arrival(3, 0, partition=1)]).wrong() == {"disordered": 1}
    assert compare(done, [*right[:2], arrival(3, 2, version=9)]).wrong() == {"ghosts": 1}


@pytest.mark.parametrize(
    "later",
    [
        Step("a", 7, 2, 50, 9),
        Step("a", 6, 1, 50, 9),
        Step("a", 6, 2, 49, 9),
        Step("a", 6, 2, 50, 8),
    ],
    ids=["a step is missing", "epoch", "snapshot", "position"],
)
def test_the_checker_finds_a_step_that_goes_back(later: Step):
    first = Step("a", 5, 2, 50, 9)
    report = Report()
    check_steps(report, [first, first._replace(step=6), Step("b", 0, 0, 0, 0)])
    assert report.wrong() == {}
    check_steps(report, [first, later])
    assert report.wrong() == {"regressed": 1}


def test_the_checker_finds_a_hole_and_a_record_of_an_old_epoch():
    records = [Arrival("orders", 0, offset, None, b"", epoch) for offset, epoch in enumerate((1, 1, 2))]
    report = Report()
    check_offsets(report, records)
    check_epochs(report, [*records, Arrival("orders", 1, 0, None, b"", 1)])
    assert report.wrong() == {}
    check_offsets(report, [records[0], records[2]])
    check_epochs(report, [records[2], records[1]])
    assert report.wrong() == {"holes": 1, "unfenced": 1}
