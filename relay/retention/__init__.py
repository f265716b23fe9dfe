"""Deleting what every relay has read and is old enough: the outbox's entries, and a log's records that are ours."""

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import URL

from outbox.process.urls import dialect_of
from outbox.tables import Place
from relay.retention.contract import Entries


@contextmanager
def opened(url: URL, place: Place, name: str) -> Iterator[Entries]:
    """Open a connection to the outbox's entries; `name` is what the database shows of it.

    Raises:
        Unreachable: the database does not answer.
    """
    entries = _open(url, place, name)
    try:
        yield entries
    finally:
        entries.close()


def _open(url: URL, place: Place, name: str) -> Entries:
    if dialect_of(url) == "postgresql":
        from relay.retention.postgresql import PostgresqlEntries  # noqa: PLC0415 - needs the extra

        return PostgresqlEntries(url, place, name=name)
    from relay.retention.sqlite import SqliteEntries  # noqa: PLC0415 - one dialect is enough for one process

    return SqliteEntries(url, place)
