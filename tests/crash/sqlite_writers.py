"""The random workload on SQLite: threads that take turns at one file, with rollbacks and savepoints."""

import random
import sqlite3
import threading
import time
from contextlib import closing

from writers import KEYS, Written, payload_of, topic_of

SCHEMA = """
create table counters (key text primary key, version integer not null);
create table done (writer integer, n integer, topic text not null, key text, version integer, primary key (writer, n));
"""
BUSY_SECONDS = 30


def connect(path: str) -> sqlite3.Connection:
    """Open the file, for transactions that begin by being its one writer."""
    return sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)


def prepare_file(path: str) -> None:
    """Make the workload's own tables."""
    with closing(connect(path)) as connection:
        connection.executescript(SCHEMA)
        connection.executemany("insert into counters values (?, 0)", [(key,) for key in KEYS])


class SqliteWriters:
    """Threads that write until they are told to stop, have written enough, or the time is up."""

    def __init__(
        self, path: str, *, seed: int = 1, writers: int = 4, transactions: int = 10_000, seconds: float = 30.0
    ) -> None:
        self.seed = seed
        self._path = path
        self._transactions = transactions
        self._seconds = seconds
        self._enough = threading.Event()
        self._threads = [threading.Thread(target=self._write, args=(number,), daemon=True) for number in range(writers)]
        self.unexpected: list[Exception] = []

    def start(self) -> "SqliteWriters":
        self._deadline = time.monotonic() + self._seconds
        for thread in self._threads:
            thread.start()
        return self

    def finish(self) -> None:
        """Wait for all writers.

        Raises:
            Exception: what a writer ran into.
        """
        for thread in self._threads:
            thread.join(self._seconds + 60)
        assert not any(thread.is_alive() for thread in self._threads)
        if self.unexpected:
            raise self.unexpected[0]

    def stop(self) -> None:
        """Tell the writers that it is enough, and wait for them."""
        self._enough.set()
        self.finish()

    def _write(self, writer: int) -> None:
        choose = random.Random(f"{self.seed}/{writer}")
        try:
            with closing(connect(self._path)) as connection:
                n = 0
                for _ in range(self._transactions):
                    if self._enough.wait(choose.random() * 0.01) or time.monotonic() > self._deadline:
                        break
                    n = _transaction(connection, choose, writer, n)
        except Exception as error:
            self.unexpected.append(error)


def _transaction(connection: sqlite3.Connection, choose: random.Random, writer: int, n: int) -> int:
    """Run one transaction; return the last n that it used."""
    connection.execute("begin immediate")
    for key in choose.sample(KEYS, choose.choice((1, 1, 2, 3))):
        n += 1
        connection.execute("savepoint s")
        _insert(connection, writer, _counted(connection, key, n))
        if choose.random() < 0.1:
            connection.execute("rollback to savepoint s")
        connection.execute("release savepoint s")
    if choose.random() < 0.15:
        n += 1
        _insert(connection, writer, Written(n, None, None))
    connection.execute("rollback" if choose.random() < 0.1 else "commit")
    return n


def _counted(connection: sqlite3.Connection, key: str, n: int) -> Written:
    connection.execute("update counters set version = version + 1 where key = ?", [key])
    (version,) = connection.execute("select version from counters where key = ?", [key]).fetchone()
    return Written(n, key, version)


def _insert(connection: sqlite3.Connection, writer: int, one: Written) -> None:
    topic = topic_of(one.key)
    connection.execute("insert into done values (?, ?, ?, ?, ?)", [writer, one.n, topic, one.key, one.version])
    connection.execute(
        "insert into outbox (topic, key, payload) values (?, ?, ?)",
        [topic, one.key, payload_of(writer, one).encode()],
    )
