"""Moving chunks by producing them to a log elsewhere: read, produce, acknowledgement, step."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from outbox.errors import Fenced, OutboxError, TimedOut
from outbox.journal import Lease, boot_seconds
from relay.checkpoint import Checkpoint
from relay.failpoints import Failpoint, failpoint
from relay.logs.contract import Failure, Producer
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
        self._chunks.expect(chunk.after, self._limits)
        try:
            self._producer.produce(self._number, chunk.content)
        except TimedOut as error:
            self._again(error, chunk)
            return
        self._sent = chunk.handed_over()
        failpoint(Failpoint.SENT)

    def _settled(self, chunk: Formed[Any]) -> int | None:
        answer = answered(self._producer, self._lease, self.renew)
        if answer is not None:
            self._again(answer, chunk)
            return None
        failpoint(Failpoint.PRODUCED)
        self._done, self._saved = chunk.after, False
        self._limits = self._limits.doubled()
        if boot_seconds() - self._stepped >= STEP_SECONDS:
            self._save()
        return chunk.bounds.entries

    def _again(self, answer: Failure | TimedOut, chunk: Formed[Any]) -> None:
        """Send it again, in smaller parts. A producer that lets nothing pass what failed takes nothing more."""
        self._anew()
        self._form_anew(answer, chunk.bounds.entries)

    def _anew(self) -> None:
        self._producer.close()
        self._producer = self._opened()

    def renew(self) -> None:
        """Renew the lease, saving how far the checkpoint has come."""
        self._lease.advance(**self._state())
        self._saved, self._stepped = True, boot_seconds()

    def _state(self) -> dict[str, Any]:
        return self._done.columns()

    def close(self) -> None:
        """Let go of the producer."""
        self._producer.close()


class OnceAtMostMover(ProducingMover):
    """Moves chunks through a producer of the log, at most once.

    The step is saved before the chunk is sent: a crash loses what was on its way, and nothing is tried again. The step
    counts the chunk as lost, and the one behind the log's answer does not: whatever happens between them, no message
    that is lost is not counted.
    """

    def __init__(self, chunks: Chunks, lease: Lease, work: Work) -> None:
        super().__init__(chunks, lease, work)
        self._maybe_lost = int(lease.held.state["maybe_lost"])

    def _state(self) -> dict[str, Any]:
        return {**super()._state(), "maybe_lost": self._maybe_lost}

    def _send(self, begin: Checkpoint, chunk: Formed[Any]) -> None:  # noqa: ARG002 - behind it is where we stand
        self._done = chunk.after
        self._maybe_lost += chunk.bounds.entries
        self.renew()
        failpoint(Failpoint.ADVANCED)
        with self._said_if_lost(chunk):
            super()._send(chunk.after, chunk)

    def _settled(self, chunk: Formed[Any]) -> int | None:
        with self._said_if_lost(chunk):
            answer = answered(self._producer, self._lease, self.renew)
        failpoint(Failpoint.PRODUCED)
        if answer is None:
            self._maybe_lost -= chunk.bounds.entries
            self._saved = False
        else:
            self._again(answer, chunk)
        return chunk.bounds.entries

    def _again(self, answer: Failure | TimedOut, chunk: Formed[Any]) -> None:
        """Go on behind it."""
        _say_lost(chunk, str(answer) if isinstance(answer, TimedOut) else answer.reason)
        self._anew()

    @contextmanager
    def _said_if_lost(self, chunk: Formed[Any]) -> Iterator[None]:
        try:
            yield
        except OutboxError as error:
            _say_lost(chunk, str(error))
            raise


def _say_lost(chunk: Formed[Any], why: str) -> None:
    bounds = chunk.bounds
    logger.warning("of %d messages up to position %d some may be lost: %s", bounds.entries, bounds.last, why)
