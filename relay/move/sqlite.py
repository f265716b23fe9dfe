"""Moving chunks inside one SQLite file: entries, records and the next step are one transaction."""

import sqlite3

from outbox.journal import boot_seconds
from outbox.journal.sqlite import SqliteLease
from outbox.process.sqlite import immediate, translated
from relay.checkpoint import Checkpoint
from relay.failpoints import Failpoint, failpoint
from relay.logs.builtin import BuiltinLog
from relay.logs.builtin.sqlite import SqliteStore
from relay.logs.cloudevents import source_of
from relay.move.contract import Moved, Work
from relay.reader.contract import Limits
from relay.reader.sqlite import SqliteReader


class LocalSqliteMover:
    """Moves chunks on one connection; exactly once, since records and checkpoint are one transaction."""

    def __init__(
        self, connection: sqlite3.Connection, reader: SqliteReader, lease: SqliteLease, log: BuiltinLog, work: Work
    ) -> None:
        self._connection = connection
        self._reader = reader
        self._lease = lease
        self._log = SqliteStore(log.address, connection=connection)
        self._source = source_of(work.installation)
        self._limits = Limits()
        self._checkpoint = Checkpoint.of(lease.held.state)

    def step(self) -> Moved:
        """Move the next chunk; see `Mover.step`."""
        _, selection = self._reader.look(self._checkpoint, self._limits)
        if selection is None:
            return Moved(0, empty=True)
        failpoint(Failpoint.READ)
        sent = boot_seconds()
        with translated(), immediate(self._connection):
            epoch = self._lease.prove()["epoch"]
            chunk = self._reader.fetch(selection, self._limits)
            self._log.append(chunk.entries, epoch, self._source)
            row = self._lease.advance_within(**chunk.after.columns())
        failpoint(Failpoint.APPENDED)
        self._lease.moved(row, sent)
        self._checkpoint = chunk.after
        return Moved(len(chunk.entries), empty=False)

    def renew(self) -> None:
        """Renew the lease."""
        self._lease.advance(**self._checkpoint.columns())

    def finish(self) -> None:
        """Nothing: a step leaves nothing behind it."""

    def close(self) -> None:
        """Nothing is held but the connection."""
