"""`inbox forget`: lets go of a group, in the log and in the handlers' database; may be repeated after a crash.

    the log: refused while a member is alive; offsets and members
    -> claims and registrations, and the mark that the group is being forgotten: one transaction
    -> its ids, so many at a time   -> the mark

From the mark on nobody can register the group, so no consumer that begins anew sees a part of the ids.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import (
    Connection,
    MetaData,
    NullPool,
    Table,
    create_engine,
    delete,
    exists,
    literal,
    select,
    tuple_,
)

from inbox.claims import Dialect, Limits, dialect_for
from inbox.registration import Registration
from outbox.errors import ConfigurationError, Fenced
from outbox.process.urls import parse_url, with_driver
from outbox.process.waiting import wait_for
from outbox.tables.inbox import InboxTables, inbox_tables
from relay.logs.contract import LogOptions
from relay.logs.registry import open_log

BATCH = 10_000
"""How many ids one transaction deletes."""
STATEMENT_SECONDS = 60.0
ATTEMPTS = 5


def forget(
    database: str, log: str, group: str, *, schema: str | None = None, prefix: str = "", wait: float = 10.0
) -> None:
    """Delete what a group remembers, its claims and its registration, and what the log has of it.

    A group of that name that runs later begins as a new one does.

    Args:
        database: URL of the handlers' database.
        log: URL of the log.
        group: the group's name.
        schema: where the inbox's tables lie.
        prefix: put before their names.
        wait: how many seconds to wait for a database or log that is away.

    Raises:
        Permanent: a member of the group is alive; nothing is deleted.
        ConfigurationError: neither the database nor the log knows the group; or a URL or the tables will not do.
        Unreachable: the database or the log is away for longer.
        TimedOut: somebody holds the group's rows; repeat it.
    """
    tables = inbox_tables(MetaData(), schema, prefix)
    url = parse_url(database)
    # Not the group's own name: its members end sessions of that name which hold a transaction for too long.
    dialect = dialect_for(url, tables.place, f"forgets {group}")
    engine = create_engine(
        dialect.url(with_driver(url)),
        poolclass=NullPool,
        connect_args=dict(dialect.connect_arguments(Limits(STATEMENT_SECONDS, wait))),
    )
    dialect.adapt(engine)

    def connect() -> Connection:
        with dialect.translated(url):
            return engine.connect()

    opened = open_log(log, LogOptions(schema, prefix))
    try:
        with _connected(dialect, wait_for(connect, seconds=wait)) as connection:
            wait_for(opened.check, seconds=wait)
            in_log = opened.forget(group)
            in_database = _forget(connection, tables, group, dialect)
    finally:
        opened.close()
    if not in_log and not in_database:
        raise ConfigurationError(
            f"no group {group!r} is known, neither to the handlers' database nor to the log: "
            "`inbox status` lists those that are"
        )


@contextmanager
def _connected(dialect: Dialect, connection: Connection) -> Iterator[Connection]:
    with connection, dialect.translated():
        dialect.prepare(connection, Limits(STATEMENT_SECONDS))
        yield connection


def _forget(connection: Connection, tables: InboxTables, group: str, dialect: Dialect) -> bool:
    with connection.begin():
        known = _is_known(connection, (tables.inbox_offset, tables.inbox), group)
    if not known:
        return False
    registration = Registration(tables.inbox_offset, group)
    _begin(connection, registration, dialect)
    _delete_ids(connection, tables.inbox, group)
    with connection.begin():
        registration.end_to_forget(connection)
    return True


def _is_known(connection: Connection, tables: tuple[Table, ...], group: str) -> bool:
    """Return whether there is a row of it: there may be ids alone, of those who run their own consumer loop."""
    return any(
        connection.scalar(select(exists(select(literal(1)).where(table.c.consumer_group == group)))) for table in tables
    )


def _begin(connection: Connection, registration: Registration, dialect: Dialect) -> None:
    for attempt in range(1, ATTEMPTS + 1):
        try:
            with dialect.translated(), connection.begin():
                registration.begin_to_forget(connection)
        except Fenced:
            if attempt == ATTEMPTS:
                raise
        else:
            return


def _delete_ids(connection: Connection, inbox: Table, group: str) -> None:
    columns = (inbox.c.source, inbox.c.message_id)
    rest = [inbox.c.consumer_group == group]
    while True:
        with connection.begin():
            last = connection.execute(
                select(*columns).where(*rest).order_by(*columns).offset(BATCH - 1).limit(1)
            ).one_or_none()
            if last is None:
                connection.execute(delete(inbox).where(*rest))
                return
            end = tuple_(*(literal(value, column.type) for column, value in zip(columns, last, strict=True)))
            connection.execute(delete(inbox).where(*rest, tuple_(*columns) <= end))
        # From here on: from the start, each batch would pass over all that is deleted already.
        rest = [inbox.c.consumer_group == group, tuple_(*columns) > end]
