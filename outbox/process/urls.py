"""Database URLs: which dialect, which driver is ours, and how to show one without its password."""

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from outbox.errors import ConfigurationError
from outbox.process.passwords import HIDDEN, is_secret

DIALECTS = ("postgresql", "sqlite")
_EXAMPLES = "write postgresql://user:password@host:5432/name or sqlite:///file.db"
# Settings of other drivers that mean nothing to ours: an application's URL may be given as it is.
_OTHER_DRIVERS = {
    "postgresql": frozenset(
        {"prepared_statement_cache_size", "prepared_statement_name_func", "statement_cache_size", "async_fallback"}
    ),
    "sqlite": frozenset(
        {"timeout", "isolation_level", "detect_types", "check_same_thread", "cached_statements", "uri", "cache"}
    ),
}


def parse_url(text: str) -> URL:
    """Return the URL of a PostgreSQL or SQLite database, whatever driver it names.

    Raises:
        ConfigurationError: it is no URL, or of another dialect.
    """
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise ConfigurationError(f"the database URL cannot be read: {_EXAMPLES}") from None
    if dialect_of(url) not in DIALECTS:
        raise ConfigurationError(f"unknown database scheme {dialect_of(url)!r}: {_EXAMPLES}")
    if url.host and "@" in url.host:
        raise ConfigurationError("the database URL has two @: write an @ in the user's name or password as %40")
    return url


def dialect_of(url: URL) -> str:
    """Return `postgresql`, `sqlite`, or whatever else stands before the driver."""
    name = url.drivername.partition("+")[0]
    return "postgresql" if name == "postgres" else name


def shown(url: URL | str) -> str:
    """Return the URL as it may be shown: without its password."""
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        return "the URL given"
    if parsed.host and "@" in parsed.host:
        return "the URL given"
    hidden = {key: HIDDEN if is_secret(key) else value for key, value in parsed.query.items()}
    return parsed.set(query=hidden).render_as_string(hide_password=True)


def with_driver(url: URL, *, asynchronous: bool = False) -> URL:
    """Return the URL for SQLAlchemy with the driver that the commands bring."""
    if dialect_of(url) == "postgresql":
        return _libpq_query(url).set(drivername="postgresql+psycopg")
    return url.set(drivername="sqlite+aiosqlite" if asynchronous else "sqlite+pysqlite")


def libpq_url(url: URL) -> str:
    """Return the URL as libpq reads it."""
    return _libpq_query(url).set(drivername="postgresql").render_as_string(hide_password=False)


def refuse_query(url: URL) -> None:
    """Refuse query settings of an SQLite URL that are not some driver's; for PostgreSQL libpq does so itself.

    Raises:
        ConfigurationError: there is one; the words name it.
    """
    unknown = sorted(set(url.query) - _OTHER_DRIVERS[dialect_of(url)])
    if unknown:
        raise ConfigurationError(f"unknown setting {', '.join(unknown)} in {shown(url)}: leave it out")


def _libpq_query(url: URL) -> URL:
    """Rename the one query setting that asyncpg and libpq spell differently, and leave out what only others know."""
    query = {key: value for key, value in url.query.items() if key not in _OTHER_DRIVERS["postgresql"]}
    if "ssl" in query:
        mode = query.pop("ssl")
        query.setdefault("sslmode", "require" if mode in ("true", "True", "1") else mode)
    return url.set(query=query)
