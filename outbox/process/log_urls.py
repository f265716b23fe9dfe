"""The URL of a built-in log, as far as making its tables needs it."""

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from outbox.errors import ConfigurationError
from outbox.process.urls import DIALECTS, dialect_of, parse_url
from outbox.tables import Place

_LOG_SETTINGS = ("partitions", "retain", "schema", "prefix")


def parse_log_url(text: str, place: Place) -> tuple[URL, Place]:
    """Return the database that a built-in log's URL names, and where the log's tables lie in it.

    Args:
        text: the log's URL; its `?schema=` and `?prefix=` beat `place`.
        place: where the tables lie otherwise.

    Raises:
        ConfigurationError: it is no URL, or of a log that has no tables.
    """
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        url = parse_url(text)
    if dialect_of(url) not in DIALECTS:
        raise ConfigurationError(
            f"a log at {dialect_of(url)}:// has no tables to make: only the built-in log has, at postgresql:// or sqlite:///"
        )
    settings = {name: _single(url.query[name]) for name in _LOG_SETTINGS if name in url.query}
    lies = Place(settings.get("schema") or place.schema, settings.get("prefix", place.prefix))
    return parse_url(url.difference_update_query(_LOG_SETTINGS).render_as_string(hide_password=False)), lies


def _single(value: str | tuple[str, ...]) -> str:
    return value if isinstance(value, str) else value[-1]
