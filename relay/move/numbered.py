"""Moving chunks into a log elsewhere exactly once: the log keeps the number of the last chunk, with its records.

The outbox's journal says "n chunks are done, chunk n+1 is open, with these bounds" before the chunk is sent; the log
takes the chunk and the number n+1 together. After a crash the log says n+1 (the open chunk is in it) or n (it is not,
and no other relay can bring it any more, because opening the producer fenced them all: it is sent again, by its
bounds). Anything else is a stop.
"""

from dataclasses import replace
from typing import Any

from outbox.errors import ConfigurationError, MessageAtFault, Permanent, TimedOut, Unreachable
from outbox.journal import Lease, boot_seconds
from outbox.message import Epoch
from relay.checkpoint import Checkpoint, Numbered
from relay.failpoints import Failpoint, failpoint
from relay.logs.contract import Failure, NumberedProducer, ProducerIdentity
from relay.move.chunks import Chunks, Formed
from relay.move.contract import Moved, Work, refused
from relay.reader.contract import Limits


class NumberedMover:
    """Moves chunks on the outbox's connection and a producer's; exactly once."""

    def __init__(self, chunks: Chunks, lease: Lease, work: Work) -> None:
        self._chunks = chunks
        self._lease = lease
        self._relay = work.relay
        self._limits = Limits()
        self._state = Numbered.of(lease.held.state)
        self._saved = True
        self._sent: Formed[Any] | None = None
        self._producer = _open(lease, work)
        try:
            failpoint(Failpoint.OPENED)
            self._settle_open_chunk()
        except BaseException:
            self._producer.close()
            raise

    def step(self) -> Moved:
        """Move the next chunk; see `Mover.step`. It is read while the one before it is on its way."""
        begin = self._sent.after if self._sent else self._state.checkpoint
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
        self._state = replace(self._state, checkpoint=ahead.checkpoint)
        if ahead.empty:
            self._save()
        return Moved(entries, empty=ahead.empty and begin.snapshot_to is None)

    def _send(self, begin: Checkpoint, chunk: Formed[Any]) -> None:
        """Say in the outbox that the chunk is open; then hand it to the log."""
        self._state = Numbered(begin, self._state.chunk, chunk.bounds)
        self.renew()
        failpoint(Failpoint.BEGUN)
        self._producer.produce(self._state.chunk + 1, chunk.content)
        self._sent = chunk
        failpoint(Failpoint.SENT)

    def _settle(self) -> int | None:
        """Wait until the log has what was sent; return how many entries, None when it has answered that it has not."""
        chunk, self._sent = self._sent, None
        if chunk is None:
            return 0
        answer = self._answer()
        if answer is None:
            failpoint(Failpoint.PRODUCED)
            self._done(chunk.after)
            self._limits = self._limits.doubled()
            return chunk.bounds.entries
        # The log does not have the chunk, for certain: it may be formed in another way.
        self._state = replace(self._state, open=None)
        self._saved = False
        if isinstance(answer, TimedOut):
            self._take_less(answer)
        else:
            self._refused(answer, chunk.bounds.entries)
        return None

    def _answer(self) -> Failure | TimedOut | None:
        """Wait for the log, holding the lease meanwhile; None: it has the chunk. Doubt is an error."""
        seconds = self._lease.held.seconds
        until = boot_seconds() + 2 * seconds
        while True:
            # Around this call alone: a time-out of the outbox says nothing about what the log has.
            try:
                settlement = self._producer.settle(seconds / 3)
            except TimedOut as error:
                return error
            if settlement is not None:
                return settlement.failure
            if boot_seconds() > until:
                raise Unreachable(f"the log has not answered for {2 * seconds:g} s")
            self.renew()

    def _done(self, after: Checkpoint) -> None:
        """The log has the open chunk. The next step says so: that of the next chunk, or one of its own when idle."""
        self._state = Numbered(after, self._state.chunk + 1, None)
        self._saved = False

    def _take_less(self, error: TimedOut) -> None:
        if self._limits.entries == 1:
            raise error
        # Without this, two relays take over from each other for ever, each with a chunk that takes too long.
        self._limits = self._limits.halved()
        self.renew()

    def _refused(self, failure: Failure, entries: int) -> None:
        """Go on with what lies before the message at fault; the one that comes first is named."""
        self.renew()
        if entries == 1 or not failure.permanent:
            raise refused(failure)
        self._limits = replace(self._limits, entries=max(1, entries // 2))

    def _settle_open_chunk(self) -> None:
        """Compare the outbox's journal with the log: is the chunk that was open in it?"""
        number, state = self._producer.number() or 0, self._state
        if state.open is not None and number == state.chunk + 1:
            self._done(state.checkpoint.behind(state.open.last))
        elif number != state.chunk:
            self._stop(number)
        elif state.open is not None:
            self._send(state.checkpoint, self._chunks.again(state.checkpoint, state.open))
            self._settle()

    def _stop(self, number: int) -> None:
        """The two tell different stories: a relay that lost its lease may see that; else a person has to decide."""
        self._lease.advance()
        known, name = self._state.chunk, self._relay
        story = (
            "the log was restored from a backup, or records in it are not this outbox's"
            if number < known
            else "the outbox's database was restored from a backup, or is a copy of one whose relay went on"
        )
        raise Permanent(
            f"relay {name!r}: the outbox knows {known} chunks as done and the log has {number}: {story}. Bring back the"
            f" one that matches; or let the relay go with `relay forget {name}` and start it anew: --start earliest"
            " sends all that the outbox has once more (an inbox recognises repeats by their ids), latest leaves it out"
        )

    def renew(self) -> None:
        """Renew the lease, saving how far the checkpoint has come."""
        self._lease.advance(**self._state.columns())
        self._saved = True

    def finish(self) -> None:
        """Wait for what is on its way, and save how far the checkpoint has come."""
        self._settle()
        self._save()

    def _save(self) -> None:
        if not self._saved:
            self.renew()
            failpoint(Failpoint.ADVANCED)

    def close(self) -> None:
        """Let go of the producer."""
        self._producer.close()


def _open(lease: Lease, work: Work) -> NumberedProducer:
    """Open the log's producer; from then on no older relay can append."""
    held = lease.held
    identity = ProducerIdentity(work.relay, work.installation, work.incarnation, Epoch(held.epoch), held.seconds)
    producer = work.log.producer(identity)
    if not isinstance(producer, NumberedProducer):
        producer.close()
        raise ConfigurationError(
            "--delivery exactly-once: this log says that it can, but its producer knows no number of its last chunk"
        )
    return producer


def settle_open_chunk(chunks: Chunks, lease: Lease, work: Work) -> None:
    """Settle what another way of moving left open: for a log that was elsewhere, and is in the outbox's database now.

    Raises:
        Permanent: see `NumberedMover`.
        Retryable: the log does not answer.
    """
    if Numbered.of(lease.held.state).open is None:
        return
    mover = NumberedMover(chunks, lease, work)
    try:
        mover.finish()
    finally:
        mover.close()
