"""psycopg connections as relay, log and inbox use them: bounded, plain in their settings, with our errors."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg import errors
from psycopg.rows import DictRow, dict_row
from sqlalchemy import URL

from outbox.errors import ConfigurationError, Fenced, OutboxError, Permanent, Retryable, TimedOut, Unreachable
from outbox.process.urls import libpq_url, shown

Connection = psycopg.Connection[DictRow]

_TIMED_OUT = (errors.QueryCanceled, errors.LockNotAvailable)
_AGAIN = (errors.SerializationFailure, errors.DeadlockDetected, psycopg.OperationalError, psycopg.InterfaceError)
_MISSING = (errors.UndefinedTable, errors.UndefinedColumn, errors.InvalidSchemaName)


def connect(
    url: URL,
    *,
    name: str,
    statement_seconds: float = 0,
    lock_seconds: float = 0,
    settings: Mapping[str, str] | None = None,
    connect_seconds: int = 10,
) -> Connection:
    """Open an autocommit connection whose session a role's or database's defaults cannot bend.

    Parameters are bound by the client, so that several statements can travel as one simple-query message, and no plan is
    ever a generic one.

    Args:
        url: the database.
        name: `application_name`.
        statement_seconds: bound on each statement; 0 is none.
        lock_seconds: bound on each wait for a lock; 0 is none.
        settings: more session settings.
        connect_seconds: bound on the attempt.

    Raises:
        Unreachable: it does not answer, or refuses the password, or the database is unknown.
    """
    session = {
        "statement_timeout": f"{int(statement_seconds * 1000)}",
        "lock_timeout": f"{int(lock_seconds * 1000)}",
        "idle_in_transaction_session_timeout": "0",
        "default_transaction_isolation": "read committed",
        "default_transaction_deferrable": "off",
        "synchronous_commit": "on",
        "row_security": "off",
        "jit": "off",
        "TimeZone": "UTC",
        "DateStyle": "ISO",
        "bytea_output": "hex",
        **(settings or {}),
    }
    with translated(url):
        connection = psycopg.connect(
            libpq_url(url),
            autocommit=True,
            row_factory=dict_row,
            cursor_factory=psycopg.ClientCursor,
            connect_timeout=connect_seconds,
            application_name=name,
            client_encoding="utf-8",
            keepalives_idle=5,
            keepalives_interval=2,
            keepalives_count=3,
            tcp_user_timeout=15_000,
        )
        try:
            execute(
                connection,
                "select " + ", ".join(f"set_config('{key}', '{value}', false)" for key, value in session.items()),
            )
        except BaseException:
            connection.close()
            raise
    return connection


def execute(
    connection: Connection, statement: str, parameters: Mapping[str, Any] | None = None
) -> psycopg.Cursor[DictRow]:
    """Run SQL text composed by us; `%(name)s` are bound by the client."""
    return connection.execute(statement.encode(), parameters)


@contextmanager
def translated(url: URL | None = None) -> Iterator[None]:
    """Turn psycopg's errors into ours: what the caller can do about them.

    Raises:
        Fenced: a unique violation: somebody else has taken the step.
        TimedOut: a statement or lock time-out; the connection is still good.
        Unreachable: no connection could be made.
        Retryable: the connection is lost, or the server says try again.
        Permanent: a check inside a statement of ours failed.
        ConfigurationError: a table, column or schema is missing, or a privilege.
    """
    try:
        yield
    except psycopg.Error as error:
        raise translate(error, url) from error


def translate(error: psycopg.Error, url: URL | None = None) -> OutboxError:
    """Return our error for one of psycopg's; see `translated`."""
    words = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if isinstance(error, errors.UniqueViolation):
        return Fenced(words)
    if isinstance(error, _TIMED_OUT):
        return TimedOut(words)
    if isinstance(error, _MISSING):
        return ConfigurationError(f"{words}: run `outbox init`, or `outbox check` to see what differs")
    if isinstance(error, errors.DivisionByZero):
        return Permanent(
            "what was stored differs from what was to be stored, and all of it was rolled back: is there a trigger or rule"
            " on our tables that drops or adds rows?"
        )
    if isinstance(error, errors.InsufficientPrivilege):
        return ConfigurationError(f"{words}: grant it to this role, or use another")
    if isinstance(error, (errors.ReadOnlySqlTransaction,)):
        return ConfigurationError(f"{words}: this is a read-only database or a standby; connect to the primary")
    if url is not None and isinstance(error, psycopg.OperationalError):
        return Unreachable(f"cannot connect to {shown(url)}: {words}")
    if isinstance(error, _AGAIN):
        return Retryable(words)
    return OutboxError(words)
