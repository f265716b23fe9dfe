"""Moving chunks by producing them to a log elsewhere: read, produce, acknowledgement, step."""

from typing import Any

from outbox.errors import Fenced, TimedOut
from outbox.journal import Lease
from outbox.message import Epoch
from relay.checkpoint import Checkpoint
from relay.failpoints import Failpoint, failpoint
from relay.logs.contract import ProducerIdentity
from relay.move.contract import Moved, Work, refused
from relay.reader.contract import Chunk, Limits, Reader


class ProducingMover:
    """Moves chunks through a producer of the log.

    At least once: the step follows the acknowledgements, so a crash between them repeats the chunk. At most once: the
    step is saved before, so a crash loses the chunk, and nothing is tried again.
    """

    def __init__(self, reader: Reader[Any], lease: Lease, work: Work) -> None:
        self._reader = reader
        self._lease = lease
        self._first = work.delivery == "at-most-once"
        self._limits = Limits()
        self._checkpoint = Checkpoint.of(lease.held.state)
        self._number = 0
        identity = ProducerIdentity(work.relay, work.installation, work.incarnation, Epoch(lease.held.epoch))
        self._producer = work.log.producer(identity)

    def step(self) -> Moved:
        """Move the next chunk; see `Mover.step`."""
        fresh = self._checkpoint.snapshot_to is None
        self._checkpoint, selection = self._reader.look(self._checkpoint, self._limits)
        if selection is None:
            return Moved(0, empty=fresh)
        try:
            chunk = self._reader.fetch(selection, self._limits)
        except TimedOut:
            self._limits = self._limits.halved()
            self.renew()
            return Moved(0, empty=False)
        self._limits = self._limits.doubled()
        failpoint(Failpoint.READ)
        if not chunk.entries:
            self._checkpoint = chunk.after
        elif self._first:
            self._advance(chunk)
            self._produce(chunk)
        else:
            self._produce(chunk)
            self._advance(chunk)
        return Moved(len(chunk.entries), empty=False)

    def _produce(self, chunk: Chunk) -> None:
        if self._lease.held.expired():
            raise Fenced("the lease ran out before the chunk was produced")
        self._number += 1
        self._producer.produce(self._number, chunk.entries)
        while (settlement := self._producer.settle(self._patience())) is None:
            self.renew()
        failpoint(Failpoint.PRODUCED)
        if settlement.failure is not None and not self._first:
            raise refused(settlement.failure)

    def _patience(self) -> float:
        """Return how long to wait for the log before the lease has to be renewed."""
        return max(0.05, self._lease.held.seconds / 3)

    def _advance(self, chunk: Chunk) -> None:
        self._lease.advance(**chunk.after.columns())
        self._checkpoint = chunk.after
        failpoint(Failpoint.ADVANCED)

    def renew(self) -> None:
        """Renew the lease, saving how far the checkpoint has come."""
        self._lease.advance(**self._checkpoint.columns())

    def finish(self) -> None:
        """Nothing: a step leaves nothing behind it."""

    def close(self) -> None:
        """Let go of the producer."""
        self._producer.close()
