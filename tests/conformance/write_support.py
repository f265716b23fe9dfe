"""What the tests of writing share: an outbox, a business table, engines, and what was sent to the server."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, Engine, String, create_engine, event, make_url, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.pool import QueuePool

from outbox import Outbox


class Base(DeclarativeBase):
    pass


class Order(Base):
    """A table of the user's."""

    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    state: Mapped[str] = mapped_column(String(20), default="new")


outbox = Outbox(metadata=Base.metadata)
table = outbox.tables.outbox


def url_for(url: str, driver: str | None = None) -> str:
    """The test's database with a driver of SQLAlchemy's."""
    parsed = make_url(url)
    driver = driver or ("psycopg" if parsed.drivername == "postgresql" else "pysqlite")
    dialect = parsed.drivername.partition("+")[0]
    return parsed.set(drivername=f"{dialect}+{driver}").render_as_string(hide_password=False)


def begin_explicitly(engine: Engine) -> None:
    """SQLAlchemy's recipe for SQLite: without it savepoints are not part of a transaction."""
    if engine.dialect.name != "sqlite":
        return

    @event.listens_for(engine, "connect")
    def no_begin_of_the_drivers_own(connection: Any, _record: Any) -> None:
        connection.isolation_level = None

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN")


def make_engine(url: str, *, recipe: bool = True, **options: Any) -> Engine:
    """An engine with one pooled connection, so that what one user leaves behind the next one gets."""
    engine = create_engine(
        url_for(url), **{"poolclass": QueuePool, "pool_size": 1, "max_overflow": 0, "pool_timeout": 2, **options}
    )
    if recipe:
        begin_explicitly(engine)
    return engine


def written(engine: Engine, of: Any = table) -> list[Any]:
    """The rows of the outbox, by position."""
    with engine.connect() as connection:
        return list(connection.execute(select(of).order_by(of.c.position)))


def payloads(engine: Engine, of: Any = table) -> list[str]:
    """What was written, as text, by position."""
    return [row.payload.decode() for row in written(engine, of)]


def orders(engine: Engine) -> list[int]:
    """The ids of the orders that were committed."""
    with engine.connect() as connection:
        return list(connection.scalars(select(Order.id).order_by(Order.id)))


@contextmanager
def sent(engine: Engine) -> Iterator[list[tuple[str, bool]]]:
    """Record each statement that goes to the server, and whether by executemany; COMMIT and ROLLBACK too."""
    statements: list[tuple[str, bool]] = []

    def statement(_connection: Any, _cursor: Any, text: str, _parameters: Any, _context: Any, many: Any) -> None:
        statements.append((text, many))

    def ended(word: str) -> Any:
        return lambda _connection: statements.append((word, False))

    listeners = [("before_cursor_execute", statement), ("commit", ended("COMMIT")), ("rollback", ended("ROLLBACK"))]
    for name, listener in listeners:
        event.listen(engine, name, listener)
    try:
        yield statements
    finally:
        for name, listener in listeners:
            event.remove(engine, name, listener)
