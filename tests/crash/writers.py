"""The random workload on PostgreSQL: many writers, shared keys under row locks, and all that transactions can do.

What a writer did is known from the table `done`, written in the same transaction as the message: a COMMIT in doubt
needs no answer, the row is there or it is not. Keys are locked in their order, so that writers never deadlock.
"""

import json
import random
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

import psycopg

from tests.databases import rows

KEYS = [f"key-{number:02}" for number in range(20)]
SCHEMA = """
create table counters (key text primary key, version bigint not null);
create table done (writer int, n int, topic text not null, key text, version bigint, primary key (writer, n));
create table scratch (n int);
"""
SUBTRANSACTIONS = """
do $$ begin
  for n in 1..70 loop
    begin insert into scratch values (n); exception when unique_violation then null; end;
  end loop;
end $$
"""
INSERT = """
insert into outbox (topic, key, type, payload)
select topic, key, 'Counted', convert_to(payload, 'UTF8')
from unnest(%s::text[], %s::text[], %s::text[]) with ordinality as u(topic, key, payload, place) order by place
"""
MOST_PREPARED = 10


def prepare_database(url: str) -> None:
    """Make the workload's own tables; the outbox's are there already."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(SCHEMA)
        connection.cursor().executemany("insert into counters values (%s, 0)", [(key,) for key in KEYS])


def write_without_keys(database: str, topic: str, count: int) -> None:
    """Messages without keys, so that all partitions get some; known to the checker."""
    rows(
        database,
        "with written as (insert into done select 0, coalesce((select max(n) from done), 0) + n, ?, null, null"
        " from generate_series(1, ?) as n returning n, topic)"
        " insert into outbox (topic, payload) select topic,"
        " convert_to(json_build_object('writer', 0, 'n', n, 'version', null)::text, 'UTF8') from written",
        topic,
        count,
    )


def topic_of(key: str | None, suffix: str = "") -> str:
    """Return where a key's messages go; always the same topic."""
    return f"{'orders' if key is None or int(key[-2:]) % 4 else 'payments'}{suffix}"


@dataclass(frozen=True, slots=True)
class Written:
    """One message that a transaction is about to insert."""

    n: int
    key: str | None
    version: int | None


class Writers:
    """Threads that write until they are told to stop, have written enough, or the time is up.

    Args:
        url: the database; it may crash and come back.
        seed: what makes a run the same again, as far as the server's scheduling allows.
        writers: how many threads.
        transactions: how many each attempts at most.
        seconds: for how long at most.
        pause_seconds: the longest pause inside a transaction.
        suffix: of the topics' names.
    """

    def __init__(
        self,
        url: str,
        *,
        seed: int = 1,
        writers: int = 8,
        transactions: int = 10_000,
        seconds: float = 30.0,
        pause_seconds: float = 0.01,
        suffix: str = "",
    ) -> None:
        self.url = url
        self.seed = seed
        self._transactions = transactions
        self._seconds = seconds
        self._pause = pause_seconds
        self._suffix = suffix
        self._enough = threading.Event()
        self._done = threading.Event()
        self._threads = [threading.Thread(target=self._write, args=(number,), daemon=True) for number in range(writers)]
        self._finisher = threading.Thread(target=self._finish_prepared, daemon=True)
        self.unexpected: list[Exception] = []

    def start(self) -> "Writers":
        self._deadline = time.monotonic() + self._seconds
        for thread in (*self._threads, self._finisher):
            thread.start()
        return self

    def is_writing(self) -> bool:
        return any(thread.is_alive() for thread in self._threads)

    def finish(self) -> None:
        """Wait for all writers, and end what they left prepared.

        Raises:
            Exception: what a writer ran into that no fault of ours explains.
        """
        for thread in self._threads:
            thread.join(self._seconds + 60)
        self._done.set()
        self._finisher.join(60)
        assert not self._finisher.is_alive() and not self.is_writing()
        if self.unexpected:
            raise self.unexpected[0]

    def stop(self) -> None:
        """Tell the writers that it is enough, and finish."""
        self._enough.set()
        self.finish()

    def _connect(self) -> psycopg.Connection:
        while True:
            try:
                return psycopg.connect(self.url, autocommit=True, connect_timeout=5)
            except psycopg.OperationalError:
                if time.monotonic() > self._deadline + 30:
                    raise
                time.sleep(0.02)

    def _write(self, writer: int) -> None:
        try:
            self._transactions_of(writer)
        except Exception as error:
            self.unexpected.append(error)

    def _transactions_of(self, writer: int) -> None:
        choose = random.Random(f"{self.seed}/{writer}")
        connection = self._connect()
        n = 0
        for _ in range(self._transactions):
            if self._enough.is_set() or time.monotonic() > self._deadline:
                break
            try:
                n = Transaction(connection, choose, writer, n, self._pause, suffix=self._suffix).run()
            except psycopg.OperationalError:
                n += 100
                connection.close()
                connection = self._connect()
        connection.close()

    def _finish_prepared(self) -> None:
        """Commit or roll back, a little later, what the writers prepared; what a crash left too."""
        choose = random.Random(f"{self.seed}/finisher")
        connection = self._connect()
        while True:
            over = self._done.is_set()
            try:
                rows = connection.execute(
                    "select gid from pg_prepared_xacts where database = current_database()"
                ).fetchall()
                for (gid,) in rows:
                    if over or choose.random() < 0.3:
                        connection.execute(f"{'commit' if choose.random() < 0.7 else 'rollback'} prepared '{gid}'")
                if over:
                    break
                time.sleep(choose.random() * 0.01)
            except psycopg.OperationalError:
                connection.close()
                connection = self._connect()
        connection.close()


class Transaction:
    """One transaction of one writer, drawn at random."""

    def __init__(
        self,
        connection: psycopg.Connection,
        choose: random.Random,
        writer: int,
        n: int,
        pause_seconds: float,
        *,
        suffix: str = "",
    ) -> None:
        self._connection = connection
        self._choose = choose
        self._writer = writer
        self._n = n
        self._pause_seconds = pause_seconds
        self._suffix = suffix

    def run(self) -> int:
        """Run it; return the last n that it used."""
        self._sql("begin")
        if self._chance(0.3):
            # An early xid: drawn long before the key's lock.
            self._sql("select pg_current_xact_id()")
            self._pause()
        if self._chance(0.03):
            self._sql(SUBTRANSACTIONS)
        keys = sorted(self._choose.sample(KEYS, self._choose.choice((1, 1, 1, 2, 3))))
        if self._chance(0.1):
            self._in_savepoint(keys[:1], "rollback to savepoint s")
        if self._chance(0.1):
            self._in_savepoint(keys[:1], "release savepoint s")
            keys = keys[1:]
        written = [self._counted(key) for key in keys]
        if self._chance(0.1):
            written += [self._counted(key) for key in keys]
        if self._chance(0.15):
            written.append(self._next(None, None))
        self._pause()
        self._insert(written)
        self._end()
        return self._n

    def _end(self) -> None:
        if self._chance(0.1):
            self._sql("rollback")
        elif self._chance(0.08) and self._may_prepare():
            self._sql(f"prepare transaction 'w-{self._writer}-{self._n}'")
        else:
            self._sql("commit")

    def _may_prepare(self) -> bool:
        row = self._connection.execute(
            "select count(*) < least(%s, current_setting('max_prepared_transactions')::int / 2) from pg_prepared_xacts",
            [MOST_PREPARED],
        ).fetchone()
        return row is not None and bool(row[0])

    def _in_savepoint(self, keys: Sequence[str], end: str) -> None:
        self._sql("savepoint s")
        self._insert([self._counted(key) for key in keys])
        self._sql(end)

    def _counted(self, key: str) -> Written:
        """Lock the key and count one up; who has the next version has seen this one."""
        row = self._connection.execute("select version from counters where key = %s for update", [key]).fetchone()
        assert row is not None
        self._sql("update counters set version = version + 1 where key = %s", key)
        return self._next(key, row[0] + 1)

    def _next(self, key: str | None, version: int | None) -> Written:
        self._n += 1
        return Written(self._n, key, version)

    def _insert(self, written: Sequence[Written]) -> None:
        """Say what is done, then, as the last statement, insert the messages."""
        if not written:
            return
        topics, keys = [topic_of(one.key, self._suffix) for one in written], [one.key for one in written]
        self._connection.execute(
            "insert into done select %s, u.* from unnest(%s::int[], %s::text[], %s::text[], %s::bigint[]) as u",
            [self._writer, [one.n for one in written], topics, keys, [one.version for one in written]],
        )
        if self._chance(0.2):
            self._pause()
        self._connection.execute(INSERT, [topics, keys, [payload_of(self._writer, one) for one in written]])

    def _sql(self, statement: str, *values: object) -> None:
        self._connection.execute(statement.encode(), values or None)

    def _chance(self, share: float) -> bool:
        return self._choose.random() < share

    def _pause(self) -> None:
        if self._chance(0.3):
            self._sql("select pg_sleep(%s)", self._choose.random() * self._pause_seconds)


def payload_of(writer: int, written: Written) -> str:
    """Return a message's payload; a few are large."""
    filling = "x" * 20_000 if written.n % 199 == 0 else ""
    return json.dumps(
        {"writer": writer, "n": written.n, "key": written.key, "version": written.version, "filling": filling}
    )


def hold_open(url: str) -> psycopg.Connection:
    """Return a connection in a transaction that has written, and neither commits nor ends until it is closed."""
    connection = psycopg.connect(url)
    connection.execute("insert into scratch values (0)")
    return connection
