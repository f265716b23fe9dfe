"""The ground that is measured on: servers of our own, databases, and entries to move."""

import os
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import psycopg
from postgresql_server import PostgresqlServer
from sqlalchemy import create_engine

from outbox.install import install
from outbox.tables import Place

if TYPE_CHECKING:
    from benchmarks.brokers import Broker

SETTINGS = {
    # The two that every server of some use is given: 128 MB of buffers and a checkpoint a gigabyte are for laptops.
    "shared_buffers": "512MB",
    "max_wal_size": "8GB",
}
"""All else is as PostgreSQL comes: fsync and synchronous_commit are on, autovacuum too."""
TOPIC = "orders"
KEYS = 1_000
PAYLOAD_BYTES = 200
ENTRIES_A_TRANSACTION = 10


class Ground:
    """One PostgreSQL server for the whole run, and one Kafka broker if a part asks for it."""

    def __init__(self) -> None:
        self._server = PostgresqlServer(settings=SETTINGS)
        self._until_the_end = ExitStack()
        self._broker: Broker | None = None
        self._made = 0

    def __enter__(self) -> Self:
        self._until_the_end.callback(self._server.delete)
        try:
            self._server.start()
        except BaseException:
            self._until_the_end.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._until_the_end.close()

    def broker(self) -> "Broker":
        """Return the broker, started when it is first asked for.

        Raises:
            Missing: it cannot be had on this machine.
        """
        if self._broker is None:
            from benchmarks.brokers import Broker  # noqa: PLC0415 - most parts need none of it

            self._broker = self._until_the_end.enter_context(Broker())
        return self._broker

    def version(self) -> str:
        """Return the server's version."""
        return str(value(self._server.url(), "show server_version"))

    def database(self, like: str | None = None) -> str:
        """Make a database with all tables of ours, or a copy of another one, and return its URL."""
        self._made += 1
        name = f"measured_{self._made}"
        template = "" if like is None else f' template "{like.rsplit("/", 1)[1]}"'
        run(self._server.url(), f'create database "{name}"{template}')
        url = self._server.url(name)
        if like is None:
            engine = create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
            with engine.connect() as connection:
                install(connection, Place())
            engine.dispose()
        return url

    def drop(self, *urls: str) -> None:
        """Drop databases."""
        for url in urls:
            run(self._server.url(), f'drop database "{url.rsplit("/", 1)[1]}" with (force)')

    def settle(self) -> None:
        """Let what was written before be done with: no sample pays for another's checkpoint."""
        run(self._server.url(), "checkpoint")

    def cpu_seconds(self) -> float:
        """Return what all processes of PostgreSQL have used, those that ended too, and Kafka's."""
        postmaster = int((self._server.data / "postmaster.pid").read_text().split()[0])
        ticks = sum(_stat(postmaster)[13:17])  # its own, and those of its children that ended
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    fields = _stat(int(entry.name))
                except OSError:  # it ended meanwhile
                    continue
                ticks += sum(fields[13:15]) if fields[3] == postmaster else 0
        return ticks / os.sysconf("SC_CLK_TCK") + (self._broker.cpu_seconds() if self._broker else 0.0)


def _stat(pid: int) -> list[int]:
    """Return the numbers of `/proc/PID/stat`, numbered as the kernel's manual does, from 0."""
    text = Path(f"/proc/{pid}/stat").read_text()
    behind_name = text.rpartition(")")[2].split()
    return [pid, 0, 0, *map(int, behind_name[1:])]


def run(url: str, statement: str, *values: object) -> list[tuple[Any, ...]]:
    """Run a statement by itself, and return its rows."""
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(statement.encode(), values or None)
        return cursor.fetchall() if cursor.description else []


def value(url: str, statement: str, *values: object) -> Any:
    """Return the one value that a statement gives."""
    return run(url, statement, *values)[0][0]


def fill(url: str, entries: int, *, in_one: bool = False) -> None:
    """Write entries, ten to a transaction as services do; or a hundred thousand, where only their number counts."""
    size = 100_000 if in_one else ENTRIES_A_TRANSACTION
    run(
        url,
        f"""
        do $$ begin
          set synchronous_commit = off;
          for done in 0..{entries - 1} by {size} loop
            insert into outbox (topic, key, type, payload)
            select '{TOPIC}', (random() * {KEYS - 1})::int::text, 'OrderPlaced',
              convert_to(rpad('{{"id":' || done + n || '}}', {PAYLOAD_BYTES}, ' '), 'UTF8')
            from generate_series(1, least({size}, {entries} - done)) as n;
            commit;
          end loop;
        end $$
        """,
    )
    run(url, "vacuum (analyze) outbox")


def fill_large(url: str, payloads: list[int]) -> None:
    """Write entries with payloads of these sizes, which no compression makes smaller."""
    with psycopg.connect(url) as connection:
        for size in payloads:
            connection.execute(
                "insert into outbox (topic, key, payload, content_type)"
                " values (%s, %s, %s, 'application/octet-stream')",
                (TOPIC, str(size), os.urandom(size)),
            )
            connection.commit()


def refuse_wrong_log(url: str, entries: int) -> None:
    """See that the log holds every entry once, offsets without a gap, in the order of the outbox.

    Raises:
        AssertionError: it does not, so that nothing was measured.
    """
    found = run(
        url,
        """
        select count(*), count(distinct sequence), coalesce(bool_and(in_order), true) from (
          select sequence, "offset" = row_number() over w - 1
            and sequence > lag(sequence, 1, 0::bigint) over w as in_order
          from log_record window w as (partition by topic_id, partition order by "offset")) as records
        """,
    )[0]
    if found != (entries, entries, True):
        raise AssertionError(f"the log has {found} (records, messages, in order) of {entries} entries")
