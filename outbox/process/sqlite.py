"""sqlite3 connections as relay and log use them: WAL, explicit transactions that wait for their turn, our errors."""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import quote

from sqlalchemy import URL

from outbox.errors import ConfigurationError, Fenced, OutboxError, Retryable, TimedOut, Unreachable
from outbox.process.urls import refuse_query, shown

MINIMUM = (3, 35, 0)
_RETRY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_TAKEN = (sqlite3.SQLITE_CONSTRAINT_UNIQUE, sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY, sqlite3.SQLITE_CONSTRAINT_ROWID)
_PAUSE_SECONDS = 0.01


def connect(url: URL, *, busy_seconds: float = 10.0, create: bool = False) -> sqlite3.Connection:
    """Open a connection in autocommit mode; transactions are `with immediate(connection)`.

    Raises:
        Unreachable: the file is not there (unless `create`) or cannot be opened.
        ConfigurationError: SQLite is older than 3.35, or the URL names no file or has an unknown setting.
    """
    if sqlite3.sqlite_version_info < MINIMUM:
        raise ConfigurationError(f"SQLite {sqlite3.sqlite_version} is too old: 3.35 or newer is needed")
    if not url.database or url.database == ":memory:":
        raise ConfigurationError(
            "an SQLite database in memory is seen by one connection only: name a file, sqlite:///file.db"
        )
    refuse_query(url)
    with translated(url):
        mode = "rwc" if create else "rw"
        path = quote(url.database.removeprefix("file:") if "uri" in url.query else url.database)
        connection = sqlite3.connect(
            f"file:{path}?mode={mode}", uri=True, timeout=busy_seconds, isolation_level=None, check_same_thread=False
        )
        try:
            connection.row_factory = sqlite3.Row
            _use_wal(connection, busy_seconds)
            connection.execute("pragma synchronous = full")
        except BaseException:
            connection.close()
            raise
    return connection


def connect_for_sqlalchemy(url: URL, *, create: bool = False) -> sqlite3.Connection:
    """Open a connection as SQLAlchemy's pysqlite dialect expects one to be; it sends no BEGIN of its own.

    Raises:
        Unreachable: the file is not there (unless `create`) or cannot be opened.
        ConfigurationError: SQLite is older than 3.35, or the URL names no file or has an unknown setting.
    """
    connection = connect(url, create=create)
    connection.row_factory = None
    return connection


def _use_wal(connection: sqlite3.Connection, busy_seconds: float) -> None:
    """Switch the file to WAL. Two who switch at once do not wait for each other by the busy time-out: one fails."""
    deadline = time.monotonic() + busy_seconds
    while True:
        try:
            connection.execute("pragma journal_mode = wal")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF not in _RETRY or time.monotonic() > deadline:
                raise
            time.sleep(_PAUSE_SECONDS)
        else:
            return


@contextmanager
def immediate(connection: sqlite3.Connection) -> Iterator[None]:
    """A transaction that is the file's one writer from its first statement on."""
    # A read transaction that wants to write fails at once, in spite of the busy time-out, when another has written.
    connection.execute("begin immediate")
    try:
        yield
        connection.execute("commit")
    except BaseException:
        if connection.in_transaction:
            connection.execute("rollback")
        raise


@contextmanager
def translated(url: URL | None = None) -> Iterator[None]:
    """Turn sqlite3's errors into ours: what the caller can do about them.

    Raises:
        Fenced: a unique violation: somebody else has taken the step.
        TimedOut: the file was busy for longer than the busy time-out, or the disk is full; all is rolled back.
        Retryable: the outcome is unknown.
        Unreachable: the file cannot be opened.
        ConfigurationError: a table or column is missing, or the file is read-only or no database.
    """
    try:
        yield
    except sqlite3.Error as error:
        raise translate(error, url) from error


def translate(error: sqlite3.Error, url: URL | None = None) -> OutboxError:
    """Return our error for one of sqlite3's; see `translated`."""
    words = str(error)
    code = getattr(error, "sqlite_errorcode", 0) or 0
    where = f" ({shown(url)})" if url is not None else ""
    if code in _TAKEN:
        return Fenced(words)
    if code & 0xFF in _RETRY:
        return TimedOut(f"{words}: another process writes to this file{where}")
    if "no such table" in words or "no such column" in words:
        return ConfigurationError(f"{words}: run `outbox init`, or `outbox check` to see what differs")
    if code & 0xFF in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH):
        return ConfigurationError(f"{words}{where}: name a database file that this process may write to")
    if code & 0xFF == sqlite3.SQLITE_CANTOPEN:
        return Unreachable(f"{words}{where}: is the path right, and was `outbox init` run?")
    if code & 0xFF == sqlite3.SQLITE_FULL:
        return TimedOut(f"{words}{where}")
    if isinstance(error, sqlite3.OperationalError):
        # An error of the disk below a COMMIT: it is not known whether it was done.
        return Retryable(f"{words}{where}")
    return OutboxError(f"{words}{where}")
