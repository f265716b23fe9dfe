"""The contract of moving chunks, and what all ways of it share."""

from dataclasses import dataclass
from typing import NamedTuple, Protocol
from uuid import UUID

from relay.logs.contract import Log


class Moved(NamedTuple):
    """What one step did.

    Attributes:
        entries: how many became durable in the log.
        empty: a look begun after the call found nothing to move.
    """

    entries: int
    empty: bool


@dataclass(frozen=True, slots=True)
class Work:
    """What a mover works on.

    Attributes:
        relay: the relay's name.
        installation: the outbox's random id.
        incarnation: the registration's uuid.
        log: where records go.
        delivery: `at-least-once`, `exactly-once` or `at-most-once`.
    """

    relay: str
    installation: UUID
    incarnation: UUID
    log: Log
    delivery: str


class Mover(Protocol):
    """Moves chunks while the lease is held. Nothing in it outlives its connection."""

    def step(self) -> Moved:
        """Move the next chunk.

        Durable when it returns: the records, and then (or with them) the checkpoint behind them.

        Raises:
            Fenced: somebody else holds the lease.
            Retryable: unknown outcome; take the lease again, on a new connection.
            MessageAtFault: the next message cannot be moved; everything before it is.
        """
        ...

    def renew(self) -> None:
        """Renew the lease, saving how far the checkpoint has come."""
        ...

    def close(self) -> None:
        """Let go of the producer."""
        ...
