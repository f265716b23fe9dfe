"""Reading an outbox on PostgreSQL in commit order: windows between snapshots.

A window is the set of entries visible in snapshot S1 and not in S0; inside it the order is by position. A snapshot
that sees
B saw everything that B waited for, so A of the same key lies in the same window, with a lower position, or in an
earlier one. Nothing waits for open transactions: their entries come in the window in which they become visible.

S1 is taken by a statement of its own, and the statements that read the window start on the same session after it came
back: an older snapshot under them would see nothing, and the window would count as read.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from outbox.errors import MessageAtFault, Retryable, TimedOut
from outbox.message import Position
from outbox.process.postgresql import Ahead, Connection, execute, fetch, send_ahead, translated
from outbox.tables import Place
from relay.checkpoint import Checkpoint
from relay.logs.headers import header_texts
from relay.logs.rows import Row, Rows
from relay.reader.contract import Chunk, Limits, Query
from relay.topics import TopicPatterns

COLUMNS = "position, id, source, topic, key, type, payload, content_type, headers, created_at"
ROW = (
    "position, id::text, source, topic, key, type, payload, content_type, headers,"
    """ to_char(created_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), pg_backend_pid()"""
)
"""The columns of a `Row`, with texts as they go on the wire; and who answered."""
SPARSE = 100
"""A statement walks so many positions for each entry that it may give: its time is bounded however few are ours."""


@dataclass(frozen=True, slots=True)
class Selection:
    """What comes next in a window.

    Attributes:
        checkpoint: where it begins; both snapshots are set.
        upto: only entries up to this position; None: all of a window that is sorted.
        end: the highest position of the window, when it is walked.
        walked: the window is large: go along the primary key. Otherwise it is sorted.
    """

    checkpoint: Checkpoint
    upto: Position | None = None
    end: Position | None = None
    walked: bool = False

    @property
    def last_slice(self) -> bool:
        """Return whether nothing of the window lies behind this selection."""
        return self.upto is None or (self.end is not None and self.upto >= self.end)


class PostgresqlReader:
    """Reads one outbox on one connection."""

    def __init__(self, connection: Connection, place: Place, topics: TopicPatterns) -> None:
        self._connection = connection
        # As the server says: a pooler in session mode names a process of its own making in the handshake.
        self._backend: int | None = None
        self._outbox = place.sql("outbox")
        self._topics, self._bound = _topic_condition(topics)
        # The extent of the window being walked: a pure function of its two snapshots.
        self._walked: tuple[str, str, Position, Position] | None = None
        self._ahead: Ahead | None = None
        self._expected: tuple[Selection, Limits] | None = None

    def snapshot(self) -> str:
        """Return the current snapshot, taken by a statement of its own."""
        row = self._row("select pg_current_snapshot()::text as snapshot, pg_backend_pid() as backend", {})
        return str(row["snapshot"])

    def look(self, checkpoint: Checkpoint, limits: Limits) -> tuple[Checkpoint, Selection | None]:
        """Return what comes next; see `Reader.look`."""
        if checkpoint.snapshot_to is None:
            snapshot = self.snapshot()
            if snapshot == checkpoint.snapshot_from:
                return checkpoint, None
            checkpoint = replace(checkpoint, snapshot_to=snapshot, last=Position(0))
        if self._is_walked(checkpoint):
            return self._walk(checkpoint, limits)
        entries, size = self._measure(checkpoint, limits)
        if entries == 0:
            return _window_done(checkpoint), None
        if entries <= limits.entries and size <= limits.bytes:
            return checkpoint, Selection(checkpoint)
        self._survey(checkpoint)
        return self._walk(checkpoint, limits)

    def _is_walked(self, checkpoint: Checkpoint) -> bool:
        return self._walked is not None and self._walked[:2] == (checkpoint.snapshot_from, checkpoint.snapshot_to)

    def _walk(self, checkpoint: Checkpoint, limits: Limits) -> tuple[Checkpoint, Selection | None]:
        checkpoint = self._from_first(checkpoint)
        end = self._walked[3] if self._walked else Position(0)
        if checkpoint.last >= end:
            return _window_done(checkpoint), None
        return checkpoint, Selection(
            checkpoint, Position(min(end, checkpoint.last + limits.entries * SPARSE)), end, walked=True
        )

    def _from_first(self, checkpoint: Checkpoint) -> Checkpoint:
        first = self._walked[2] if self._walked else Position(0)
        return replace(checkpoint, last=Position(max(checkpoint.last, first - 1)))

    def passed(self, selection: Selection) -> Checkpoint:
        """Return the checkpoint behind a selection that turned out to be empty."""
        if selection.last_slice:
            return _window_done(selection.checkpoint)
        assert selection.upto is not None  # noqa: S101 - a small window is its own last slice
        return replace(selection.checkpoint, last=selection.upto)

    def behind(self, selection: Selection, last: Position) -> Checkpoint:
        """Return the checkpoint behind a selection's last entry."""
        checkpoint = selection.checkpoint.behind(last)
        ended = selection.upto is None if selection.end is None else last >= selection.end
        return _window_done(checkpoint) if ended else checkpoint

    def before(self, selection: Selection, position: Position) -> Selection:
        """Return the part of a selection that lies before a position."""
        return replace(selection, upto=Position(position - 1), end=None)

    def within(self, checkpoint: Checkpoint, last: Position) -> Selection:
        """Return what lies behind the checkpoint up to a position, in the checkpoint's own window."""
        # Sorted or walked, as for a chunk that is formed: walking through a small window that reaches far back would
        # look at all that was read since, and sorting a large one at all of it.
        _, selection = self.look(checkpoint, Limits())
        return replace(selection or Selection(checkpoint), upto=last, end=None)

    def _measure(self, checkpoint: Checkpoint, limits: Limits) -> tuple[int, int]:
        """Return how many entries the window has yet, and their bytes; counted up to one more than fit."""
        ranges = self._ranges("position, coalesce(octet_length(payload), 0) as size", "limit %(most)s")
        try:
            row = self._row(
                "select count(*) as entries, coalesce(sum(size), 0)::bigint as size, pg_backend_pid() as backend"
                f" from (select * from ({ranges}) as both_ranges limit %(most)s) as window_entries",
                {**self._parameters(checkpoint), "most": limits.entries + 1},
            )
        except TimedOut:
            # Many entries of others, and few of ours among them: too large to be looked at in one statement.
            return limits.entries + 1, 0
        return int(row["entries"]), int(row["size"])

    def _survey(self, checkpoint: Checkpoint) -> None:
        """Find the first and last position of a window that is too large for one chunk."""
        assert checkpoint.snapshot_to is not None  # noqa: S101 - a window has both
        ranges = self._ranges("position", "", topics=False)
        try:
            row = self._row(
                "select min(position) as first, max(position) as last, pg_backend_pid() as backend"
                f" from ({ranges}) as window_entries",
                self._parameters(checkpoint),
            )
        except TimedOut:
            # Too many to look at in one statement: walk the whole table, slice by slice.
            row = self._row(
                "select min(position) as first, max(position) as last, pg_backend_pid() as backend"
                f" from {self._outbox} where position > %(last)s",
                self._parameters(checkpoint),
            )
        extent = Position(row["first"] or 0), Position(row["last"] or 0)
        self._walked = (checkpoint.snapshot_from, checkpoint.snapshot_to, *extent)

    def query(self, selection: Selection, limits: Limits) -> Query:
        """Return the selection as a SELECT, and the next checkpoint as expressions over what it gives."""
        parameters = {**self._parameters(selection.checkpoint), "most": limits.entries, "most_bytes": limits.bytes}
        position = "greatest(cur.position, tally.last)"
        parameters |= {"upto": selection.upto, "end": selection.end}
        done = "true" if selection.upto is None else "tally.last >= %(end)s" if selection.end is not None else "false"
        state = {
            "snapshot_from": f"case when {done} then %(s1)s else %(s0)s end",
            "snapshot_to": f"case when {done} then null else %(s1)s end",
            "last": f"case when {done} then 0 else tally.last end",
            "position": position,
        }
        return Query(self._along_primary_key() if selection.walked else self._sorted(selection.upto), parameters, state)

    def whole(self, selection: Selection) -> tuple[str, dict[str, Any]]:
        """Return all of a selection that ends at a position, as a SELECT of `COLUMNS` in their order."""
        parameters = {**self._parameters(selection.checkpoint), "upto": selection.upto}
        return self._walked_along(COLUMNS) if selection.walked else self._sorted(selection.upto), parameters

    def expect(self, checkpoint: Checkpoint, limits: Limits) -> None:
        """Have the server read on, if it is clear from where; see `Reader.expect`."""
        if not self._is_walked(checkpoint):
            return
        _, selection = self._walk(checkpoint, limits)
        if selection is not None:
            with translated():
                self._ahead = send_ahead(self._connection, *self._select(selection, limits))
            self._expected = selection, limits

    def fetch(self, selection: Selection, limits: Limits) -> Chunk:
        """Return the entries of a selection; see `Reader.fetch`."""
        rows = self._expected_rows(selection, limits)
        if rows is None:
            with translated():
                rows = fetch(self._connection, *self._select(selection, limits))
        for row in rows[:1]:
            self._same_backend({"backend": row[-1]})
        clean = _clean(rows)
        return Chunk(Rows(clean), self._after(selection, clean, whole=len(clean) == len(rows)))

    def _expected_rows(self, selection: Selection, limits: Limits) -> list[Any] | None:
        ahead, self._ahead = self._ahead, None
        # Another statement may have come in between, and have taken them.
        if ahead is None or self._connection.ahead is not ahead:
            return None
        rows = ahead.rows()
        return rows if self._expected == (selection, limits) else None

    def _select(self, selection: Selection, limits: Limits) -> tuple[str, Mapping[str, object]]:
        query = self.query(selection, limits)
        return f"select {ROW} from ({query.select}) as chunk order by position", query.parameters

    def _after(self, selection: Selection, rows: Sequence[Row], *, whole: bool) -> Checkpoint:
        if not rows:
            return self.passed(selection)
        last = Position(rows[-1][0])
        return self.behind(selection, last) if whole else selection.checkpoint.behind(last)

    def lag(self, snapshot_from: str, snapshot_to: str | None, last: int) -> tuple[int, float]:
        """Return how many entries are committed and not done, and the age of the oldest in seconds."""
        undone = f"({self._ranges('position, transaction_id, created_at', '')})"
        row = self._row(
            "select count(*) as entries, pg_backend_pid() as backend,"
            " coalesce(greatest(extract(epoch from clock_timestamp() - min(created_at)), 0), 0)::float8 as seconds"
            f" from {undone} as window_entries where position > %(done)s"
            " or not pg_visible_in_snapshot(transaction_id, %(inside)s::pg_snapshot)",
            {
                "s0": snapshot_from,
                "s1": self.snapshot(),
                "last": 0,
                "done": last if snapshot_to else 0,
                "inside": snapshot_to or snapshot_from,
                **self._bound,
            },
        )
        return int(row["entries"]), float(row["seconds"])

    def _sorted(self, upto: Position | None) -> str:
        bound = "" if upto is None else " where position <= %(upto)s"
        return f"select {COLUMNS} from ({self._ranges(COLUMNS, '')}) as window_entries{bound} order by position"

    def _walked_along(self, columns: str) -> str:
        return (
            f"select {columns} from {self._outbox}"
            " where position > %(last)s and position <= %(upto)s"
            " and pg_visible_in_snapshot(transaction_id, %(s1)s::pg_snapshot)"
            " and not pg_visible_in_snapshot(transaction_id, %(s0)s::pg_snapshot)"
            f"{self._topics} order by position"
        )

    def _along_primary_key(self) -> str:
        walked = f"{self._walked_along(COLUMNS)} limit %(most)s"
        size = "coalesce(octet_length(payload), 0)"
        running = f"sum({size}) over (order by position rows between unbounded preceding and 1 preceding)"
        return (
            f"select * from (select walked.*, coalesce({running}, 0) as bytes_before from ({walked}) as walked)"
            " as summed where bytes_before < %(most_bytes)s order by position"
        )

    def _ranges(self, columns: str, limit: str, *, topics: bool = True) -> str:
        """Return the window as two index ranges, never a scan of what was read.

        What was in progress in S0, one probe each (an `= any(list)` is quadratic behind a bulk load); and what began
        later.
        """
        matching = self._topics if topics else ""
        # Not `transaction_id = x order by position`: behind a few bulk loads that is many rows for the planner, and it
        # walks the primary key from the first entry that is kept.
        in_progress = (
            "select late.* from pg_snapshot_xip(%(s0)s::pg_snapshot) as open_transaction(id)"
            f" cross join lateral (select {columns} from {self._outbox}"
            " where (transaction_id, position) > (open_transaction.id, %(last)s)"
            f" and transaction_id <= open_transaction.id{matching}"
            f" order by transaction_id, position {limit}) as late"
            " where pg_visible_in_snapshot(open_transaction.id, %(s1)s::pg_snapshot)"
        )
        # Not `position > x`: with a limit, a backlog looks as if it lay all over the table, and the planner walks the
        # primary key through all that was read to find a few of it.
        began_later = (
            f"(select {columns} from {self._outbox}"
            " where transaction_id >= pg_snapshot_xmax(%(s0)s::pg_snapshot)"
            " and transaction_id < pg_snapshot_xmax(%(s1)s::pg_snapshot)"
            " and pg_visible_in_snapshot(transaction_id, %(s1)s::pg_snapshot)"
            f" and position + 0 > %(last)s{matching} {limit})"
        )
        return f"{in_progress} union all {began_later}"

    def _parameters(self, checkpoint: Checkpoint) -> dict[str, Any]:
        return {
            "s0": checkpoint.snapshot_from,
            "s1": checkpoint.snapshot_to,
            "last": checkpoint.last,
            **self._bound,
        }

    def _row(self, statement: str, parameters: dict[str, Any]) -> dict[str, Any]:
        with translated():
            row = execute(self._connection, statement, parameters).fetchone()
        if row is None:
            raise Retryable("the database gave no answer")
        self._same_backend(row)
        return row

    def _same_backend(self, row: dict[str, Any]) -> None:
        self._backend = self._backend or row["backend"]
        if row["backend"] != self._backend:
            raise Retryable("another server process answered: the connection was lost behind a proxy or a pooler")


def _window_done(checkpoint: Checkpoint) -> Checkpoint:
    assert checkpoint.snapshot_to is not None  # noqa: S101 - a window has both
    return replace(checkpoint, snapshot_from=checkpoint.snapshot_to, snapshot_to=None, last=Position(0))


def _clean(rows: list[Any]) -> list[Row]:
    """Return the rows with headers of texts, up to the first that cannot have them.

    Raises:
        MessageAtFault: that is the first of all.
    """
    for place, row in enumerate(rows):
        if row[8] is None:
            continue
        try:
            rows[place] = (*row[:8], header_texts(row[8]), *row[9:])
        except ValueError as error:
            if place:
                return rows[:place]
            raise MessageAtFault(
                f"message {row[1]} of topic {row[3]!r} (position {row[0]}) cannot be moved: {error}; delete its row in"
                " the outbox, and write the message anew"
            ) from None
    return rows


def _topic_condition(topics: TopicPatterns) -> tuple[str, dict[str, str]]:
    """Return a condition on `topic`, beginning with AND, and what it binds."""
    if topics.everything:
        return "", {}
    bound = {f"topic_{n}": name for n, name in enumerate(topics.names)}
    prefixes = {f"prefix_{n}": prefix for n, prefix in enumerate(topics.prefixes)}
    parts = [f"topic = %({name})s" for name in bound] + [f"starts_with(topic, %({name})s)" for name in prefixes]
    return f" and ({' or '.join(parts)})", bound | prefixes
