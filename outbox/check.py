"""Compares a live database with the tables that we expect: each set (`outbox`, `inbox`, `log`) whole or absent.

Names of constraints and indexes do not count, further columns only where they would refuse our rows.
"""

import re
from collections.abc import Iterator, Mapping, Sequence

from sqlalchemy import Column, Connection, MetaData, Table, UniqueConstraint

from outbox.errors import ConfigurationError
from outbox.inspect import Dialect, LiveColumn, LiveTable, dialect_for
from outbox.tables import Place, inbox_tables, log_tables, outbox_tables
from outbox.tables.names import VERSION, quoted

SETS = ("outbox", "inbox", "log")
"""The sets of tables, in the order in which they are made."""

_REGISTER = {"outbox": outbox_tables, "inbox": inbox_tables, "log": log_tables}
_VERSION = re.compile(r"outbox-relay-inbox: \w+, version (\d+)")


def tables_of(place: Place, sets: Sequence[str] = SETS) -> MetaData:
    """Return metadata of our own with these sets."""
    metadata = MetaData()
    for name in sets:
        _REGISTER[name](metadata, place.schema, place.prefix)
    return metadata


def present(connection: Connection, place: Place) -> set[str]:
    """Return the sets of which at least one table is there."""
    dialect = dialect_for(connection)
    names = {name: _named(place, [name]) for name in SETS}
    found = dialect.read_tables(connection, place, [table for tables in names.values() for table in tables])
    return {name for name, tables in names.items() if found.keys() & tables.keys()}


def differences(connection: Connection, place: Place, sets: Sequence[str]) -> list[str]:
    """Return what differs from these sets as we expect them, and what makes the server unfit for us.

    Reads only. Each line names the table or column and says what to do. A set that is not there at all is one line.

    Args:
        connection: may be inside a transaction.
        place: where the tables lie.
        sets: of `outbox`, `inbox`, `log`.

    Raises:
        ConfigurationError: neither PostgreSQL nor SQLite, or a schema on SQLite.
    """
    dialect = dialect_for(connection)
    faults = dialect.server_faults(connection)
    found = dialect.read_tables(connection, place, list(_named(place, sets)))
    for name in sets:
        expected = _named(place, [name])
        if not found.keys() & expected.keys():
            faults.append(_absent(name, place))
            continue
        for table, ours in expected.items():
            faults += _table(dialect, place, table, ours, found.get(table))
    return faults


def refuse_differences(connection: Connection, place: Place, sets: Sequence[str]) -> None:
    """See that these sets are as we expect them.

    Raises:
        ConfigurationError: they are not; the words are all differences.
    """
    faults = differences(connection, place, sets)
    if faults:
        raise ConfigurationError("; ".join(faults))


def refuse_unfit_server(connection: Connection) -> None:
    """See that the server can hold our tables.

    Raises:
        ConfigurationError: it is a standby, read-only for this role, or too old.
    """
    faults = dialect_for(connection).server_faults(connection)
    if faults:
        raise ConfigurationError("; ".join(faults))


def _named(place: Place, sets: Sequence[str]) -> dict[str, Table]:
    """Return the tables of these sets by their names without prefix."""
    return {table.name.removeprefix(place.prefix): table for table in tables_of(place, sets).sorted_tables}


def _absent(name: str, place: Place) -> str:
    where = f" in schema {place.schema}" if place.schema else ""
    with_prefix = f" with prefix {place.prefix}" if place.prefix else ""
    return f"the {name} tables{with_prefix} are not there{where}: run `outbox init`"


def _table(dialect: Dialect, place: Place, name: str, ours: Table, live: LiveTable | None) -> Iterator[str]:
    full = place.sql(name)
    if live is None:
        yield f"table {full} is missing: run `outbox init`"
        return
    yield from live.faults
    if not live.columns:
        return
    yield from _version(full, ours, live, dialect)
    for column in ours.columns:
        yield from _column(dialect, full, column, live.columns.get(column.name))
    yield from _foreign_columns(dialect, full, ours, live.columns)
    yield from _keys(dialect, full, ours, live)
    for check, statement in dialect.expected_checks(ours, name).items():
        if check not in live.checks:
            condition = statement[statement.index("check (") :]
            yield f"{full} lacks {condition}: {dialect.mend(statement)}"


def _version(full: str, ours: Table, live: LiveTable, dialect: Dialect) -> Iterator[str]:
    if not dialect.HAS_COMMENTS:
        return
    found = _VERSION.search(live.comment or "")
    if found is None:
        statement = f"comment on table {full} is '{ours.comment}'"
        yield f"{full} has no comment that names its version: if it was made by this one, {dialect.mend(statement)}"
    elif int(found[1]) != VERSION:
        older = int(found[1]) < VERSION
        remedy = "move its data as the changelog says" if older else "install a newer outbox-relay-inbox"
        yield f"{full} is of version {found[1]}, this program knows version {VERSION}: {remedy}"


def _column(dialect: Dialect, full: str, ours: Column[object], live: LiveColumn | None) -> Iterator[str]:
    name, alter = f"{full}.{ours.name}", f"alter table {full} alter column {quoted(ours.name)}"
    kind, default = dialect.column_type(ours), dialect.column_default(ours)
    if live is None:
        required = "" if ours.nullable else " not null"
        given = "" if default is None else f" default {default}"
        statement = f"alter table {full} add column {quoted(ours.name)} {kind}{required}{given}"
        yield f"{name} is missing: {dialect.mend(statement)}"
        return
    if live.type != kind:
        yield f"{name} has type {live.type}, not {kind}: {dialect.mend(f'{alter} type {kind}')}"
    if live.nullable != ours.nullable:
        wanted, verb = ("may", "drop") if ours.nullable else ("must not", "set")
        yield f"{name} {wanted} be null: {dialect.mend(f'{alter} {verb} not null')}"
    yield from _numbering(dialect, name, alter, ours, live)
    if live.default != default:
        statement = f"{alter} drop default" if default is None else f"{alter} set default {default}"
        yield f"{name} has default {live.default or 'none'}, not {default or 'none'}: {dialect.mend(statement)}"


def _numbering(dialect: Dialect, name: str, alter: str, ours: Column[object], live: LiveColumn) -> Iterator[str]:
    if ours.identity is not None and live.identity != "always":
        verb = "set generated always" if live.identity else "add generated always as identity"
        yield f"{name} is not generated always as identity: {dialect.mend(f'{alter} {verb}')}"
    elif ours.identity is not None and (live.cache or 1) != 1:
        yield (
            f"{name} takes {live.cache} numbers in advance (CACHE), which puts messages out of order:"
            f" {dialect.mend(f'{alter} set cache 1')}"
        )


def _foreign_columns(dialect: Dialect, full: str, ours: Table, live: Mapping[str, LiveColumn]) -> Iterator[str]:
    for name in live.keys() - ours.columns.keys():
        column = live[name]
        if not column.nullable and column.default is None and column.identity is None:
            statement = f"alter table {full} alter column {quoted(name)} drop not null"
            yield f"{full}.{name} is not ours, and refuses our rows: {dialect.mend(statement)}"


def _keys(dialect: Dialect, full: str, ours: Table, live: LiveTable) -> Iterator[str]:
    primary = tuple(column.name for column in ours.primary_key.columns)
    if live.primary_key != primary:
        listed = _listed(primary)
        statement = f"alter table {full} add primary key ({listed})"
        yield f"{full} has not the primary key ({listed}): {dialect.mend(statement)}"
    for unique in (one for one in ours.constraints if isinstance(one, UniqueConstraint)):
        columns = tuple(column.name for column in unique.columns)
        if columns not in live.uniques:
            listed = _listed(columns)
            yield f"{full} has no unique key ({listed}): {dialect.mend(f'alter table {full} add unique ({listed})')}"
    for index in ours.indexes:
        columns = tuple(column.name for column in index.columns)
        if not any(found[: len(columns)] == columns for found in live.indexes):
            listed = _listed(columns)
            yield f"{full} has no index on ({listed}): {dialect.mend(f'create index on {full} ({listed})')}"


def _listed(columns: Sequence[str]) -> str:
    return ", ".join(map(quoted, columns))
