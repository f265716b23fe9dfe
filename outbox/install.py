"""Makes the tables where they are missing, and leaves alone what is there; or prints the statements that would."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, create_mock_engine, text

from outbox.check import SETS, refuse_unfit_server, tables_of
from outbox.errors import ConfigurationError
from outbox.inspect import dialect_for
from outbox.tables import Place
from outbox.tables.names import quoted

_DRIVERS = {"postgresql": "postgresql+psycopg", "sqlite": "sqlite+pysqlite"}
_SINGLE_ROWS = {"outbox": "outbox_installation", "log": "log_identity"}


def install(connection: Connection, place: Place, sets: Sequence[str] = SETS) -> list[str]:
    """Make the tables of these sets that are missing, in one transaction, and commit it.

    Never alters what is there. Two that do this at once both succeed: the second waits, and finds all made.

    Args:
        connection: without a transaction.
        place: where the tables are to lie.
        sets: of `outbox`, `inbox`, `log`.

    Returns:
        The names of the tables that were made.

    Raises:
        ConfigurationError: the server is a standby or read-only or too old, or the schema is missing.
    """
    dialect = dialect_for(connection)
    refuse_unfit_server(connection)
    if place.schema and not dialect.has_schema(connection, place.schema):
        raise ConfigurationError(
            f"schema {place.schema!r} does not exist: run `create schema {quoted(place.schema)}` first"
        )
    connection.rollback()
    dialect.begin_alone(connection, place)
    metadata = tables_of(place, sets)
    names = [table.name.removeprefix(place.prefix) for table in metadata.sorted_tables]
    before = dialect.read_tables(connection, place, names)
    metadata.create_all(connection)
    for statement in _single_rows(place, sets):
        connection.execute(text(statement))
    connection.commit()
    return [place.prefix + name for name in names if name not in before]


def ddl(dialect: str, place: Place, sets: Sequence[str] = SETS) -> str:
    """Return the SQL that `install` would run in an empty database; connects to nothing.

    Args:
        dialect: `postgresql` or `sqlite`.
        place: where the tables are to lie.
        sets: of `outbox`, `inbox`, `log`.
    """
    statements: list[str] = []

    def collect(statement: Any, *_: object, **__: object) -> None:
        statements.append(str(statement.compile(dialect=engine.dialect)).strip())

    engine = create_mock_engine(f"{_DRIVERS[dialect]}://", collect)
    if dialect == "sqlite":
        statements.append("PRAGMA journal_mode = wal")
    tables_of(place, sets).create_all(engine, checkfirst=False)
    statements += _single_rows(place, sets)
    return "".join(f"{statement};\n\n" for statement in statements)


def _single_rows(place: Place, sets: Sequence[str]) -> list[str]:
    """Return the statements that give the installation and the log their random ids, where they have none."""
    tables = [place.sql(table) for name, table in _SINGLE_ROWS.items() if name in sets]
    return [f"insert into {table} (single) values (1) on conflict do nothing" for table in tables]
