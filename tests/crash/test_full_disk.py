"""A disk that is full is an outage of the database: words, nothing lost, and all goes on when there is room again."""

import random
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import plain_billing
import psycopg
import pytest
from postgresql_server import PostgresqlServer, server_user
from processes import RELAY, ROOT, Process
from small_disk import SmallDisk

from tests.databases import connected, install, rows, wait_until

INBOX = "from inbox.cli import main; main()"
MEGABYTES = 48
SIZE = 2_000
FILLED_BY = 20_000
"""So many messages of that size are more than any of the disks can take."""
PARTS = ("outbox", "log", "inbox")
FULL = ("No space left on device", "disk is full", "disk I/O error")


@dataclass(slots=True)
class Stage:
    """The three databases of the road, and the disk that one of them lies on."""

    disk: SmallDisk
    outbox: str
    log: str
    inbox: str


@pytest.fixture
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    """A database for each part, one of them on a disk that can be filled; `(dialect, part)` comes from the test."""
    dialect, part = request.param
    make = _on_postgresql if dialect == "postgresql" else _on_sqlite
    try:
        yield from make(request, part)
    except PermissionError as absent:
        pytest.skip(str(absent))


def _on_postgresql(request: pytest.FixtureRequest, part: str) -> Iterator[Stage]:
    server: PostgresqlServer = request.getfixturevalue("own_postgresql_server")
    disk = SmallDisk(server.folder / "small", MEGABYTES)
    try:
        user = server_user()
        if user is not None:
            shutil.chown(disk.folder, user)
        with connected(server.url()) as connection:
            connection.execute(f"create tablespace small location '{disk.folder}'")
            for name in PARTS:
                connection.execute(f"create database {name}{' tablespace small' if name == part else ''}")
        yield _stage(disk, {name: server.url(name) for name in PARTS})
    finally:
        server.stop("immediate")
        disk.unmount()


def _on_sqlite(request: pytest.FixtureRequest, part: str) -> Iterator[Stage]:
    folder: Path = request.getfixturevalue("tmp_path")
    disk = SmallDisk(folder / "small", MEGABYTES)
    try:
        folders = {name: disk.folder if name == part else folder for name in PARTS}
        yield _stage(disk, {name: f"sqlite:///{folders[name]}/{name}.db" for name in PARTS})
    finally:
        disk.unmount()


def _stage(disk: SmallDisk, urls: dict[str, str]) -> Stage:
    for url in urls.values():
        install(url)
    rows(urls["inbox"], plain_billing.SCHEMA[urls["inbox"].partition(":")[0]])
    return Stage(disk, **urls)


@pytest.fixture
def run(stage: Stage, tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """Start our processes, and end them with the test."""
    running: list[Process] = []

    def start(program: str, *options: str) -> Process:
        here = Path(plain_billing.__file__).parent
        running.append(Process(tmp_path / "said.txt", "-c", program, *options, PYTHONPATH=f"{ROOT}:{here}"))
        return running[-1]

    yield start
    for one in running:
        one.kill()


def write(url: str, first: int, count: int) -> int:
    """Write messages, each in a transaction of its own, until one is refused; return how many were committed."""
    statement = "insert into outbox (topic, key, payload) values ('orders', ?, ?)"
    with connected(url) as connection:
        for number in range(first, first + count):
            payload = f"{number} {random.randbytes(SIZE // 2).hex()}".encode()
            try:
                connection.execute(
                    statement if url.startswith("sqlite") else statement.replace("?", "%s"), (f"{number % 7}", payload)
                )
            except (psycopg.errors.DiskFull, sqlite3.OperationalError):
                return number - first
    return count


def told(url: str, table: str, order: str) -> dict[str, list[int]]:
    """Return the numbers that came to a table, by key, in its order."""
    found: dict[str, list[int]] = {}
    for key, payload in rows(url, f"select key, payload from {table} order by {order}"):
        found.setdefault(key, []).append(int(bytes(payload).split()[0]))
    return found


def all_of(count: int) -> dict[str, list[int]]:
    """Return what has to have come when so many were committed."""
    return {f"{key}": list(range(key, count, 7)) for key in range(min(7, count))}


def started(run: Callable[..., Process], stage: Stage) -> tuple[Process, Process]:
    relay = run(RELAY, "run", "--database", stage.outbox, "--log", stage.log, "--lease", "2")
    inbox = run(INBOX, "run", "plain_billing:inbox", "--database", stage.inbox, "--log", stage.log)
    return relay, inbox


def handled(stage: Stage) -> int:
    ((count,),) = rows(stage.inbox, "select count(*) from effects")
    return int(count)


def all_is_handled(stage: Stage, committed: int, *processes: Process) -> None:
    words = processes[0].words
    wait_until(lambda: handled(stage) >= committed, f"{committed} are handled\n{words()[-3000:]}")
    assert told(stage.log, "log_record", 'partition, "offset"') == all_of(committed)
    assert told(stage.inbox, "effects", "place") == all_of(committed)
    assert all(process.is_running() for process in processes), words()


@pytest.mark.parametrize("stage", [("postgresql", "outbox"), ("sqlite", "outbox")], indirect=True, ids=str)
def test_an_outbox_whose_disk_is_full_refuses_the_transaction_and_nothing_is_lost(
    stage: Stage, run: Callable[..., Process]
):
    """INVARIANT I1: what was committed arrives, before the disk was full and after it; what was refused does not."""
    relay, inbox = started(run, stage)
    stage.disk.fill(spare=1_000_000)
    before = write(stage.outbox, 0, FILLED_BY)
    assert 0 < before < FILLED_BY
    stage.disk.make_room()
    committed = before + write(stage.outbox, before, 200)
    assert committed == before + 200
    all_is_handled(stage, committed, relay, inbox)


@pytest.mark.parametrize(
    "stage",
    [("postgresql", "log"), ("postgresql", "inbox"), ("sqlite", "log"), ("sqlite", "inbox")],
    indirect=True,
    ids=str,
)
def test_a_log_or_inbox_whose_disk_is_full_is_waited_for(stage: Stage, run: Callable[..., Process]):
    """INVARIANT I8: it is said, it is nobody's attempt, and what waits goes on by itself when there is room."""
    relay, inbox = started(run, stage)
    committed = write(stage.outbox, 0, 100)
    wait_until(lambda: handled(stage) == committed, f"the first are handled\n{relay.words()}")
    stage.disk.fill(spare=1_000_000)
    committed += write(stage.outbox, committed, 2_000)
    wait_until(
        lambda: any(word in relay.words() for word in FULL), f"it is said that the disk is full: {relay.words()}"
    )
    stage.disk.make_room()
    all_is_handled(stage, committed, relay, inbox)
    assert "handling message" not in relay.words(), f"a full disk is nobody's attempt\n{relay.words()}"
