"""The contract of moving chunks, and what all ways of it share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol
from uuid import UUID

from outbox.errors import MessageAtFault, Retryable, TimedOut, Unreachable
from outbox.journal import Held, Lease, boot_seconds
from outbox.message import Epoch
from relay.logs.builtin import BuiltinLog
from relay.logs.contract import Failure, Log, Producer, ProducerIdentity
from relay.reader.contract import MOST_ENTRIES, MOST_ENTRIES_PRODUCED, Limits


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
        local: the log lies in the outbox's own database.
        open_chunk: whether an open chunk is in a log that has forgotten its number: `sent` or `unsent`, as a person
            found out; None: nobody has said.
        topics: those that the relay names in full.
    """

    relay: str
    installation: UUID
    incarnation: UUID
    log: Log
    delivery: str
    local: bool = False
    open_chunk: str | None = None
    topics: Sequence[str] = ()

    @property
    def numbered(self) -> bool:
        """Whether the log keeps the number of the last chunk: asked for, or the built-in log, which always does."""
        return isinstance(self.log, BuiltinLog) or self.delivery == "exactly-once"

    def identity(self, held: Held, delivery: str | None = None) -> ProducerIdentity:
        """Return for whom a producer is opened, under this lease."""
        return ProducerIdentity(
            self.relay,
            self.installation,
            self.incarnation,
            Epoch(held.epoch),
            held.seconds,
            delivery or self.delivery,
            self.topics,
        )


class Mover(Protocol):
    """Moves chunks while the lease is held. Nothing in it outlives its connection."""

    def step(self) -> Moved:
        """Move the next chunk.

        Durable when it returns: what it counts as moved. The checkpoint follows before, with or behind the records, as
        the log's guarantee asks for; at the latest when there is nothing to move.

        Raises:
            Fenced: somebody else holds the lease.
            Retryable: unknown outcome; take the lease again, on a new connection.
            MessageAtFault: the next message cannot be moved; everything before it is.
        """
        ...

    def renew(self) -> None:
        """Renew the lease, saving how far the checkpoint has come."""
        ...

    def finish(self) -> None:
        """End what was begun, before the lease is given back: what is on its way is durable, and the checkpoint saved.

        Raises: as `step`.
        """
        ...

    def close(self) -> None:
        """Let go of the producer."""
        ...


def limits_of(work: Work) -> Limits:
    """Return how large the chunks are that a log elsewhere is given."""
    most = MOST_ENTRIES if isinstance(work.log, BuiltinLog) else MOST_ENTRIES_PRODUCED
    return Limits(most, most=most)


def answered(producer: Producer, lease: Lease, renew: Callable[[], None]) -> Failure | TimedOut | None:
    """Wait for what the log says of the oldest chunk that is on its way, holding the lease meanwhile; None: it has it.

    Raises:
        Unreachable: it has not said anything for two leases.
        Retryable: unknown outcome.
        Fenced: somebody else holds the lease, or produces into the log.
    """
    seconds = lease.held.seconds
    until = boot_seconds() + 2 * seconds
    while True:
        # Around this call alone: a time-out of the outbox says nothing about what the log has.
        try:
            settlement = producer.settle(seconds / 3)
        except TimedOut as error:
            return error
        if settlement is not None:
            return settlement.failure
        if boot_seconds() > until:
            raise Unreachable(f"the log has not answered for {2 * seconds:g} s")
        renew()


def refused(failure: Failure) -> MessageAtFault | Retryable:
    """Return the error for a message that the log refused."""
    words = (
        f"message {failure.entry.message.id} of topic {failure.entry.message.topic!r}"
        f" (position {failure.entry.position}) was refused by the log: {failure.reason}"
    )
    return (
        MessageAtFault(f"{words}; delete its row in the outbox, and write the message anew")
        if failure.permanent
        else Retryable(words)
    )
