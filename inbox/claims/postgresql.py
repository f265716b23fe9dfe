"""Claims on PostgreSQL: one statement, by data dependency; and what a session must be set to."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import psycopg
from psycopg.pq import TransactionStatus
from sqlalchemy import URL, Connection, Engine, text
from sqlalchemy.exc import DBAPIError

from inbox.claims import Identity, Limits, Taking, forgotten_words
from outbox.errors import ConfigurationError, Fenced, Forgotten
from outbox.message import Offset
from outbox.process.postgresql import refuse_pooler, translate
from outbox.tables.names import Place
from relay.logs.contract import Partition

_PASSING = ("40001", "40P01", "55P03", "08", "53", "57P")
_TIMED_OUT = ("57014", "25P03", "25P04")
_NAME_BYTES = 63
_PRUNE_LOCK = "1s"

# Why each line stands:
# - current: `for update` makes a twin wait here; `end_offset` refuses a run that does not begin where the last ended.
#   Without the lock a late twin inserts a step that was pruned; without the comparison a lost run is skipped for good.
#   By offset there are no ids behind it: then the lost lock alone is a second effect (test_inbox_offset.py).
# - fresh: reads `current`, so that nothing is inserted when the claim is lost. In the order given, which is sorted.
# - next: reads `fresh` by way of `counted`, so that the ids come first: a new claim means that they are in.
_TAKE = """
with current as (
    select step, end_offset, handled, duplicates, ignored from {inbox_offset}
    where consumer_group = :consumer_group and incarnation = :incarnation and partition = :partition
        and step = :step and end_offset = :begin_offset
    for update
), fresh as (
    insert into {inbox} (consumer_group, source, message_id)
    select :consumer_group, coalesce(asked.source, :source), asked.message_id
    from current cross join unnest(cast(:sources as text[]), cast(cast(:ids as text) as uuid[]))
        with ordinality as asked (source, message_id, place)
    order by asked.place
    on conflict do nothing
    returning source, message_id
), counted as (
    select count(*) as handled from fresh
), next as (
    insert into {inbox_offset} (
        consumer_group, incarnation, partition, step, topic, begin_offset, end_offset, handled, duplicates, ignored)
    select :consumer_group, :incarnation, :partition, current.step + 1, :topic, current.end_offset, :end_offset,
        current.handled + counted.handled + :handled,
        current.duplicates + :asked - counted.handled + :repeats,
        current.ignored + :ignored
    from current cross join counted
    returning step
)
select next.step, pg_backend_pid() as backend, case when counted.handled < :asked
    then (select array_agg(source || ' ' || message_id order by source, message_id) from fresh) end as fresh,
    counted.handled
from next cross join counted
"""

# Why each line stands:
# - registered: `forget` waits for this lock, so that no id comes behind its back; key share, which others can have too.
#   A registration row and no claim: claims are locked by who makes the next one, for as long as handlers take.
# - newest: what lies below it was handled, also where its id is pruned by now: a consumer may be stopped for weeks.
_REMEMBER = """
with registered as (
    select step from {inbox_offset}
    where consumer_group = :consumer_group and incarnation = :incarnation and partition = -1
    order by step limit 1
    for key share
), newest as (
    select end_offset from {inbox_offset}
    where consumer_group = :consumer_group and incarnation = :incarnation and partition = :partition
    order by step desc limit 1
), fresh as (
    insert into {inbox} (consumer_group, source, message_id)
    select :consumer_group, :source, cast(:message_id as uuid)
    from registered cross join newest where newest.end_offset <= :offset
    on conflict do nothing
    returning 1 as one
)
select (select count(*) from registered) as registered, (select count(*) from fresh) as fresh,
    pg_backend_pid() as backend
"""

# A stopped process can hold its transaction where no time-out of the server ends it: inside a large answer, for one.
_END_STUCK = """
select count(*) filter (where pg_terminate_backend(pid)) from pg_stat_activity
where application_name = :name and datname = current_database() and pid <> pg_backend_pid()
    and pid <> all(cast(:own as integer[]))
    and xact_start < clock_timestamp() - make_interval(secs => :seconds)
"""


class PostgresqlDialect:
    """What a group's claims need from PostgreSQL."""

    def __init__(self, place: Place, group: str, sessions: dict[int, int] | None = None) -> None:
        self._group = group
        self._name = session_name(place, group)
        self._take = text(_TAKE.format(inbox=place.sql("inbox"), inbox_offset=place.sql("inbox_offset")))
        self._tables = [text(f"select 1 from {place.sql(table)} where false") for table in ("inbox", "inbox_offset")]
        self._remember = text(_REMEMBER.format(inbox=place.sql("inbox"), inbox_offset=place.sql("inbox_offset")))
        self._place = place
        self._backend: int | None = None
        # The sessions of this process, by dialect.
        self._sessions: dict[int, int] = {} if sessions is None else sessions

    def examine(self, url: URL) -> None:
        """Refuse a transaction pooler: the settings of a session get lost there, and its name."""
        refuse_pooler(url)

    def connect_arguments(self, limits: Limits) -> Mapping[str, Any]:
        """Name the session, and let a dead network be noticed from this side."""
        return {
            "application_name": self._name,
            "client_encoding": "utf-8",
            "connect_timeout": max(1, round(limits.wait_seconds)),
            "keepalives_idle": 5,
            "keepalives_interval": 2,
            "keepalives_count": 3,
            "tcp_user_timeout": 15_000,
        }

    def url(self, url: URL) -> URL:
        """Return the URL as it is."""
        return url

    def adapt(self, engine: Engine) -> None:
        """Nothing: a session is set up by `prepare`."""

    def transaction_lasts(self, connection: Connection) -> Callable[[], bool]:
        """Ask libpq: an error that a handler caught has ended the transaction all the same."""
        driver: Any = connection.connection.driver_connection
        return lambda: bool(driver.pgconn.transaction_status == TransactionStatus.INTRANS)

    def prepare(self, connection: Connection, limits: Limits) -> None:
        """Set what a role's defaults could break, and refuse a standby."""
        with self.translated(), connection.begin():
            session = f"{int(limits.session_seconds * 1000)}ms"
            version = connection.scalar(text("select current_setting('server_version_num')::int")) or 0
            settings = {
                "application_name": self._name,
                "default_transaction_isolation": "read committed",
                "default_transaction_deferrable": "off",
                "lock_timeout": f"{int(limits.lock_seconds * 1000)}ms",
                "statement_timeout": session,
                "idle_in_transaction_session_timeout": session,
                "tcp_user_timeout": "15s",
            }
            if version >= 170000:  # noqa: PLR2004 - the first with this setting
                settings["transaction_timeout"] = f"{int(limits.transaction_seconds * 1000)}ms"
            for name, value in settings.items():
                connection.execute(text("select set_config(:name, :value, false)"), {"name": name, "value": value})
        with self.translated(), connection.begin():
            self._examine(connection)
            for table in self._tables:
                connection.execute(table)

    def take(self, connection: Connection, taking: Taking) -> frozenset[Identity] | None:
        """Lock, insert the ids, insert the next claim: one statement.

        Raises:
            Fenced: no such claim any more, or another consumer has inserted the next.
        """
        with self.translated():
            row = connection.execute(self._take, self._parameters(taking)).one_or_none()
        if row is None:
            raise Fenced(f"another consumer of group {self._group!r} has handled {taking.partition.topic} further")
        self._refuse_another_session(row.backend)
        if row.handled == len(taking.identities):
            return None
        return frozenset(_identity(one) for one in row.fresh or ())

    def others(self, count: int) -> Sequence["PostgresqlDialect"]:
        """Return the dialects of so many more connections: each knows its own session, and which ones are ours."""
        return [PostgresqlDialect(self._place, self._group, self._sessions) for _ in range(count)]

    def remember(self, connection: Connection, partition: Partition, offset: Offset, identity: Identity) -> bool:
        """Insert a message's id; return whether it is new.

        Raises:
            Forgotten: there is no registration.
        """
        source, message_id = identity
        parameters = {
            "consumer_group": self._group,
            "incarnation": partition.incarnation,
            "partition": partition.number,
            "offset": offset,
            "source": source,
            "message_id": message_id.hex,
        }
        with self.translated():
            row = connection.execute(self._remember, parameters).one()
        self._refuse_another_session(row.backend)
        if not row.registered:
            raise Forgotten(forgotten_words(self._group, partition.topic))
        return bool(row.fresh)

    def _refuse_another_session(self, backend: int) -> None:
        if backend != self._backend:
            raise ConfigurationError("another server session answered: connect to the database itself, not to a pool")

    def hurry(self, connection: Connection) -> None:
        """Bound the waits for locks in this transaction."""
        connection.execute(text(f"set local lock_timeout = '{_PRUNE_LOCK}'"))

    def end_stuck(self, connection: Connection, limits: Limits) -> int:
        """End sessions of this group, but none of ours, whose transaction is older than the handler's time-out."""
        with self.translated():
            own = list(self._sessions.values())
            parameters = {"name": self._name, "seconds": limits.handler_seconds, "own": own}
            return int(connection.scalar(text(_END_STUCK), parameters) or 0)

    @contextmanager
    def translated(self, url: URL | None = None) -> Iterator[None]:
        """Turn psycopg's errors into ours."""
        try:
            yield
        except DBAPIError as error:
            if isinstance(error.orig, psycopg.Error):
                raise translate(error.orig, url) from error
            raise

    def is_passing(self, error: BaseException) -> bool:
        """Serialization failure, deadlock, lock time-out, or a connection that is lost."""
        if not isinstance(error, DBAPIError):
            return False
        state = getattr(error.orig, "sqlstate", None)
        if state is None:
            # No word from the server: the connection broke.
            return error.connection_invalidated or isinstance(error.orig, psycopg.OperationalError)
        return str(state).startswith(_PASSING)

    def is_timeout(self, error: BaseException) -> bool:
        """A statement, an idle session or a transaction reached the session's bound."""
        return isinstance(error, DBAPIError) and getattr(error.orig, "sqlstate", None) in _TIMED_OUT

    def _parameters(self, taking: Taking) -> dict[str, Any]:
        sources = [source for source, _ in taking.identities]
        return {
            "consumer_group": self._group,
            "incarnation": taking.partition.incarnation,
            "partition": taking.partition.number,
            "topic": taking.partition.topic,
            "step": taking.claim.step,
            "begin_offset": taking.claim.end,
            "end_offset": taking.end,
            # Mostly there is one source; unnest fills the shorter array up with nulls.
            "source": sources[0] if sources else "",
            "sources": sources if len(set(sources)) > 1 else [],
            # As one text: the driver takes ten times as long for a list of uuids.
            "ids": "{" + ",".join([message_id.hex for _, message_id in taking.identities]) + "}",
            "asked": len(taking.identities),
            "repeats": taking.repeats,
            "ignored": taking.ignored,
            "handled": taking.handled,
        }

    def _examine(self, connection: Connection) -> None:
        seen = connection.execute(text("select pg_is_in_recovery() as standby, pg_backend_pid() as backend")).one()
        if seen.standby:
            raise ConfigurationError("this is a standby, which cannot be written to: connect to the primary")
        self._backend = self._sessions[id(self)] = seen.backend


def session_name(place: Place, group: str) -> str:
    """Return the `application_name` by which the sessions of a group are known: whole, or its digest when too long."""
    where = "" if place == Place() else f" ({place.schema or ''}.{place.prefix})"
    name = f"inbox {group}{where}"
    if name.isascii() and name.isprintable() and len(name) <= _NAME_BYTES:
        return name
    return f"inbox {hashlib.md5(name.encode(), usedforsecurity=False).hexdigest()}"


def _identity(text_of: str) -> Identity:
    source, _, message_id = text_of.rpartition(" ")
    return source, UUID(message_id)
