"""Journals on SQLite: one writer at a time, so a step compares (step, epoch, owner); the clock is the host's."""

import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

from outbox.errors import Fenced, Forgotten, OutboxError
from outbox.journal.lease import KEEP_STEPS, Held, Taken, boot_seconds
from outbox.process.sqlite import immediate, translated


def stored_time(time: datetime) -> str:
    """Return a time as SQLAlchemy stores it on SQLite: UTC without a zone."""
    return time.astimezone(UTC).replace(tzinfo=None).isoformat(" ", "microseconds")


def parsed_time(text: str) -> datetime:
    """Return the aware time that SQLite stores as text."""
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


class SqliteJournal:
    """One key of one journal, inside the caller's `immediate` transaction.

    Args:
        connection: where the transaction is.
        table: its quoted name.
        key: the columns before `step` in its key, and their values.
    """

    def __init__(self, connection: sqlite3.Connection, table: str, key: Mapping[str, object]) -> None:
        self._connection = connection
        self._table = table
        self._key = dict(key)
        self._where = " and ".join(f"{name} = :{name}" for name in key)

    def newest(self) -> dict[str, Any] | None:
        """Return the newest step, whosever it is: for those who take it over."""
        return self._one(f"select * from {self._table} where {self._where} order by step desc limit 1", {})

    def standing(self, **ours: object) -> dict[str, Any] | None:
        """Return the step whose columns are these; None means fenced."""
        condition = "".join(f" and {name} = :{name}" for name in ours)
        return self._one(f"select * from {self._table} where {self._where}{condition}", ours)

    def insert(self, old: Mapping[str, Any], **values: object) -> dict[str, Any]:
        """Insert the step after `old`, where `values` replace the old ones; return it.

        Raises:
            IntegrityError: it is there already.
        """
        row = {**old, **values, "step": old["step"] + 1}
        names, places = ", ".join(row), ", ".join(f":{name}" for name in row)
        self._connection.execute(f"insert into {self._table} ({names}) values ({places})", row)
        return row

    def _one(self, statement: str, parameters: Mapping[str, object]) -> dict[str, Any] | None:
        row = self._connection.execute(statement, {**self._key, **parameters}).fetchone()
        return None if row is None else dict(row)


class SqliteLease:
    """A journal with a lease: one key of one table, on one connection."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        table: str,
        key: Mapping[str, object],
        *,
        owner: str,
        lease_seconds: float,
        state: Sequence[str] = (),
    ) -> None:
        self._connection = connection
        self._journal = SqliteJournal(connection, table, key)
        self._state = tuple(state)
        self._owner = owner
        self._seconds = lease_seconds
        self._held: Held | None = None

    @property
    def held(self) -> Held:
        """The lease as of the last statement."""
        if self._held is None:
            raise Fenced("the lease was not taken")
        return self._held

    def take(self) -> Taken:
        """Take the lease; see `Lease.take`."""
        sent = boot_seconds()
        with translated(), immediate(self._connection):
            newest = self._journal.newest()
            if newest is None:
                raise Forgotten("this registration is gone: it was forgotten while we worked for it")
            remaining = parsed_time(newest["lease_until"]) - datetime.now(UTC)
            # A lease that ends later than its own length from now was given by a clock that has been set back since.
            runs = timedelta(0) <= remaining <= timedelta(seconds=newest["lease_seconds"])
            if newest["owner"] not in (None, self._owner) and runs:
                return Taken(None, newest["owner"], remaining.total_seconds())
            row = self._insert({**newest, "epoch": newest["epoch"] + 1, "owner": self._owner})
        return Taken(self.moved(row, sent), None, 0.0)

    def prove(self) -> dict[str, Any]:
        """Return the step we stand on, inside the caller's `immediate` transaction.

        Raises:
            Fenced: it is gone, or not ours.
        """
        row = self._journal.standing(step=self.held.step, epoch=self.held.epoch, owner=self._owner)
        if row is None:
            raise Fenced("another process has taken the lease")
        return row

    def advance_within(self, **state: object) -> dict[str, Any]:
        """Insert the next step in the caller's `immediate` transaction; give the row to `moved` after its COMMIT."""
        return self._insert({**self.prove(), **state})

    def advance(self, **state: object) -> Held:
        """Insert the next step; see `Lease.advance`."""
        sent = boot_seconds()
        with translated(), immediate(self._connection):
            row = self.advance_within(**state)
        return self.moved(row, sent)

    def release(self) -> None:
        """Give the lease back; see `Lease.release`."""
        if self._held is None:
            return
        with suppress(OutboxError, sqlite3.Error), immediate(self._connection):
            self._insert({**self.prove(), "owner": None}, seconds=0.0)
        self._held = None

    def moved(self, row: Mapping[str, Any], sent: float) -> Held:
        """Take over the step that a transaction of ours inserted; `sent` is `boot_seconds()` from before it began."""
        self._held = Held(
            row["step"], row["epoch"], self._seconds, sent + self._seconds, {name: row[name] for name in self._state}
        )
        return self._held

    def _insert(self, old: Mapping[str, Any], *, seconds: float | None = None) -> dict[str, Any]:
        until = datetime.now(UTC) + timedelta(seconds=self._seconds if seconds is None else seconds)
        return self._journal.insert(old, backend=0, lease_seconds=self._seconds, lease_until=stored_time(until))


def prune_steps(connection: sqlite3.Connection, table: str, key: Mapping[str, object], *, newest: int) -> None:
    """Delete the steps of one key but for the last `KEEP_STEPS` before `newest`."""
    where = " and ".join(f"{name} = :{name}" for name in key)
    with translated(), immediate(connection):
        connection.execute(
            f"delete from {table} where {where} and step < :below", {**key, "below": newest - KEEP_STEPS}
        )
