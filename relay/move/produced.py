"""Moving chunks by producing them to a log elsewhere: read, produce, acknowledgement, step."""

import logging
from typing import Any

from outbox.errors import Fenced, TimedOut
from outbox.journal import Lease, boot_seconds
from relay.checkpoint import Checkpoint
from relay.failpoints import Failpoint, failpoint
from relay.logs.contract import Producer
from relay.move.ahead import AheadMover
from relay.move.chunks import Chunks, Formed
from relay.move.contract import Work, answered

STEP_SECONDS = 0.2
"""At least once: how far steps are apart. A crash repeats what was acknowledged since the last one."""

logger = logging.getLogger("relay")


class ProducingMover(AheadMover):
    """Moves chunks through a producer of the log, at least once.

    The step follows the acknowledgements, so a crash between them repeats chunks.
    """

    def __init__(self, chunks: Chunks, lease: Lease, work: Work) -> None:
        super().__init__(chunks, lease, work)
        self._done = Checkpoint.of(lease.held.state)
        self._stepped = boot_seconds()
        self._number = 0
        self._producer = self._opened()

    def _opened(self) -> Producer:
        self._number = 0
        return self._work.log.producer(self._work.identity(self._lease.held))

    @property
    def _checkpoint(self) -> Checkpoint:
        return self._done

    def _pass(self, checkpoint: Checkpoint) -> None:
        self._done = checkpoint

    def _send(self, begin: Checkpoint, chunk: Formed[Any]) -> None:
        self._done = begin
        if self._lease.held.expired():
            raise Fenced("the lease ran out before the chunk was produced")
        self._number += 1
        try:
            self._producer.produce(self._number, chunk.content)
        except TimedOut as error:
            self._anew()
            self._take_less(error)
            return
        self._sent = chunk
        failpoint(Failpoint.SENT)

    def _settle(self) -> int | None:
        chunk, self._sent = self._sent, None
        if chunk is None:
            return 0
        answer = answered(self._producer, self._lease, self.renew)
        if isinstance(answer, TimedOut):
            self._anew()
            self._take_less(answer)
            return None
        if answer.failure is not None:
            # A producer that lets nothing pass what failed takes nothing more.
            self._anew()
            self._refused(answer.failure, chunk.bounds.entries)
            return None
        failpoint(Failpoint.PRODUCED)
        self._done, self._saved = chunk.after, False
        self._limits = self._limits.doubled()
        if boot_seconds() - self._stepped >= STEP_SECONDS:
            self._save()
        return chunk.bounds.entries

    def _anew(self) -> None:
        self._producer.close()
        self._producer = self._opened()

    def renew(self) -> None:
        """Renew the lease, saving how far the checkpoint has come."""
        self._lease.advance(**self._done.columns())
        self._saved, self._stepped = True, boot_seconds()

    def close(self) -> None:
        """Let go of the producer."""
        self._producer.close()


class OnceAtMostMover(ProducingMover):
    """Moves chunks through a producer of the log, at most once.

    The step is saved before the chunk is sent: a crash loses what was on its way, and nothing is tried again.
    """

    def _send(self, begin: Checkpoint, chunk: Formed[Any]) -> None:  # noqa: ARG002 - behind it is where we stand
        self._done = chunk.after
        self.renew()
        failpoint(Failpoint.ADVANCED)
        super()._send(chunk.after, chunk)

    def _settle(self) -> int | None:
        chunk, self._sent = self._sent, None
        if chunk is None:
            return 0
        answer = answered(self._producer, self._lease, self.renew)
        failpoint(Failpoint.PRODUCED)
        why = str(answer) if isinstance(answer, TimedOut) else answer.failure and answer.failure.reason
        if why:
            logger.warning(
                "of %d messages up to position %d some may be lost: %s", chunk.bounds.entries, chunk.bounds.last, why
            )
            self._anew()
        return chunk.bounds.entries
