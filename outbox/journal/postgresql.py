"""Journals on PostgreSQL."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from outbox.errors import Fenced, Forgotten, OutboxError
from outbox.journal.lease import KEEP_STEPS, Held, Taken, boot_seconds
from outbox.process.postgresql import Connection, execute, translated

_ATTEMPTS = 5
LEASE_COLUMNS = ("epoch", "owner", "backend", "lease_seconds", "lease_until")
_RENEWED = {
    "backend": "pg_backend_pid()",
    "lease_seconds": "%(lease)s",
    "lease_until": "clock_timestamp() + make_interval(secs => %(lease)s)",
}


class PostgresqlJournal:
    """One key of one journal, as the texts of its statements; they bind `parameters`, and `step` and `epoch`.

    Args:
        table: its quoted name.
        key: the columns before `step` in its key, and their values.
        columns: all other columns that a step carries on from the one before it.
    """

    def __init__(self, table: str, key: Mapping[str, object], columns: Sequence[str]) -> None:
        self._table = table
        self._columns = (*key, *columns)
        self._where = " and ".join(f"{name} = %(key_{name})s" for name in key)
        self.parameters: dict[str, object] = {f"key_{name}": value for name, value in key.items()}

    def newest(self) -> str:
        """Return the SELECT that locks the newest step, whosever it is: for those who take it over."""
        return f"select * from {self._table} where {self._where} order by step desc limit 1 for update"

    def standing(self, condition: str = "") -> str:
        """Return the SELECT that locks the step we stand on; no row means fenced.

        The unique key alone is not enough once steps are pruned: a late insert of a pruned step finds no conflict.
        """
        return (
            f"select * from {self._table} where {self._where}"
            f" and step = %(step)s and epoch = %(epoch)s{condition} for update"
        )

    def insert(self, values: Mapping[str, str], *, source: str = "cur", where: str = "true") -> str:
        """Return the INSERT of the step after `cur`, where the SQL expressions of `values` replace the old values."""
        columns = ", ".join((*self._columns, "step"))
        carried = ", ".join(values.get(name, f"cur.{name}") for name in self._columns)
        return (
            f"insert into {self._table} ({columns}) select {carried}, cur.step + 1"
            f" from {source} where {where} returning *"
        )


class PostgresqlLease:
    """A journal with a lease: one key of one table, on one connection."""

    def __init__(
        self,
        connection: Connection,
        table: str,
        key: Mapping[str, object],
        *,
        owner: str,
        lease_seconds: float,
        state: Sequence[str] = (),
    ) -> None:
        self._connection = connection
        self._journal = PostgresqlJournal(table, key, (*LEASE_COLUMNS, *state))
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

    @property
    def parameters(self) -> dict[str, object]:
        """What the texts of `current` and `following` bind."""
        bound = {**self._journal.parameters, "owner": self._owner, "lease": self._seconds}
        if self._held is not None:
            bound |= {"step": self._held.step, "epoch": self._held.epoch}
        return bound

    def current(self) -> str:
        """Return the SELECT that locks the step we stand on; no row means fenced."""
        # An epoch names a connection: a statement of an earlier one that comes late finds another backend here.
        return self._journal.standing(" and backend = pg_backend_pid()")

    def following(self, state: Mapping[str, str], *, source: str = "cur", where: str = "true") -> str:
        """Return the INSERT of the step after `cur`, where the SQL expressions of `state` replace the old values."""
        return self._journal.insert({**_RENEWED, **state}, source=source, where=where)

    def take(self) -> Taken:
        """Take the lease; see `Lease.take`."""
        for _ in range(_ATTEMPTS):
            # Somebody inserted the step after the one we locked: look again. This also settles a COMMIT in doubt.
            with suppress(Fenced):
                return self._take()
        return Taken(None, None, self._seconds)

    def _take(self) -> Taken:
        # One autocommit statement, so that a candidate that is stopped in it holds no lock while it waits for its
        # client.
        # clock_timestamp(): now() is the time before a wait. A lease that ends later than its own length from now was
        # given by a clock that has been set back since.
        free = (
            "cur.owner is null or cur.owner = %(owner)s or cur.lease_until < clock_timestamp()"
            " or cur.lease_until > clock_timestamp() + make_interval(secs => cur.lease_seconds)"
        )
        sent = boot_seconds()
        row = self._one(
            f"with cur as ({self._journal.newest()}),"
            f" taken as ({self.following({'epoch': 'cur.epoch + 1', 'owner': '%(owner)s'}, where=free)})"
            " select cur.owner as holder, taken.*,"
            " extract(epoch from cur.lease_until - clock_timestamp())::float8 as remaining"
            " from cur left join taken on true"
        )
        if row is None:
            raise Forgotten("this registration is gone: it was forgotten while we worked for it")
        if row["step"] is None:
            return Taken(None, row["holder"], max(0.0, row["remaining"]))
        return Taken(self.moved(row, sent), None, 0.0)

    def advance(self, **state: object) -> Held:
        """Insert the next step; see `Lease.advance`."""
        sent = boot_seconds()
        expressions = {name: f"%(new_{name})s" for name in state}
        row = self._one(
            f"with cur as ({self.current()}) {self.following(expressions)}",
            {f"new_{name}": value for name, value in state.items()},
        )
        if row is None:
            raise Fenced("another process has taken the lease")
        return self.moved(row, sent)

    def release(self) -> None:
        """Give the lease back; see `Lease.release`."""
        if self._held is None:
            return
        ended = self.following({"owner": "null", "lease_until": "clock_timestamp()"})
        with suppress(OutboxError):
            self._one(f"with cur as ({self.current()}) {ended}")
        self._held = None

    def moved(self, row: Mapping[str, Any], sent: float) -> Held:
        """Take over the step that a statement of ours inserted; `sent` is `boot_seconds()` from before it was sent."""
        state = {name: row[name] for name in self._state}
        self._held = Held(row["step"], row["epoch"], self._seconds, sent + self._seconds, state)
        return self._held

    def _one(self, statement: str, parameters: Mapping[str, object] | None = None) -> dict[str, Any] | None:
        with translated():
            return execute(self._connection, statement, {**self.parameters, **(parameters or {})}).fetchone()


def prune_steps(connection: Connection, table: str, key: Mapping[str, object], *, newest: int, lowest: int = 0) -> int:
    """Delete the steps of one key from `lowest` up to the last `KEEP_STEPS` before `newest`; return the new lowest.

    `lowest` saves the scan over what was pruned before. It must not outlive its connection: a crash undoes a prune.
    """
    below = newest - KEEP_STEPS
    if below <= lowest:
        return lowest
    where = " and ".join(f"{name} = %(key_{name})s" for name in key)
    with translated():
        execute(
            connection,
            f"delete from {table} where {where} and step >= %(lowest)s and step < %(below)s",
            {**{f"key_{name}": value for name, value in key.items()}, "lowest": lowest, "below": below},
        )
    return below
