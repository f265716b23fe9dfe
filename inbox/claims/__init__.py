"""Claims: how a group proves, in the handler's own database, which records it has handled.

`inbox_offset` is a journal. Each transaction that handles records locks the claim it was decided on, inserts the ids of
the messages (unless repeats are known by offset), and inserts the claim after it; so of two consumers that both believe
they own a partition, one finds its claim gone and goes back to the newest.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol
from uuid import UUID

from sqlalchemy import URL, Connection, Engine

from outbox.errors import ConfigurationError
from outbox.message import Offset
from outbox.process.urls import dialect_of
from outbox.tables.names import Place
from relay.logs.contract import Partition

Identity = tuple[str, UUID]
"""Who a message is: source and id together."""

SLACK_SECONDS = 15.0
"""By how much the session's own time-outs are above the handler's: we judge a slow handler, they end a lost one."""
BATCH_SECONDS = 10.0
"""After this long no further handler is begun in a transaction, so that the transaction has a bound of its own."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How long the parts of a transaction may take: all above the handler's own time-out.

    Attributes:
        handler_seconds: the longest time-out of any of the group's handlers.
        wait_seconds: the longest attempt to connect.
    """

    handler_seconds: float
    wait_seconds: float = 10.0

    @property
    def session_seconds(self) -> float:
        """The bound on a statement, and on idling inside a transaction."""
        return self.handler_seconds + SLACK_SECONDS

    @property
    def lock_seconds(self) -> float:
        """The bound on a wait for a lock: below that on its statement, which would be taken for the handler's fault."""
        return self.handler_seconds + SLACK_SECONDS / 2

    @property
    def transaction_seconds(self) -> float:
        """The bound on a whole transaction."""
        return BATCH_SECONDS + self.session_seconds


@dataclass(frozen=True, slots=True)
class Claim:
    """The state of one partition: the number of its newest step, and where the next run of records begins."""

    step: int
    end: Offset

    def after(self, end: Offset) -> "Claim":
        """Return the claim that follows when records up to `end` were handled."""
        return Claim(self.step + 1, end)


@dataclass(frozen=True, slots=True)
class Taking:
    """What one claim takes: an unbroken run of records of one partition.

    Attributes:
        partition: whose.
        claim: the claim it was decided on; the run begins at its end.
        end: one past the run.
        identities: of the messages that have a handler, each once, sorted (two that sort alike cannot deadlock); none
            when repeats are known by offset.
        repeats: how many more records of the run are of these messages.
        ignored: how many have no handler.
        handled: how many more are handled: all of them by offset, or already, in transactions of their own.
    """

    partition: Partition
    claim: Claim
    end: Offset
    identities: Sequence[Identity]
    repeats: int
    ignored: int
    handled: int = 0


class Dialect(Protocol):
    """What the claims of one consumer group need from one kind of database."""

    def url(self, url: URL) -> URL:
        """Return the URL with what this dialect wants in it; its driver is chosen already."""
        ...

    def examine(self, url: URL) -> None:
        """See that the database is reached in a way that is fit for us; once, when we start.

        Raises:
            ConfigurationError: through a transaction pooler.
            Unreachable: it does not answer.
        """
        ...

    def connect_arguments(self, limits: Limits) -> Mapping[str, Any]:
        """Return what SQLAlchemy hands to the driver's `connect`."""
        ...

    def adapt(self, engine: Engine) -> None:
        """Register what each connection and transaction of the engine begins with."""
        ...

    def prepare(self, connection: Connection, limits: Limits) -> None:
        """Make a new session fit for us.

        Raises:
            ConfigurationError: a standby, or a database without our tables.
        """
        ...

    def take(self, connection: Connection, taking: Taking) -> frozenset[Identity] | None:
        """Lock the claim, insert the ids, insert the next claim; return the new ids, None when all of them are new.

        Without ids the claim is taken all the same: it alone says then that the run is handled.

        Raises:
            Fenced: another consumer has taken this step.
        """
        ...

    def others(self, count: int) -> "Sequence[MessageDialect]":
        """Return the dialects of so many more connections of this process, which handle messages side by side.

        Raises:
            ConfigurationError: a database with one writer at a time.
        """
        ...

    def hurry(self, connection: Connection) -> None:
        """Let this transaction give up soon when somebody else holds a lock."""
        ...

    def end_stuck(self, connection: Connection, limits: Limits) -> int:
        """End the group's other sessions that hold a transaction for longer than any may; return how many."""
        ...

    def transaction_lasts(self, connection: Connection) -> Callable[[], bool]:
        """Return what tells, without a round trip, whether the server is inside a transaction that can still commit.

        Good for as long as the connection; a function of its own because it is asked after every handler.
        """
        ...

    def translated(self, url: URL | None = None) -> AbstractContextManager[None]:
        """Turn the driver's errors into ours, where the statement is one of ours; with a URL, where we connect."""
        ...

    def is_passing(self, error: BaseException) -> bool:
        """Return whether an error is the database's passing fault (serialization, deadlock, lost): nobody's attempt."""
        ...

    def is_timeout(self, error: BaseException) -> bool:
        """Return whether the database ended a statement or session because it took too long."""
        ...


class MessageDialect(Dialect, Protocol):
    """What a connection needs that handles one message a transaction, and leaves the claims to another."""

    def remember(self, connection: Connection, partition: Partition, offset: Offset, identity: Identity) -> bool:
        """Insert a message's id; return whether it is new: not there, and not below the partition's newest claim.

        Waits for a twin that inserts the same id. Until the transaction ends, the group cannot be forgotten.

        Raises:
            Forgotten: the group is not registered for this topic any more.
        """
        ...


def forgotten_words(group: str, topic: str) -> str:
    """Say that a group has no registration any more."""
    return (
        f"group {group!r} is no longer registered for topic {topic!r}: it was forgotten, or the topic was made anew; "
        "start the inbox again to register it"
    )


def dialect_for(url: URL, place: Place, group: str) -> Dialect:
    """Return the dialect of the handler's database."""
    # Lazily: the driver of the other dialect may not be installed.
    if dialect_of(url) == "postgresql":
        try:
            from inbox.claims.postgresql import PostgresqlDialect  # noqa: PLC0415
        except ModuleNotFoundError as error:
            raise ConfigurationError(
                'PostgreSQL needs psycopg, which is missing: pip install "outbox-relay-inbox[postgresql]"'
            ) from error

        return PostgresqlDialect(place, group)
    from inbox.claims.sqlite import SqliteDialect  # noqa: PLC0415

    return SqliteDialect(place, group)
