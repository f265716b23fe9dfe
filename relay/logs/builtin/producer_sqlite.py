"""Appending to a built-in log in an SQLite file from another database."""

import sqlite3
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from outbox.errors import Fenced, Retryable, TimedOut
from outbox.journal.sqlite import SqliteJournal, prune_steps, stored_time
from outbox.message import Entry
from outbox.process.sqlite import connect, immediate, translated
from relay.logs.builtin.address import Address
from relay.logs.builtin.producer import STATEMENT_SHARE, prune_now_and_then
from relay.logs.builtin.sqlite import SqliteStore
from relay.logs.cloudevents import source_of
from relay.logs.contract import ProducerIdentity


class SqliteAppender:
    """One connection to the log's file; see `Appender`."""

    def __init__(self, address: Address, identity: ProducerIdentity) -> None:
        self._address = address
        self._identity = identity
        self._source = source_of(identity.installation)
        self._table = address.place.sql("log_chunk")
        self._key = {"incarnation": identity.incarnation.hex}
        self._opened: tuple[sqlite3.Connection, SqliteJournal, SqliteStore] | None = None
        self._step = 0
        self._pruned = 0

    def open(self) -> int:
        """Connect, fence older epochs, and return the number of the last chunk; see `Appender.open`."""
        identity = self._identity
        connection = connect(self._address.url, busy_seconds=identity.lease_seconds * STATEMENT_SHARE)
        journal = SqliteJournal(connection, self._table, self._key)
        self._opened = connection, journal, SqliteStore(self._address, connection=connection)
        ours = {"epoch": identity.epoch, "relay": identity.relay, "installation": identity.installation.hex}
        with translated(), immediate(connection):
            newest = journal.newest() or {**self._key, "step": -1, "epoch": 0, "number": 0}
            if newest["epoch"] > identity.epoch:
                raise Fenced(
                    f"relay {identity.relay!r} produces with epoch {newest['epoch']} by now; this one has"
                    f" {identity.epoch}"
                )
            row = journal.insert(newest, **ours, appended_at=stored_time(datetime.now(UTC)))
        self._step = self._pruned = row["step"]
        return int(row["number"])

    def append(self, number: int, chunk: Sequence[Entry]) -> None:
        """Store the chunk's records and its number; see `Appender.append`."""
        assert self._opened is not None  # noqa: S101 - `open` comes first
        connection, journal, store = self._opened
        begun = False
        try:
            with translated(), immediate(connection):
                begun = True
                row = self._append(journal, store, number, chunk)
        except TimedOut as error:
            # Busy at its begin, nothing is stored. Behind that (a disk that fails at the commit) nobody knows.
            if begun:
                raise Retryable(f"{error}; whether chunk {number} was stored is not known") from error
            raise
        self._step = row["step"]
        self._pruned = prune_now_and_then(
            self._pruned, self._step, lambda: prune_steps(connection, self._table, self._key, newest=self._step)
        )

    def _append(
        self, journal: SqliteJournal, store: SqliteStore, number: int, chunk: Sequence[Entry]
    ) -> dict[str, Any]:
        epoch = self._identity.epoch
        current = journal.standing(step=self._step, epoch=epoch, number=number - 1)
        if current is None:
            raise Fenced(f"another process has opened the producer of relay {self._identity.relay!r}")
        store.append(chunk, epoch, self._source)
        return journal.insert(current, number=number, appended_at=stored_time(datetime.now(UTC)))

    def fault(self, entry: Entry) -> str | None:  # noqa: ARG002 - as every appender's
        """Return nothing: a file stores every text."""
        return None

    def abort(self) -> None:
        """Nothing: waits for the file are short."""

    def close(self) -> None:
        """Close the connection."""
        if self._opened is not None:
            self._opened[0].close()
