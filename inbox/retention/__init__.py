"""Deleting a group's oldest ids: those of messages that the log cannot bring again."""

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import URL

from inbox.retention.ids import Ids
from outbox.process.urls import dialect_of
from outbox.tables.names import Place


@contextmanager
def opened(url: URL, place: Place, group: str) -> Iterator[Ids]:
    """Open a connection to a group's ids.

    Raises:
        Unreachable: the database does not answer.
    """
    ids = _open(url, place, group)
    try:
        yield ids
    finally:
        ids.close()


def _open(url: URL, place: Place, group: str) -> Ids:
    if dialect_of(url) == "postgresql":
        from inbox.retention.postgresql import PostgresqlIds  # noqa: PLC0415 - needs the extra

        return PostgresqlIds(url, place, group)
    from inbox.retention.sqlite import SqliteIds  # noqa: PLC0415 - one dialect is enough for one process

    return SqliteIds(url, place, group)
