"""What movers to a log elsewhere have in common: the next chunk is read while the one before it is on its way."""

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Any

from outbox.errors import MessageAtFault, TimedOut
from outbox.journal import Lease
from relay.checkpoint import Checkpoint
from relay.failpoints import Failpoint, failpoint
from relay.logs.contract import Failure
from relay.move.chunks import Chunks, Formed
from relay.move.contract import Moved, Work, limits_of, refused


class AheadMover(ABC):
    """Reads ahead, settles, sends. A chunk is sent when the one before it is settled: nothing can pass it."""

    def __init__(self, chunks: Chunks, lease: Lease, work: Work) -> None:
        self._chunks = chunks
        self._lease = lease
        self._work = work
        self._limits = limits_of(work)
        self._sent: Formed[Any] | None = None
        self._saved = True

    def step(self) -> Moved:
        """Move the next chunk; see `Mover.step`."""
        begin = self._sent.after if self._sent else self._checkpoint
        try:
            ahead = self._chunks.form(begin, self._limits)
        except (TimedOut, MessageAtFault) as error:
            self.finish()
            if isinstance(error, MessageAtFault):
                raise
            self._take_less(error)
            return Moved(0, empty=False)
        failpoint(Failpoint.READ)
        entries = self._settle()
        if entries is None:
            return Moved(0, empty=False)
        if ahead.chunk is not None:
            self._send(ahead.checkpoint, ahead.chunk)
            return Moved(entries, empty=False)
        self._pass(ahead.checkpoint)
        if ahead.empty:
            self._rest()
        return Moved(entries, empty=ahead.empty and begin.snapshot_to is None)

    @property
    @abstractmethod
    def _checkpoint(self) -> Checkpoint:
        """Behind all that is done."""

    @abstractmethod
    def _pass(self, checkpoint: Checkpoint) -> None:
        """Move over nothing; the next step saves it."""

    @abstractmethod
    def _send(self, begin: Checkpoint, chunk: Formed[Any]) -> None:
        """Hand the chunk to the log, or decide to take less."""

    @abstractmethod
    def _settled(self, chunk: Formed[Any]) -> int | None:
        """Wait until the log has what was sent; return how many entries, None when it has to be formed anew."""

    def _settle(self) -> int | None:
        """Wait for what is on its way, if anything is; see `_settled`."""
        chunk, self._sent = self._sent, None
        return 0 if chunk is None else self._settled(chunk)

    @abstractmethod
    def renew(self) -> None:
        """Renew the lease, saving how far the checkpoint has come."""

    def _rest(self) -> None:
        """There is nothing to be moved at the moment."""
        self._save()

    def _save(self) -> None:
        if not self._saved:
            self.renew()
            failpoint(Failpoint.ADVANCED)

    def finish(self) -> None:
        """Wait for what is on its way, and save how far the checkpoint has come."""
        self._settle()
        self._save()

    def _form_anew(self, answer: Failure | TimedOut, entries: int) -> None:
        """Take less, since the log has not taken so many entries."""
        if isinstance(answer, TimedOut):
            self._take_less(answer)
        else:
            self._refused(answer, entries)

    def _take_less(self, error: TimedOut) -> None:
        if self._limits.entries == 1:
            raise error
        # Without this, two relays take over from each other for ever, each with a chunk that takes too long.
        self._limits = self._limits.halved()
        self.renew()

    def _refused(self, failure: Failure, entries: int) -> None:
        """Go on with what lies before the message at fault.

        A log may blame all messages of a batch: only one that was sent alone is at fault, and named.
        """
        self.renew()
        if entries == 1 or not failure.permanent:
            raise refused(failure)
        self._limits = replace(self._limits, entries=max(1, entries // 2))
