"""psycopg connections as relay, log and inbox use them: bounded, plain in their settings, with our errors."""

import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from typing import Any

from sqlalchemy import URL

from outbox.errors import ConfigurationError, Fenced, OutboxError, Permanent, Retryable, TimedOut, Unreachable

try:
    import psycopg
    from psycopg import errors
    from psycopg.rows import DictRow, dict_row, tuple_row
except ImportError as missing:
    raise ConfigurationError(
        f"PostgreSQL needs psycopg ({missing}): pip install 'outbox-relay-inbox[postgresql]'"
    ) from missing
from outbox.process.urls import libpq_url, shown


class Connection(psycopg.Connection[DictRow]):
    """A connection as `connect` makes it.

    Attributes:
        ahead: a statement that was sent and not waited for, if any. The next one waits for it first.
    """

    ahead: "Ahead | None" = None

    def wait_for_ahead(self) -> None:
        """Let what was sent ahead come to its end; nobody has asked for its rows."""
        if self.ahead is not None:
            self.ahead.rows()


_AGAIN = (
    errors.SerializationFailure,
    errors.DeadlockDetected,
    # Connections that are lost, as the others, though their class is that of internal errors: a process was stopped.
    errors.IdleInTransactionSessionTimeout,
    errors.TransactionTimeout,
    psycopg.OperationalError,
    psycopg.InterfaceError,
)
_BAD_SETTING = re.compile(r"(connection is bad: )?invalid (\S+ value|integer value|port number|URI|connection option)")


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

    Parameters are bound by the client, so that several statements can travel as one simple-query message, and no plan
    is ever a generic one.

    Args:
        url: the database.
        name: `application_name`.
        statement_seconds: bound on each statement; 0 is none.
        lock_seconds: bound on each wait for a lock; 0 is none.
        settings: more session settings.
        connect_seconds: bound on the attempt.

    Raises:
        Unreachable: it does not answer, or refuses the password, or the database is unknown.
        ConfigurationError: the URL has a setting that libpq does not know, or cannot read.
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
        connection = Connection.connect(
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


def connect_for_sqlalchemy(url: URL, *, name: str) -> psycopg.Connection[Any]:
    """Open a connection with the same settings, as SQLAlchemy's psycopg dialect expects one to be.

    Raises:
        Unreachable: it does not answer, or refuses the password, or the database is unknown.
        ConfigurationError: the URL has a setting that libpq does not know, or cannot read.
    """
    connection: psycopg.Connection[Any] = connect(url, name=name)
    connection.autocommit = False
    connection.cursor_factory = psycopg.Cursor
    connection.row_factory = tuple_row
    return connection


def refuse_pooler(url: URL) -> None:
    """See that a connection is a session of its own and not lent by a transaction pooler.

    A pooler lends a server process for one transaction: while ours is idle, another client is given the same one.

    Raises:
        ConfigurationError: a pooler stands in between.
        Unreachable: the database does not answer.
    """
    with (
        closing(connect(url, name="outbox: one session?")) as idle,
        closing(connect(url, name="outbox: another?")) as busy,
        translated(),
    ):
        first = _backend(idle)
        with busy.transaction():
            # The second question only if the first says nothing: a pool of one would keep it waiting.
            borrowed = _backend(busy) == first or _backend(idle) != first
    if borrowed:
        raise ConfigurationError(
            f"{shown(url)} goes through a transaction pooler: relay and inbox need sessions of their own, so name the"
            " server itself, or a pool in session mode (applications may go on using the pooler)"
        )


def _backend(connection: Connection) -> int:
    row = execute(connection, "select pg_backend_pid() as pid").fetchone()
    return int(row["pid"]) if row else 0


def execute(
    connection: Connection, statement: str, parameters: Mapping[str, Any] | None = None
) -> psycopg.Cursor[DictRow]:
    """Run SQL text composed by us; `%(name)s` are bound by the client."""
    connection.wait_for_ahead()
    return connection.execute(statement.encode(), parameters)


def fetch(connection: Connection, statement: str, parameters: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    """Run a SELECT whose rows are many: they come in the server's own formats, so it binds the parameters."""
    connection.wait_for_ahead()
    return _executed(connection, statement, parameters).fetchall()


def send_ahead(connection: Connection, statement: str, parameters: Mapping[str, Any]) -> "Ahead | None":
    """Send what `fetch` would run, and do not wait for it; None if that cannot be done here."""
    connection.wait_for_ahead()
    if psycopg.Pipeline.is_supported():
        connection.ahead = Ahead(connection, statement, parameters)
    return connection.ahead


class Ahead:
    """A statement that the server works on while we do something else, in libpq's pipeline mode.

    Its rows come as far as the connection's buffers hold them; its transaction ends when they are asked for.
    """

    def __init__(self, connection: Connection, statement: str, parameters: Mapping[str, Any]) -> None:
        self._connection = connection
        with ExitStack() as pipeline:
            pipeline.enter_context(connection.pipeline())
            self._cursor = _executed(connection, statement, parameters)
            self._pipeline = pipeline.pop_all()

    def rows(self) -> list[tuple[Any, ...]] | None:
        """Wait for the rows; None if something went wrong: then the statement is to be run as any other."""
        self._connection.ahead = None
        try:
            with self._pipeline:
                return self._cursor.fetchall()
        except psycopg.Error:
            return None


def _executed(connection: Connection, statement: str, parameters: Mapping[str, Any]) -> psycopg.Cursor[tuple[Any, ...]]:
    # Not prepared: no plan may be a generic one.
    cursor = psycopg.Cursor(connection, row_factory=tuple_row)
    return cursor.execute(statement.encode(), parameters, prepare=False, binary=True)


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
    words = _words(error)
    if url is not None and (isinstance(error, psycopg.ProgrammingError) or _BAD_SETTING.match(words)):
        return ConfigurationError(f"{shown(url)} cannot be used: {words}")
    for kinds, make, remedy in _TRANSLATIONS:
        if isinstance(error, kinds):
            return make(f"{words}{remedy}")
    if url is not None and isinstance(error, psycopg.OperationalError):
        return Unreachable(f"cannot connect to {shown(url)}: {words}")
    if isinstance(error, _AGAIN):
        return Retryable(words)
    return OutboxError(words)


_TRANSLATIONS: tuple[tuple[type[psycopg.Error] | tuple[type[psycopg.Error], ...], type[OutboxError], str], ...] = (
    (errors.UniqueViolation, Fenced, ""),
    ((errors.QueryCanceled, errors.LockNotAvailable), TimedOut, ""),
    (
        (errors.UndefinedTable, errors.UndefinedColumn, errors.InvalidSchemaName),
        ConfigurationError,
        ": run `outbox init`, or `outbox check` to see what differs",
    ),
    (
        errors.DivisionByZero,
        Permanent,
        ": not all was stored that was to be, and all of it was rolled back; is there a trigger or rule on our tables?",
    ),
    (
        errors.InsufficientPrivilege,
        ConfigurationError,
        ": grant it to this role, or use the table's owner, or a role with BYPASSRLS",
    ),
    (
        errors.ReadOnlySqlTransaction,
        ConfigurationError,
        ": this is a read-only database or a standby; connect to the primary",
    ),
)


def _words(error: psycopg.Error) -> str:
    """Return the first line; when several addresses were tried, one line with what each said."""
    lines = [line.strip("- ") for line in str(error).splitlines() if line.strip() and not line.startswith("\t")]
    if not lines:
        return type(error).__name__
    return "; ".join(lines[1:]) if lines[0].startswith("Multiple connection attempts failed") else lines[0]
