"""A group's ids on SQLite, walked by rowid."""

from datetime import UTC, datetime

from sqlalchemy import URL

from inbox.retention.ids import Looked
from outbox.journal.sqlite import parsed_time, stored_time
from outbox.process.sqlite import connect, immediate, translated
from outbox.tables.names import Place

SLICE_ROWS = 1_000
BUSY_SECONDS = 1.0


class SqliteIds:
    """See `Ids`."""

    def __init__(self, url: URL, place: Place, group: str) -> None:
        self._inbox = place.sql("inbox")
        self._group = group
        self._connection = connect(url, busy_seconds=BUSY_SECONDS)

    def alone(self) -> bool:
        """Return True: whoever prunes is the file's one writer for a moment."""
        return True

    def clock(self) -> datetime:
        """Return the host's time."""
        return datetime.now(UTC)

    def slices(self) -> range:
        """Return the first rowids of slices."""
        with translated():
            first, last = self._connection.execute(
                f"select coalesce(min(rowid), 0), coalesce(max(rowid), -1) from {self._inbox}"
            ).fetchone()
        return range(first, last + 1, SLICE_ROWS)

    def prune(self, begin: int, *, before: datetime | None, upto: datetime) -> Looked:
        """Delete old ids in a slice; see `Ids.prune`."""
        where = "rowid >= ? and rowid < ? and consumer_group = ?"
        slice_of = (begin, begin + SLICE_ROWS, self._group)
        with translated(), immediate(self._connection):
            (newest,) = self._connection.execute(
                f"select max(received_at) from {self._inbox} where {where} and received_at <= ?",
                (*slice_of, stored_time(upto)),
            ).fetchone()
            deleted = self._connection.execute(
                f"delete from {self._inbox} where {where} and received_at < ?",
                (*slice_of, None if before is None else stored_time(before)),
            ).rowcount
        return Looked(deleted, None if newest is None else parsed_time(newest))

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()
