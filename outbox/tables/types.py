"""Column types and defaults that differ by dialect, compiled where the dialect is known."""

from typing import Any

from sqlalchemy import BigInteger, Integer
from sqlalchemy.dialects.postgresql.base import ischema_names
from sqlalchemy.engine import Dialect
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler, TypeCompiler
from sqlalchemy.sql.expression import FunctionElement
from sqlalchemy.types import UserDefinedType

POSITION = BigInteger().with_variant(Integer(), "sqlite")
"""SQLite makes a rowid alias, with AUTOINCREMENT, only of a column declared INTEGER."""


class XID8(UserDefinedType[str]):
    """PostgreSQL's 64-bit transaction id, as text in Python; an empty text on SQLite."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        """Return the type's name in DDL."""
        return "XID8"

    def bind_processor(self, dialect: Dialect) -> None:  # noqa: ARG002 - the signature is SQLAlchemy's
        """Pass values as they are."""
        return

    def __repr__(self) -> str:
        return "XID8()"


# Reflection must know the type, or a downgrade made by Alembic says NullType.
ischema_names.setdefault("xid8", XID8)


@compiles(XID8, "sqlite")
def _xid8_on_sqlite(_type: XID8, _compiler: TypeCompiler, **_: Any) -> str:
    return "TEXT"


class current_transaction(FunctionElement[str]):  # noqa: N801 - reads as the SQL function it compiles to
    """The id of the current transaction."""

    inherit_cache = True
    name = "current_transaction"


class random_id(FunctionElement[Any]):  # noqa: N801 - the same
    """A random UUID made by the database."""

    inherit_cache = True
    name = "random_id"


class utc_now(FunctionElement[Any]):  # noqa: N801 - the same
    """The transaction's time, in UTC on SQLite."""

    inherit_cache = True
    name = "utc_now"


def _compile(element: type[FunctionElement[Any]], postgresql: str, sqlite: str) -> None:
    def render(text: str) -> Any:
        def compiled(_element: FunctionElement[Any], _compiler: SQLCompiler, **_: Any) -> str:
            return text

        return compiled

    compiles(element)(render(postgresql))
    compiles(element, "sqlite")(render(sqlite))


_compile(current_transaction, "pg_current_xact_id()", "''")
_compile(random_id, "gen_random_uuid()", "(lower(hex(randomblob(16))))")
_compile(utc_now, "now()", "CURRENT_TIMESTAMP")
