"""What a relay asks of the outbox's database, beside reading it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

from outbox.journal import Lease
from relay.logs.contract import Log
from relay.move.contract import Mover, Work
from relay.topics import TopicPatterns


@dataclass(frozen=True, slots=True)
class Registration:
    """A relay as the database knows it.

    Attributes:
        name: the relay's.
        incarnation: tells it from a later relay of the same name.
        topics: its patterns, in canonical form.
        log: the identity of the log it produces to.
        cluster: the identity of the server that its snapshots belong to; empty on SQLite.
        database: likewise of the database.
    """

    name: str
    incarnation: UUID
    topics: str
    log: str
    cluster: str
    database: str


@dataclass(frozen=True, slots=True)
class RelayStatus:
    """How one relay stands; what `relay status` shows.

    Attributes:
        relay: its name.
        lag_messages: committed entries that it has not moved.
        lag_seconds: age of the oldest of them; 0 if there is none.
        position: the highest position it has done.
        owner: who holds its lease; None when no lease runs.
        epoch: the number of the newest lease.
        dead_letters: always 0 until messages can be parked.
        unclaimed: entries of the outbox that no relay's topics match.
        maybe_lost: messages that did not arrive, at most, because at-most-once was asked for; those on their way count.
    """

    relay: str
    lag_messages: int
    lag_seconds: float
    position: int
    owner: str | None
    epoch: int
    dead_letters: int
    unclaimed: int
    maybe_lost: int


class OutboxDatabase(Protocol):
    """One connection to an outbox's database. Nothing read from it outlives it."""

    def refuse_pooler(self) -> None:
        """See that this connection is a session of its own.

        Raises:
            ConfigurationError: a transaction pooler stands in between.
        """
        ...

    def installation(self) -> UUID:
        """Return the outbox's random id, made on first use."""
        ...

    def identity(self) -> tuple[str, str]:
        """Return cluster and database: what positions and snapshots belong to."""
        ...

    def registered(self, name: str) -> Registration | None:
        """Return the registration of that name."""
        ...

    def register(self, wanted: Registration, *, latest: bool) -> Registration:
        """Insert the registration with its first step, or return the one that is there. Concurrent: one wins."""
        ...

    def lease(self, incarnation: UUID, owner: str) -> Lease:
        """Return the lease of a registration, not taken yet."""
        ...

    def mover(self, lease: Lease, topics: TopicPatterns, work: Work) -> Mover:
        """Return what moves the chunks from this outbox into the log."""
        ...

    def holds(self, log: Log) -> bool:
        """Return whether the log's tables lie in this very database."""
        ...

    def prune_steps(self, incarnation: UUID, newest: int) -> None:
        """Delete old steps of a registration's journal, on a connection of its own."""
        ...

    def status(self) -> Sequence[RelayStatus]:
        """Return how every registered relay stands."""
        ...

    def forget(self, name: str) -> str | None:
        """Delete a registration and its journal; return the owner, and delete nothing, while its lease runs.

        Raises:
            ConfigurationError: no relay of that name is registered.
        """
        ...

    def close(self) -> None:
        """Close the connection."""
        ...
