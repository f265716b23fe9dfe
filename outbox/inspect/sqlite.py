"""What stands in an SQLite file in the place of our tables, read by its pragmas and from its stored statements."""

import re
from collections.abc import Mapping, Sequence

from sqlalchemy import URL, Column, Connection, Table, text

from outbox.errors import ConfigurationError
from outbox.inspect.live import LiveColumn, LiveTable, default_sql
from outbox.tables import Place
from outbox.tables.outbox import TOPIC_ON_SQLITE

HAS_COMMENTS = False
_DIALECT = URL.create("sqlite").get_dialect()()
_MAIN = "main"

_TABLE = text("select sql from sqlite_master where type = 'table' and name = :name")
_VIEW = text("select name from sqlite_master where type = 'view' and name = :name")
_COLUMNS = text('select name, type, "notnull" as required, dflt_value as "default", pk from pragma_table_info(:name)')
_INDEXES = text('select name, "unique" as is_unique, partial from pragma_index_list(:name)')
_INDEX_COLUMNS = text('select name, "desc" as falls from pragma_index_xinfo(:name) where "key" order by seqno')


def server_faults(connection: Connection) -> list[str]:
    """Return what makes this file unfit for us, each with what to do."""
    if connection.scalar(text("pragma query_only")):
        return ["this SQLite file is read-only for this process: name one that it may write to"]
    return []


def read_tables(connection: Connection, place: Place, names: Sequence[str]) -> Mapping[str, LiveTable]:
    """Return those of the tables (names without prefix) that exist.

    Raises:
        ConfigurationError: the place has a schema, which SQLite does not know.
    """
    if place.schema is not None:
        has_schema(connection, place.schema)
    found = {name: _read(connection, place, place.prefix + name) for name in names}
    return {name: table for name, table in found.items() if table is not None}


def has_schema(_connection: Connection, schema: str) -> bool:
    """Return whether there is a schema of this name.

    Raises:
        ConfigurationError: it is not the file's own: SQLite has no others.
    """
    if schema != _MAIN:
        raise ConfigurationError(f"SQLite has no schemas: leave {schema!r} out, or tell tables apart by a prefix")
    return True


def begin_alone(connection: Connection, _place: Place) -> None:
    """Begin a transaction that waits for every other writer of the file."""
    connection.exec_driver_sql("begin immediate")


def column_type(column: Column[object]) -> str:
    """Return the type of a column of ours, as it is written in its table."""
    return str(column.type.compile(dialect=_DIALECT)).upper()


def column_default(column: Column[object]) -> str | None:
    """Return the default of a column of ours, as the pragma writes it."""
    written = default_sql(column, _DIALECT)
    return None if written is None else _plain_default(written)


def expected_checks(table: Table, name: str) -> Mapping[str, str]:
    """Return what must hold for the rows of a table of ours: plain check -> the statement that would add it."""
    if name == "outbox":
        return {_plain(TOPIC_ON_SQLITE): f"check ({TOPIC_ON_SQLITE})"}
    return {_plain("single = 1"): "check (single = 1)"} if "single" in table.columns else {}


def mend(statement: str) -> str:
    """Return words that tell how to put a difference right."""
    if statement.startswith("create index"):
        return f"run `{statement}`"
    return "SQLite cannot alter that in place: rename the table, run `outbox init`, and copy the rows"


def _read(connection: Connection, place: Place, name: str) -> LiveTable | None:
    statement = connection.scalar(_TABLE, {"name": name})
    if statement is None:
        return _not_a_table(connection, place, name)
    rows = connection.execute(_COLUMNS, {"name": name}).all()
    # A key that is used again after its row was pruned hides a message from a relay that has passed it.
    grows = "always" if re.search(r"\bautoincrement\b", statement, re.IGNORECASE) else None
    indexes, uniques = _indexes(connection, name)
    primary_key = tuple(row.name for row in sorted(rows, key=lambda row: int(row.pk)) if row.pk)
    return LiveTable(
        columns={
            row.name: LiveColumn(
                type=row.type.upper(),
                nullable=not row.required and not row.pk,
                default=None if row.default is None else _plain_default(row.default),
                identity=grows if row.pk and len(primary_key) == 1 else None,
            )
            for row in rows
        },
        primary_key=primary_key,
        uniques=uniques,
        indexes=indexes,
        checks=_checks(statement),
        comment=None,
    )


def _not_a_table(connection: Connection, place: Place, name: str) -> LiveTable | None:
    if connection.scalar(_VIEW, {"name": name}) is None:
        return None
    fault = f"{Place(place.schema).sql(name)} is a view, not a table: rename it and run `outbox init`"
    return LiveTable({}, (), frozenset(), frozenset(), frozenset(), None, [fault])


def _indexes(connection: Connection, table: str) -> tuple[frozenset[tuple[str, ...]], frozenset[tuple[str, ...]]]:
    indexes, uniques = set(), set()
    for index in connection.execute(_INDEXES, {"name": table}).all():
        columns = connection.execute(_INDEX_COLUMNS, {"name": index.name}).all()
        if index.partial or any(column.name is None or column.falls for column in columns):
            continue
        names = tuple(str(column.name) for column in columns)
        indexes.add(names)
        if index.is_unique:
            uniques.add(names)
    return frozenset(indexes), frozenset(uniques)


def _checks(statement: str) -> frozenset[str]:
    """Return those of our checks that a stored CREATE TABLE holds; SQLite keeps its text as it was written."""
    plain = _plain(statement)
    return frozenset(check for check in map(_plain, (TOPIC_ON_SQLITE, "single = 1")) if f"CHECK{check}" in plain)


def _plain(written: str) -> str:
    return re.sub(r'[\s()"]', "", written).replace("check", "CHECK")


def _plain_default(written: str) -> str:
    while written.startswith("(") and written.endswith(")"):
        written = written[1:-1]
    return written
