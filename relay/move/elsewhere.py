"""Which way chunks are moved into a log that is not in the outbox's own database."""

from outbox.journal import Lease
from relay.move.chunks import Chunks
from relay.move.contract import Mover, Work
from relay.move.numbered import NumberedMover, settle_open_chunk
from relay.move.produced import OnceAtMostMover, ProducingMover


def mover_elsewhere(chunks: Chunks, lease: Lease, work: Work) -> Mover:
    """Return the mover for the delivery that was asked for; what another one has left open is settled first.

    Raises:
        Permanent: it cannot be settled; see `NumberedMover`.
        Retryable: the log does not answer.
    """
    if work.numbered:
        return NumberedMover(chunks, lease, work)
    settle_open_chunk(chunks, lease, work)
    make = OnceAtMostMover if work.delivery == "at-most-once" else ProducingMover
    return make(chunks, lease, work)
