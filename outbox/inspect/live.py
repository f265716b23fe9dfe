"""A live table as plain data, and what a dialect's file must be able to tell."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Protocol, cast

from sqlalchemy import Column, Connection, DefaultClause, Table
from sqlalchemy import Dialect as SqlDialect

from outbox.errors import ConfigurationError
from outbox.tables import Place


@dataclass(frozen=True, slots=True)
class LiveColumn:
    """One column.

    Attributes:
        type: as the dialect's `column_type` writes it.
        nullable: whether NULL is allowed.
        default: as the dialect's `column_default` writes it; None without one.
        identity: `always`, `by default`, or None when it numbers nothing.
        cache: how many numbers a session takes in advance; None where there is no such thing.
    """

    type: str
    nullable: bool
    default: str | None
    identity: str | None = None
    cache: int | None = None


@dataclass(frozen=True, slots=True)
class LiveTable:
    """One table.

    Attributes:
        columns: by name.
        primary_key: its columns, in order.
        uniques: the columns of each unique key that holds for all rows at once.
        indexes: the columns of each index over all rows, in order; keys are indexes too.
        checks: as the dialect's `plain_check` writes them.
        comment: None where there is none.
        faults: what the dialect alone knows to be wrong, each with what to do.
    """

    columns: Mapping[str, LiveColumn]
    primary_key: tuple[str, ...]
    uniques: frozenset[tuple[str, ...]]
    indexes: frozenset[tuple[str, ...]]
    checks: frozenset[str]
    comment: str | None
    faults: Sequence[str] = ()


class Dialect(Protocol):
    """What a dialect's file offers, as names of the module."""

    HAS_COMMENTS: bool

    def server_faults(self, connection: Connection) -> list[str]:
        """Return what makes this server unfit for us, each with what to do."""
        ...

    def read_tables(self, connection: Connection, place: Place, names: Sequence[str]) -> Mapping[str, LiveTable]:
        """Return those of the tables (names without prefix) that exist."""
        ...

    def has_schema(self, connection: Connection, schema: str) -> bool:
        """Return whether there is a schema of this name."""
        ...

    def begin_alone(self, connection: Connection, place: Place) -> None:
        """Begin a transaction that waits for every other that was begun so, in this place."""
        ...

    def column_type(self, column: Column[object]) -> str:
        """Return the type of a column of ours, as `LiveColumn.type` has it."""
        ...

    def column_default(self, column: Column[object]) -> str | None:
        """Return the default of a column of ours, as `LiveColumn.default` has it."""
        ...

    def expected_checks(self, table: Table, name: str) -> Mapping[str, str]:
        """Return what must hold for the rows of a table of ours: plain check -> the statement that adds it."""
        ...

    def mend(self, statement: str) -> str:
        """Return words that tell how to put a difference right; `statement` would, where ALTER TABLE can."""
        ...


def default_sql(column: Column[object], dialect: SqlDialect) -> str | None:
    """Return the default of a column of ours as SQL of that dialect; None without one."""
    default = column.server_default
    if not isinstance(default, DefaultClause):
        return None
    if isinstance(default.arg, str):
        return "'" + default.arg.replace("'", "''") + "'"
    return str(default.arg.compile(dialect=dialect))


def dialect_for(connection: Connection) -> Dialect:
    """Return the dialect's file for a connection.

    Raises:
        ConfigurationError: we have none.
    """
    name = connection.dialect.name
    if name not in ("postgresql", "sqlite"):
        raise ConfigurationError(f"our tables live on PostgreSQL or SQLite, not on {name}")
    return cast("Dialect", import_module(f"outbox.inspect.{name}"))
