"""A group's ids on PostgreSQL, walked by blocks of the table (TID range scans)."""

from contextlib import suppress
from datetime import datetime
from typing import Any

from sqlalchemy import URL

from inbox.retention.ids import Looked
from outbox.errors import OutboxError
from outbox.process.postgresql import connect, execute, translated
from outbox.tables.names import Place

SLICE_BLOCKS = 64
"""About six thousand rows."""
STATEMENT_SECONDS = 10.0
LOCK_SECONDS = 1.0

_RANGE = "ctid >= %(first)s::tid and ctid < %(end)s::tid and consumer_group = %(consumer_group)s"
_PRUNE = f"""
with slice as materialized (
    select received_at from {{inbox}} where {_RANGE}
), gone as (
    delete from {{inbox}} where {_RANGE} and received_at < %(before)s::timestamptz returning 1
)
select (select count(*) from gone) as deleted,
    (select max(received_at) from slice where received_at <= %(upto)s::timestamptz) as newest
"""


class PostgresqlIds:
    """See `Ids`."""

    def __init__(self, url: URL, place: Place, group: str) -> None:
        self._inbox = place.sql("inbox")
        self._group = group
        self._prune = _PRUNE.format(inbox=self._inbox)
        self._connection = connect(
            url, name=f"inbox-retention {group}", statement_seconds=STATEMENT_SECONDS, lock_seconds=LOCK_SECONDS
        )

    def alone(self) -> bool:
        """Return whether no other member prunes: by a lock that ends with the session."""
        row = self._row(
            "select pg_try_advisory_lock(hashtextextended(%(inbox)s || %(consumer_group)s, 0)) as alone",
            inbox=self._inbox,
        )
        return bool(row["alone"])

    def clock(self) -> datetime:
        """Return the server's time."""
        time: datetime = self._row("select clock_timestamp() as time")["time"]
        return time

    def slices(self) -> range:
        """Return the first blocks of slices."""
        row = self._row(
            "select pg_relation_size(%(inbox)s::regclass) / current_setting('block_size')::bigint as blocks",
            inbox=self._inbox,
        )
        return range(0, row["blocks"], SLICE_BLOCKS)

    def prune(self, begin: int, *, before: datetime | None, upto: datetime) -> Looked:
        """Delete old ids in a slice; see `Ids.prune`."""
        row = self._row(self._prune, first=f"({begin},0)", end=f"({begin + SLICE_BLOCKS},0)", before=before, upto=upto)
        return Looked(row["deleted"], row["newest"])

    def close(self) -> None:
        """Close the connection, and let others prune: the server notices its end a moment later."""
        with suppress(OutboxError):
            self._row("select pg_advisory_unlock_all()")
        self._connection.close()

    def _row(self, statement: str, **parameters: object) -> dict[str, Any]:
        with translated():
            row = execute(self._connection, statement, {"consumer_group": self._group, **parameters}).fetchone()
        return row or {}
