"""The URL of a built-in log: a database URL with settings of ours in its query."""

from dataclasses import dataclass

from sqlalchemy import URL

from outbox.errors import ConfigurationError
from outbox.process.durations import parse_retention
from outbox.process.urls import parse_url, shown
from outbox.tables import Place
from relay.logs.contract import LogOptions

PARTITIONS = 8
MOST_PARTITIONS = 1_024
RETAIN_SECONDS = 7 * 86_400


@dataclass(frozen=True, slots=True)
class Address:
    """Where a built-in log is, and what its new topics are made with.

    Attributes:
        url: the database, without our settings.
        place: schema and prefix of the log's tables.
        partitions: of topics that are made.
        retain_seconds: of topics that are made.
    """

    url: URL
    place: Place
    partitions: int = PARTITIONS
    retain_seconds: int = RETAIN_SECONDS

    def shown(self) -> str:
        """Return the URL with the place of the tables, and without a password."""
        place = {"schema": self.place.schema, "prefix": self.place.prefix}
        return shown(self.url.update_query_dict({name: value for name, value in place.items() if value}))


def parse_address(text: str, options: LogOptions) -> Address:
    """Take `?partitions=8&retain=7d&schema=&prefix=` off a log's URL.

    Raises:
        ConfigurationError: a setting cannot be read.
    """
    url = parse_url(text)
    query = {name: value if isinstance(value, str) else value[-1] for name, value in url.query.items()}
    schema = query.get("schema", options.schema) or None
    if schema and url.drivername.startswith("sqlite"):
        raise ConfigurationError("SQLite has no schemas: leave `schema` out, or use a prefix")
    return Address(
        url.difference_update_query(["partitions", "retain", "schema", "prefix"]),
        Place(schema, query.get("prefix", options.prefix)),
        _partitions(query.get("partitions")),
        _retain(query.get("retain")),
    )


def _partitions(text: str | None) -> int:
    if text is None:
        return PARTITIONS
    if not text.isdecimal() or not 1 <= int(text) <= MOST_PARTITIONS:
        raise ConfigurationError(f"the log's partitions={text!r}: write a number from 1 to {MOST_PARTITIONS}")
    return int(text)


def _retain(text: str | None) -> int:
    if text is None:
        return RETAIN_SECONDS
    return int(parse_retention(text, "the log's retain").total_seconds())
