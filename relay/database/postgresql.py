"""The outbox's database on PostgreSQL, as a relay uses it."""

import secrets
from contextlib import closing
from typing import Any
from uuid import UUID

from sqlalchemy import URL

from outbox.errors import ConfigurationError
from outbox.journal import Lease
from outbox.journal.postgresql import PostgresqlLease, prune_steps
from outbox.process.postgresql import connect, execute, refuse_pooler, translated
from outbox.process.urls import dialect_of
from outbox.tables import Place
from relay.checkpoint import BEGINNING, STATE
from relay.database.contract import Registration, RelayStatus
from relay.logs.builtin import BuiltinLog
from relay.logs.builtin.postgresql import PLANNER
from relay.logs.contract import Log
from relay.move.chunks import Chunks, EntryChunks
from relay.move.contract import Mover, Work
from relay.move.copied_postgresql import CopiedChunks
from relay.move.elsewhere import mover_elsewhere
from relay.move.numbered import settle_open_chunk
from relay.move.postgresql import LocalPostgresqlMover
from relay.reader.postgresql import PostgresqlReader
from relay.topics import TopicPatterns, parse_topics

LOCK_SHARE = 0.3
STATEMENT_SHARE = 0.5
"""Of the lease: a wait for a lock ends before its statement, and a statement before the lease."""


class PostgresqlOutbox:
    """One connection to an outbox's database; see `OutboxDatabase`."""

    def __init__(self, url: URL, place: Place, *, name: str, lease_seconds: float) -> None:
        self._url = url
        self._place = place
        self._name = name
        self._lease_seconds = lease_seconds
        self._relay, self._checkpoint = place.sql("relay"), place.sql("relay_checkpoint")
        self._outbox, self._installation = place.sql("outbox"), place.sql("outbox_installation")
        self._lowest_step = 0
        self._connection = connect(
            url,
            name=f"relay {name}",
            statement_seconds=lease_seconds * STATEMENT_SHARE,
            lock_seconds=lease_seconds * LOCK_SHARE,
            settings={**PLANNER, "plan_cache_mode": "force_custom_plan"},
        )
        try:
            self._refuse_standby()
        except BaseException:
            self._connection.close()
            raise

    def _refuse_standby(self) -> None:
        # On a standby a snapshot lists no open transactions: what commits later would count as read.
        if self._one("select pg_is_in_recovery() as standby")["standby"]:
            raise ConfigurationError(
                "the outbox's database is a standby, where snapshots leave out open transactions and messages would be"
                " lost: connect the relay to the primary"
            )

    def refuse_pooler(self) -> None:
        """See that this connection is a session of its own."""
        refuse_pooler(self._url)

    def installation(self) -> UUID:
        """Return the outbox's random id, made on first use."""
        self._all(f"insert into {self._installation} (single) values (1) on conflict do nothing")
        identity: UUID = self._one(f"select id from {self._installation}")["id"]
        return identity

    def identity(self) -> tuple[str, str]:
        """Return the cluster's system identifier and the database's oid."""
        row = self._one(
            "select (select system_identifier from pg_control_system())::text as cluster,"
            " (select oid from pg_database where datname = current_database())::text as database"
        )
        return row["cluster"], row["database"]

    def registered(self, name: str) -> Registration | None:
        """Return the registration of that name."""
        rows = self._all(
            f"select name, incarnation, topics, log, cluster, database from {self._relay} where name = %(name)s",
            name=name,
        )
        return Registration(**rows[0]) if rows else None

    def register(self, wanted: Registration, *, latest: bool) -> Registration:
        """Insert the registration with its first step; see `OutboxDatabase.register`."""
        # A statement of its own: a snapshot taken by the one that registers would leave out its own transaction.
        start = self._one("select pg_current_snapshot()::text as snapshot")["snapshot"] if latest else BEGINNING
        self._all(
            f"with made as (insert into {self._relay} (name, incarnation, topics, log, cluster, database)"
            " values (%(name)s, %(incarnation)s, %(topics)s, %(log)s, %(cluster)s, %(database)s)"
            " on conflict (name) do nothing returning incarnation)"
            f" insert into {self._checkpoint} (incarnation, step, epoch, backend, lease_seconds, lease_until,"
            " snapshot_from, last, position)"
            " select incarnation, 0, 0, 0, 0, clock_timestamp(), %(start)s, 0, 0 from made",
            name=wanted.name,
            incarnation=wanted.incarnation,
            topics=wanted.topics,
            log=wanted.log,
            cluster=wanted.cluster,
            database=wanted.database,
            start=start,
        )
        return self.registered(wanted.name) or wanted

    def lease(self, incarnation: UUID, owner: str) -> PostgresqlLease:
        """Return the lease of a registration."""
        return PostgresqlLease(
            self._connection,
            self._checkpoint,
            {"incarnation": incarnation},
            owner=owner,
            lease_seconds=self._lease_seconds,
            state=STATE,
        )

    def mover(self, lease: Lease, topics: TopicPatterns, work: Work) -> Mover:
        """Return what moves the chunks."""
        reader = PostgresqlReader(self._connection, self._place, topics)
        chunks: Chunks = EntryChunks(reader)
        if isinstance(work.log, BuiltinLog) and dialect_of(work.log.address.url) == "postgresql":
            chunks = CopiedChunks(self._connection, reader)
        if work.local and isinstance(work.log, BuiltinLog) and isinstance(lease, PostgresqlLease):
            settle_open_chunk(chunks, lease, work)
            return LocalPostgresqlMover(self._connection, self._place, reader, lease, log=work.log, work=work)
        return mover_elsewhere(chunks, lease, work)

    def holds(self, log: Log) -> bool:
        """Return whether the log lies in this database: a lock taken here is refused there.

        Neither URLs (aliases, drivers) nor the cluster's identity (clones) can tell.
        """
        if not isinstance(log, BuiltinLog) or dialect_of(log.address.url) != "postgresql":
            return False
        number = secrets.randbits(62)
        # As bounded as ours: the log may be away, or in somebody else's hands.
        seconds, name = self._lease_seconds * STATEMENT_SHARE, f"relay {self._name} log"
        with closing(connect(log.address.url, name=name, statement_seconds=seconds)) as other, translated():
            execute(self._connection, "select pg_advisory_lock(%(number)s)", {"number": number})
            try:
                row = execute(other, "select pg_try_advisory_lock(%(number)s) as free", {"number": number}).fetchone()
            finally:
                execute(self._connection, "select pg_advisory_unlock(%(number)s)", {"number": number})
        return row is not None and not row["free"]

    def prune_steps(self, incarnation: UUID, newest: int) -> None:
        """Delete old steps; on a connection of its own, because it is no step."""
        with closing(
            connect(self._url, name=f"relay {self._name} prune", lock_seconds=1, statement_seconds=30)
        ) as other:
            self._lowest_step = prune_steps(
                other, self._checkpoint, {"incarnation": incarnation}, newest=newest, lowest=self._lowest_step
            )

    def status(self) -> list[RelayStatus]:
        """Return how every registered relay stands."""
        rows = self._all(
            f"select r.name, r.topics, c.*, c.owner is not null and c.lease_until >= clock_timestamp()"
            " and c.lease_until <= clock_timestamp() + make_interval(secs => c.lease_seconds) as leased"
            f" from {self._relay} as r cross join lateral (select * from {self._checkpoint} as step"
            " where step.incarnation = r.incarnation order by step.step desc limit 1) as c order by r.name"
        )
        unclaimed = self._unclaimed([parse_topics(row["topics"]) for row in rows])
        return [self._status(row, unclaimed) for row in rows]

    def _status(self, row: dict[str, Any], unclaimed: int) -> RelayStatus:
        reader = PostgresqlReader(self._connection, self._place, parse_topics(row["topics"]))
        lag = reader.lag(row["snapshot_from"], row["snapshot_to"], row["last"])
        owner = row["owner"] if row["leased"] else None
        return RelayStatus(row["name"], *lag, row["position"], owner, row["epoch"], 0, unclaimed, row["maybe_lost"])

    def _unclaimed(self, patterns: list[TopicPatterns]) -> int:
        if any(pattern.everything for pattern in patterns):
            return 0
        names = [name for pattern in patterns for name in pattern.names]
        prefixes = [prefix for pattern in patterns for prefix in pattern.prefixes]
        row = self._one(
            f"select count(*) as entries from {self._outbox} where topic <> all(%(names)s::text[])"
            " and not exists (select from unnest(%(prefixes)s::text[]) as prefix where starts_with(topic, prefix))",
            names=names,
            prefixes=prefixes,
        )
        return int(row["entries"])

    def forget(self, name: str) -> str | None:
        """Delete a registration and its journal; see `OutboxDatabase.forget`."""
        registration = self.registered(name)
        if registration is None:
            raise ConfigurationError(f"no relay is registered as {name!r}: `relay status` lists those that are")
        # The newest step is locked, so a holder that renews at this moment finds its registration gone or keeps it
        # whole.
        row = self._one(
            f"with newest as (select * from {self._checkpoint} where incarnation = %(incarnation)s"
            " order by step desc limit 1 for update),"
            " free as (select from newest where owner is null or lease_until < clock_timestamp()"
            " or lease_until > clock_timestamp() + make_interval(secs => lease_seconds)),"
            f" gone as (delete from {self._relay} where name = %(name)s and incarnation = %(incarnation)s"
            " and exists (select from free) returning 1),"
            f" steps as (delete from {self._checkpoint} where incarnation = %(incarnation)s"
            " and exists (select from free) returning 1)"
            " select (select owner from newest) as owner, exists (select from gone) as gone",
            name=name,
            incarnation=registration.incarnation,
        )
        return None if row["gone"] else str(row["owner"])

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _all(self, statement: str, **parameters: Any) -> list[dict[str, Any]]:
        with translated():
            cursor = execute(self._connection, statement, parameters)
            return cursor.fetchall() if cursor.description else []

    def _one(self, statement: str, **parameters: Any) -> dict[str, Any]:
        return self._all(statement, **parameters)[0]
