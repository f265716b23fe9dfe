"""Moving chunks inside one PostgreSQL database: one message appends the records and the next step."""

from outbox.errors import MessageAtFault, TimedOut
from outbox.journal import boot_seconds
from outbox.journal.postgresql import PostgresqlLease
from outbox.message import Position
from outbox.process.postgresql import Connection
from outbox.tables import Place
from relay.checkpoint import Checkpoint
from relay.failpoints import Failpoint, failpoint
from relay.logs.builtin import BuiltinLog
from relay.logs.builtin.append_postgresql import SOURCE, WHERE, Append, Appended, append, make_topics
from relay.logs.cloudevents import source_of
from relay.move.contract import Moved, Work
from relay.reader.contract import Limits
from relay.reader.postgresql import PostgresqlReader, Selection


class LocalPostgresqlMover:
    """Moves chunks on one connection; exactly once, since records and checkpoint are one transaction."""

    def __init__(
        self,
        connection: Connection,
        place: Place,
        reader: PostgresqlReader,
        lease: PostgresqlLease,
        *,
        log: BuiltinLog,
        work: Work,
    ) -> None:
        self._connection = connection
        self._place = place
        self._reader = reader
        self._lease = lease
        self._log = log.address
        self._source = source_of(work.installation)
        self._limits = Limits()
        self._checkpoint = Checkpoint.of(lease.held.state)

    def step(self) -> Moved:
        """Move the next chunk; see `Mover.step`."""
        fresh = self._checkpoint.snapshot_to is None
        self._checkpoint, selection = self._reader.look(self._checkpoint, self._limits)
        if selection is None:
            return Moved(0, empty=fresh)
        failpoint(Failpoint.READ)
        return Moved(self._move(selection), empty=False)

    def _move(self, selection: Selection) -> int:
        sent = boot_seconds()
        try:
            appended = self._append(selection)
        except TimedOut:
            # Without this, two relays take over from each other for ever, each with a chunk that takes too long.
            self._limits = self._limits.halved()
            self.renew()
            return 0
        failpoint(Failpoint.APPENDED)
        if appended.missing:
            make_topics(self._connection, self._place, appended.missing, self._log.partitions, self._log.retain_seconds)
            return self._move(selection)
        if appended.fault is not None:
            return self._move_before(selection, appended)
        if appended.step is None:
            self._checkpoint = self._reader.passed(selection)
            return 0
        self._checkpoint = Checkpoint.of(self._lease.moved(appended.step, sent).state)
        self._limits = self._limits.doubled()
        return appended.entries

    def _append(self, selection: Selection) -> Appended:
        query = self._reader.query(selection, self._limits)
        work = Append(
            select=query.select,
            current=self._lease.current(),
            following=self._lease.following(query.state, source=SOURCE, where=WHERE),
            parameters={**self._lease.parameters, **query.parameters},
            source=self._source,
        )
        return append(self._connection, self._place, work)

    def _move_before(self, selection: Selection, appended: Appended) -> int:
        """Move what lies before the message at fault; the one that comes first is named."""
        if appended.fault is None:
            return 0
        identity, topic, position = appended.fault
        before = self._reader.before(selection, Position(position))
        if selection.checkpoint.last < position - 1:
            moved = self._move(before)
            if moved:
                return moved
        raise MessageAtFault(
            f"message {identity} of topic {topic!r} (position {position}) cannot be moved: its headers are not a JSON"
            " object of texts; delete its row in the outbox, and write the message anew"
        )

    def renew(self) -> None:
        """Renew the lease, saving how far the checkpoint has come."""
        self._lease.advance(**self._checkpoint.columns())

    def finish(self) -> None:
        """Nothing: a step leaves nothing behind it."""

    def close(self) -> None:
        """Nothing is held but the connection."""
