"""Database URLs: which dialect, which driver is ours, and how to show one without its password."""

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from outbox.errors import ConfigurationError

DIALECTS = ("postgresql", "sqlite")


def parse_url(text: str) -> URL:
    """Return the URL of a PostgreSQL or SQLite database, whatever driver it names.

    Raises:
        ConfigurationError: it is no URL, or of another dialect.
    """
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise ConfigurationError(
            "the database URL cannot be read: write postgresql://user:password@host:5432/name or sqlite:///file.db"
        ) from None
    if dialect_of(url) not in DIALECTS:
        raise ConfigurationError(
            f"unknown database scheme {dialect_of(url)!r}: write postgresql://user:password@host:5432/name or sqlite:///file.db"
        )
    return url


def dialect_of(url: URL) -> str:
    """Return `postgresql`, `sqlite`, or whatever else stands before the driver."""
    name = url.drivername.partition("+")[0]
    return "postgresql" if name == "postgres" else name


def shown(url: URL | str) -> str:
    """Return the URL as it may be shown: without its password."""
    try:
        return make_url(url).render_as_string(hide_password=True)
    except (ArgumentError, ValueError):
        return "the URL given"


def with_driver(url: URL, *, asynchronous: bool = False) -> URL:
    """Return the URL for SQLAlchemy with the driver that the commands bring."""
    if dialect_of(url) == "postgresql":
        return _libpq_query(url).set(drivername="postgresql+psycopg")
    return url.set(drivername="sqlite+aiosqlite" if asynchronous else "sqlite+pysqlite")


def libpq_url(url: URL) -> str:
    """Return the URL as libpq reads it."""
    return _libpq_query(url).set(drivername="postgresql").render_as_string(hide_password=False)


def _libpq_query(url: URL) -> URL:
    """Rename the one query setting that asyncpg and libpq spell differently."""
    query = dict(url.query)
    if "ssl" in query:
        query.setdefault("sslmode", query.pop("ssl"))
    return url.set(query=query)
