"""Claims on SQLite: the same, step by step, under BEGIN IMMEDIATE, which makes us the file's one writer."""

import json
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from uuid import UUID

from sqlalchemy import URL, Connection, Engine, event, text
from sqlalchemy.exc import DBAPIError

from inbox.claims import Identity, Limits, MessageDialect, Taking
from outbox.errors import ConfigurationError, Fenced
from outbox.process.sqlite import MINIMUM, translate
from outbox.tables.names import Place

BUSY_SECONDS = 10.0
_PASSING = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL)

_CURRENT = """
select handled, duplicates, ignored from {inbox_offset}
where consumer_group = :consumer_group and incarnation = :incarnation and partition = :partition
    and step = :step and end_offset = :begin_offset
"""
# `where true`: without it the parser takes `on` for the join's.
_FRESH = """
insert into {inbox} (consumer_group, source, message_id)
select :consumer_group, json_extract(asked.value, '$[0]'), json_extract(asked.value, '$[1]')
from json_each(:identities) as asked where true
on conflict do nothing
returning source, message_id
"""
_NEXT = """
insert into {inbox_offset} (
    consumer_group, incarnation, partition, step, topic, begin_offset, end_offset, handled, duplicates, ignored)
values (:consumer_group, :incarnation, :partition, :step + 1, :topic, :begin_offset, :end_offset,
    :handled, :duplicates, :ignored)
"""


class SqliteDialect:
    """What a group's claims need from SQLite."""

    def __init__(self, place: Place, group: str) -> None:
        self._group = group
        names = {"inbox": place.sql("inbox"), "inbox_offset": place.sql("inbox_offset")}
        self._current, self._fresh, self._next = (text(one.format(**names)) for one in (_CURRENT, _FRESH, _NEXT))
        self._tables = [text(f"select 1 from {name} where false") for name in names.values()]

    def examine(self, url: URL) -> None:
        """Nothing: a file is a file."""

    def connect_arguments(self, limits: Limits) -> Mapping[str, Any]:  # noqa: ARG002 - a file has none of them
        """Wait for our turn to write."""
        return {"timeout": BUSY_SECONDS}

    def url(self, url: URL) -> URL:
        """Return the URL such that a file that is not there is an error, and not made.

        Raises:
            ConfigurationError: it names no file.
        """
        if not url.database or url.database == ":memory:":
            raise ConfigurationError(
                "an SQLite database in memory is seen by one connection only: name a file, sqlite:///file.db"
            )
        path = url.database.replace("?", "%3f").replace("#", "%23")
        return url.set(database=f"file:{path}", query={"mode": "rw", "uri": "true"})

    def adapt(self, engine: Engine) -> None:
        """Take the driver's own BEGIN out of the way: a read transaction that wants to write fails at once."""

        def connected(connection: Any, _record: object) -> None:
            connection.isolation_level = None
            cursor = connection.cursor()
            cursor.execute("pragma journal_mode = wal")
            cursor.close()

        def begin(connection: Connection) -> None:
            connection.exec_driver_sql("begin immediate")

        event.listen(engine, "connect", connected)
        event.listen(engine, "begin", begin)

    def transaction_lasts(self, connection: Connection) -> Callable[[], bool]:
        """Ask the driver: some errors roll the whole transaction back."""
        driver: Any = connection.connection.driver_connection
        return lambda: bool(driver.in_transaction)

    def prepare(self, connection: Connection, limits: Limits) -> None:  # noqa: ARG002 - likewise
        """Use the write-ahead log, and see that the tables are there and can be written."""
        if sqlite3.sqlite_version_info < MINIMUM:
            raise ConfigurationError(f"SQLite {sqlite3.sqlite_version} is too old: 3.35 or newer is needed")
        with self.translated(), connection.begin():
            for table in self._tables:
                connection.execute(table)

    def take(self, connection: Connection, taking: Taking) -> frozenset[Identity] | None:
        """Compare, insert the ids, insert the next claim.

        Raises:
            Fenced: no such claim any more.
        """
        parameters: dict[str, Any] = {
            "consumer_group": self._group,
            "incarnation": taking.partition.incarnation,
            "partition": taking.partition.number,
            "topic": taking.partition.topic,
            "step": taking.claim.step,
            "begin_offset": taking.claim.end,
            "end_offset": taking.end,
        }
        with self.translated():
            current = connection.execute(self._current, parameters).one_or_none()
            if current is None:
                raise Fenced(f"another consumer of group {self._group!r} has handled {taking.partition.topic} further")
            # Uuid columns hold the hex digits on SQLite.
            asked = json.dumps([(source, message_id.hex) for source, message_id in taking.identities])
            rows = connection.execute(self._fresh, {"consumer_group": self._group, "identities": asked}).all()
            counts = {
                "handled": current.handled + len(rows) + taking.handled,
                "duplicates": current.duplicates + len(taking.identities) - len(rows) + taking.repeats,
                "ignored": current.ignored + taking.ignored,
            }
            connection.execute(self._next, parameters | counts)
        if len(rows) == len(taking.identities):
            return None
        return frozenset((source, UUID(message_id)) for source, message_id in rows)

    def others(self, count: int) -> Sequence[MessageDialect]:  # noqa: ARG002 - none, however many are asked for
        """Refuse: one file has one writer.

        Raises:
            ConfigurationError: always.
        """
        raise ConfigurationError(
            "SQLite has one writer at a time, so more than one handler at a time would only wait for one another: "
            "leave --concurrency out, or keep the handlers' tables in PostgreSQL"
        )

    def hurry(self, connection: Connection) -> None:
        """Nothing: there are no locks inside the file."""

    def end_stuck(self, connection: Connection, limits: Limits) -> int:  # noqa: ARG002 - likewise
        """Nothing: there are no sessions to end."""
        return 0

    @contextmanager
    def translated(self, url: URL | None = None) -> Iterator[None]:
        """Turn sqlite3's errors into ours."""
        try:
            yield
        except DBAPIError as error:
            if isinstance(error.orig, sqlite3.Error):
                raise translate(error.orig, url) from error
            raise

    def is_passing(self, error: BaseException) -> bool:
        """The file is another's to write for longer than we wait."""
        code = getattr(error.orig, "sqlite_errorcode", 0) if isinstance(error, DBAPIError) else 0
        return (code or 0) & 0xFF in _PASSING

    def is_timeout(self, error: BaseException) -> bool:  # noqa: ARG002 - there are no such time-outs
        """Never."""
        return False
