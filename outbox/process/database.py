"""One SQLAlchemy connection to a database, for a command: opened by our drivers, with our errors."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import URL, Connection, NullPool, create_engine
from sqlalchemy.exc import DBAPIError

from outbox.process.urls import dialect_of, with_driver


@contextmanager
def connected(url: URL, *, create: bool = False, name: str = "outbox") -> Iterator[Connection]:
    """Open a connection and close it again; what is not committed is rolled back.

    Args:
        url: the database, whatever driver it names.
        create: make the SQLite file when there is none.
        name: `application_name` on PostgreSQL.

    Raises:
        Unreachable: the database does not answer.
        ConfigurationError: the driver is not installed, or something that is needed is missing or not allowed.
        OutboxError: what else went wrong inside, by what can be done.
    """
    if dialect_of(url) == "postgresql":
        from outbox.process import postgresql  # noqa: PLC0415 - its driver is an extra

        with postgresql.translated(), _unwrapped():
            yield from _connection(url, lambda: postgresql.connect_for_sqlalchemy(url, name=name))
    else:
        from outbox.process import sqlite  # noqa: PLC0415 - loaded where it is used, as the other

        with sqlite.translated(url), _unwrapped():
            yield from _connection(url, lambda: sqlite.connect_for_sqlalchemy(url, create=create))


def _connection(url: URL, creator: Callable[[], Any]) -> Iterator[Connection]:
    # Without the URL's settings and password: they are the creator's affair.
    bare = URL.create(with_driver(url).drivername)
    engine = create_engine(bare, poolclass=NullPool, creator=creator)
    with engine.connect() as connection:
        yield connection


@contextmanager
def _unwrapped() -> Iterator[None]:
    """Take SQLAlchemy's wrapping off a driver's error."""
    try:
        yield
    except DBAPIError as error:
        if error.orig is None:
            raise
        raise error.orig from error
