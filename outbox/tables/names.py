"""Where a set of tables lies: the quoted names that raw SQL uses, and lookup in a user's metadata."""

from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import CheckConstraint, MetaData, Table

ONLY_ON = "dialect"
"""The key in a check's `info` under which the one dialect stands that has it."""
VERSION = 1
"""Version of the layout of all three sets; raised when a column changes its meaning."""
_COMMENT = "outbox-relay-inbox: "


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


def only_on(dialect: str, check: CheckConstraint) -> CheckConstraint:
    """Let a check be made on one dialect alone."""
    check.info[ONLY_ON] = dialect  # to be read again: what `ddl_if` remembers is not public, and is lost in a copy
    return check.ddl_if(dialect=dialect)


def comment(which: str) -> str:
    """Return the table comment by which a set and its version are recognised."""
    return f"{_COMMENT}{which}, version {VERSION}"


def is_ours(comment: str | None) -> bool:
    """Return whether a table with this comment is one of ours."""
    return (comment or "").startswith(_COMMENT)
