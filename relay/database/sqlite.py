"""The outbox's database on SQLite, as a relay uses it."""

from collections.abc import Mapping
from contextlib import closing
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

from sqlalchemy import URL

from outbox.errors import ConfigurationError
from outbox.journal import Lease
from outbox.journal.sqlite import SqliteLease, parsed_time, prune_steps, stored_time
from outbox.process.sqlite import connect, immediate, translated
from outbox.tables import Place
from relay.checkpoint import STATE
from relay.database.contract import Registration, RelayStatus
from relay.logs.builtin import BuiltinLog
from relay.logs.builtin.sqlite import same_file
from relay.logs.contract import Log
from relay.move.chunks import EntryChunks
from relay.move.contract import Mover, Work
from relay.move.elsewhere import mover_elsewhere
from relay.move.numbered import settle_open_chunk
from relay.move.sqlite import LocalSqliteMover
from relay.reader.sqlite import SqliteReader, topic_condition
from relay.topics import TopicPatterns, parse_topics

BUSY_SECONDS = 10.0
"""How long a statement waits for its turn to write; its step is compared afterwards, so it may outlast the lease."""


class SqliteOutbox:
    """One connection to an outbox's file; see `OutboxDatabase`."""

    def __init__(self, url: URL, place: Place, *, lease_seconds: float) -> None:
        self._url = url
        self._place = place
        self._lease_seconds = lease_seconds
        self._relay, self._checkpoint = place.sql("relay"), place.sql("relay_checkpoint")
        self._outbox, self._installation = place.sql("outbox"), place.sql("outbox_installation")
        self._connection = connect(url, busy_seconds=BUSY_SECONDS)

    def refuse_pooler(self) -> None:
        """Nothing stands between us and a file."""

    def installation(self) -> UUID:
        """Return the outbox's random id, made on first use."""
        with translated(), immediate(self._connection):
            self._connection.execute(
                f"insert into {self._installation} (single, id) values (1, ?) on conflict do nothing", (uuid4().hex,)
            )
        with translated():
            (identity,) = self._connection.execute(f"select id from {self._installation}").fetchone()
        return UUID(identity)

    def identity(self) -> tuple[str, str]:
        """Return nothing: a position belongs to its file, and a copy of it goes on from the same place."""
        return "", ""

    def registered(self, name: str) -> Registration | None:
        """Return the registration of that name."""
        with translated():
            row = self._connection.execute(
                f"select name, incarnation, topics, log, cluster, database from {self._relay} where name = ?", (name,)
            ).fetchone()
        return None if row is None else Registration(**{**dict(row), "incarnation": UUID(row["incarnation"])})

    def register(self, wanted: Registration, *, latest: bool) -> Registration:
        """Insert the registration with its first step; see `OutboxDatabase.register`."""
        with translated(), immediate(self._connection):
            if self.registered(wanted.name) is None:
                self._connection.execute(
                    f"insert into {self._relay} (name, incarnation, topics, log, cluster, database)"
                    " values (?, ?, ?, ?, ?, ?)",
                    (wanted.name, wanted.incarnation.hex, wanted.topics, wanted.log, wanted.cluster, wanted.database),
                )
                newest = f"(select coalesce(max(position), 0) from {self._outbox})" if latest else "0"
                self._connection.execute(
                    f"insert into {self._checkpoint} (incarnation, step, epoch, backend, lease_seconds, lease_until,"
                    f" snapshot_from, last, position) values (?, 0, 0, 0, 0, ?, '', {newest}, {newest})",
                    (wanted.incarnation.hex, stored_time(datetime.now(UTC))),
                )
        return self.registered(wanted.name) or wanted

    def lease(self, incarnation: UUID, owner: str) -> SqliteLease:
        """Return the lease of a registration."""
        return SqliteLease(
            self._connection,
            self._checkpoint,
            {"incarnation": incarnation.hex},
            owner=owner,
            lease_seconds=self._lease_seconds,
            state=STATE,
        )

    def mover(self, lease: Lease, topics: TopicPatterns, work: Work) -> Mover:
        """Return what moves the chunks."""
        reader = SqliteReader(self._connection, self._place, topics)
        chunks = EntryChunks(reader)
        if work.local and isinstance(work.log, BuiltinLog) and isinstance(lease, SqliteLease):
            settle_open_chunk(chunks, lease, work)
            return LocalSqliteMover(self._connection, reader, lease, work.log, work)
        return mover_elsewhere(chunks, lease, work)

    def holds(self, log: Log) -> bool:
        """Return whether the log lies in this file."""
        return isinstance(log, BuiltinLog) and same_file(self._url, log.address.url)

    def prune_steps(self, incarnation: UUID, newest: int) -> None:
        """Delete old steps; on a connection of its own, because it is no step."""
        with closing(connect(self._url, busy_seconds=1)) as other:
            prune_steps(other, self._checkpoint, {"incarnation": incarnation.hex}, newest=newest)

    def status(self) -> list[RelayStatus]:
        """Return how every registered relay stands."""
        with translated():
            rows = self._connection.execute(
                f"select r.name, r.topics, c.* from {self._relay} as r join {self._checkpoint} as c using (incarnation)"
                f" where c.step = (select max(step) from {self._checkpoint} where incarnation = r.incarnation)"
                " order by r.name"
            ).fetchall()
            unclaimed = self._unclaimed([parse_topics(row["topics"]) for row in rows])
            return [self._status(dict(row), unclaimed) for row in rows]

    def _status(self, row: Mapping[str, object], unclaimed: int) -> RelayStatus:
        condition, bound = topic_condition(parse_topics(str(row["topics"])))
        entries, oldest = self._connection.execute(
            f"select count(*), min(created_at) from {self._outbox} where position > :last{condition}",
            {"last": row["last"], **bound},
        ).fetchone()
        seconds = 0.0 if oldest is None else max(0.0, (datetime.now(UTC) - parsed_time(oldest)).total_seconds())
        owner = str(row["owner"]) if _leased(row) else None
        position, epoch, lost = (int(str(row[name])) for name in ("position", "epoch", "maybe_lost"))
        return RelayStatus(str(row["name"]), entries, seconds, position, owner, epoch, 0, unclaimed, lost)

    def _unclaimed(self, patterns: list[TopicPatterns]) -> int:
        if any(pattern.everything for pattern in patterns):
            return 0
        topics = self._connection.execute(f"select topic, count(*) from {self._outbox} group by topic").fetchall()
        return sum(entries for topic, entries in topics if not any(pattern.match(topic) for pattern in patterns))

    def forget(self, name: str) -> str | None:
        """Delete a registration and its journal; see `OutboxDatabase.forget`."""
        with translated(), immediate(self._connection):
            registration = self.registered(name)
            if registration is None:
                raise ConfigurationError(f"no relay is registered as {name!r}: `relay status` lists those that are")
            incarnation = registration.incarnation.hex
            newest = self._connection.execute(
                f"select * from {self._checkpoint} where incarnation = ? order by step desc limit 1", (incarnation,)
            ).fetchone()
            if _leased(newest):
                return str(newest["owner"])
            self._connection.execute(f"delete from {self._relay} where incarnation = ?", (incarnation,))
            self._connection.execute(f"delete from {self._checkpoint} where incarnation = ?", (incarnation,))
        return None

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


def _leased(row: Mapping[str, object]) -> bool:
    remaining = parsed_time(str(row["lease_until"])) - datetime.now(UTC)
    runs = timedelta(0) <= remaining <= timedelta(seconds=float(str(row["lease_seconds"])))
    return row["owner"] is not None and runs
