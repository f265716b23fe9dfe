"""Where a set of tables lies: the quoted names that raw SQL uses, and lookup in a user's metadata."""

from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import MetaData, Table

VERSION = 1
"""Version of the layout of all three sets; raised when a column changes its meaning."""


def quoted(name: str) -> str:
    """Return `name` as a quoted SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


@dataclass(frozen=True, slots=True)
class Place:
    """Schema and prefix of our tables in one database."""

    schema: str | None = None
    prefix: str = ""

    def sql(self, table: str) -> str:
        """Return the full, quoted name of one of our tables, to be put into SQL text."""
        name = quoted(self.prefix + table)
        return f"{quoted(self.schema)}.{name}" if self.schema else name

    def key(self, table: str) -> str:
        """Return the table's key in `MetaData.tables`."""
        return f"{self.schema}.{self.prefix}{table}" if self.schema else self.prefix + table


def place_of(metadata: MetaData, schema: str | None, prefix: str) -> Place:
    """Return where a set registered on `metadata` lies: the metadata's own schema unless another is named."""
    return Place(schema if schema is not None else metadata.schema, prefix)


def registered(metadata: MetaData, place: Place, table: str, make: Callable[[], Table]) -> Table:
    """Return the table of that name in `metadata`; made on first use, shared afterwards."""
    found = metadata.tables.get(place.key(table))
    return make() if found is None else found


def comment(which: str) -> str:
    """Return the table comment by which a set and its version are recognised."""
    return f"outbox-relay-inbox: {which}, version {VERSION}"
