"""Moving chunks into a log elsewhere exactly once: the log keeps the number of the last chunk, with its records.

The outbox's journal says "n chunks are done, chunk n+1 is open, with these bounds" before the chunk is sent; the log
takes the chunk and the number n+1 together. After a crash the log says n+1 (the open chunk is in it) or n (it is not,
and no other relay can bring it any more, because opening the producer fenced them all: it is sent again, by its
bounds). Anything else is a stop.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from outbox.errors import ConfigurationError, Fenced, Permanent, Retryable
from outbox.journal import Lease
from relay.checkpoint import Checkpoint, Numbered
from relay.failpoints import Failpoint, failpoint
from relay.logs.contract import NumberedProducer
from relay.move.ahead import AheadMover
from relay.move.chunks import Chunks, Formed
from relay.move.contract import Moved, Work, answered

logger = logging.getLogger("relay")


class NumberedMover(AheadMover):
    """Moves chunks on the outbox's connection and a producer's; exactly once."""

    def __init__(self, chunks: Chunks, lease: Lease, work: Work) -> None:
        super().__init__(chunks, lease, work)
        self._state = Numbered.of(lease.held.state)
        with self._unless_fenced_in_vain():
            self._producer = _open(lease, work)
            try:
                failpoint(Failpoint.OPENED)
                self._settle_open_chunk()
                self._producer.keep(self._state.chunk)
            except BaseException:
                self._producer.close()
                raise

    @contextmanager
    def _unless_fenced_in_vain(self) -> Iterator[None]:
        """A stale relay can fence us in the log, late, although the lease is ours: begin again, with a new epoch."""
        try:
            yield
        except Fenced as error:
            self._lease.advance()
            raise Retryable(f"{error}; the lease is ours, so the log's producer is opened anew") from error

    @property
    def _checkpoint(self) -> Checkpoint:
        return self._state.checkpoint

    def _pass(self, checkpoint: Checkpoint) -> None:
        self._state = replace(self._state, checkpoint=checkpoint)

    def step(self) -> Moved:
        """Move the next chunk; see `Mover.step`."""
        with self._unless_fenced_in_vain():
            return super().step()

    def _send(self, begin: Checkpoint, chunk: Formed[Any]) -> None:
        """Say in the outbox that the chunk is open; then hand it to the log."""
        self._state = Numbered(begin, self._state.chunk, chunk.bounds)
        self.renew()
        failpoint(Failpoint.BEGUN)
        self._chunks.expect(chunk.after, self._limits)
        self._producer.produce(self._state.chunk + 1, chunk.content)
        self._sent = chunk.handed_over()
        failpoint(Failpoint.SENT)

    def _settled(self, chunk: Formed[Any]) -> int | None:
        answer = answered(self._producer, self._lease, self.renew)
        if answer is None:
            failpoint(Failpoint.PRODUCED)
            self._done(chunk.after)
            self._limits = self._limits.doubled()
            return chunk.bounds.entries
        # The log does not have the chunk, for certain: it may be formed in another way.
        self._state = replace(self._state, open=None)
        self._saved = False
        self._form_anew(answer, chunk.bounds.entries)
        return None

    def _done(self, after: Checkpoint) -> None:
        """The log has the open chunk. The next step says so: that of the next chunk, or one of its own when idle."""
        self._state = Numbered(after, self._state.chunk + 1, None)
        self._saved = False

    def _settle_open_chunk(self) -> None:
        """Compare the outbox's journal with the log: is the chunk that was open in it?"""
        number, state = self._producer.number(), self._state
        if state.open is None and number in (None, state.chunk):
            return
        if state.open is not None and number is None:
            number = self._decided()
        if state.open is not None and number == state.chunk + 1:
            self._done(state.checkpoint.behind(state.open.last))
        elif state.open is not None and number == state.chunk:
            self._send(state.checkpoint, self._chunks.again(state.checkpoint, state.open))
            self._settle()
        else:
            self._stop(number)

    def _decided(self) -> int:
        """The log has forgotten whether it has the open chunk: a person has to say."""
        bounds, name, state = self._state.open, self._work.relay, self._state
        assert bounds is not None  # noqa: S101 - there is one, or nothing is to be decided
        if self._work.open_chunk is None:
            raise Permanent(
                f"relay {name!r}: a chunk of {bounds.entries} messages, the last at position {bounds.last}, was on its"
                " way when the relay ended, and the log has forgotten the number that says whether it arrived (offsets"
                " expired, or the topic with the numbers was deleted). Look for that message in the log, by its"
                f" ce_sequence {bounds.last:019d}: if it is there, start once with --open-chunk sent, else with unsent"
            )
        logger.warning("the open chunk up to position %d counts as %s, as was said", bounds.last, self._work.open_chunk)
        return state.chunk + 1 if self._work.open_chunk == "sent" else state.chunk

    def _stop(self, number: int | None) -> None:
        """The two tell different stories: a relay that lost its lease may see that; else a person has to decide."""
        self._lease.advance()
        known, name = self._state.chunk, self._work.relay
        story = (
            "the log was restored from a backup, or records in it are not this outbox's"
            if number is None or number < known
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

    def _rest(self) -> None:
        super()._rest()
        self._producer.keep(self._state.chunk)

    def finish(self) -> None:
        """Wait for what is on its way, and save how far the checkpoint has come."""
        with self._unless_fenced_in_vain():
            super().finish()

    def close(self) -> None:
        """Let go of the producer."""
        self._producer.close()


def _open(lease: Lease, work: Work) -> NumberedProducer:
    """Open the log's producer; from then on no older relay can append."""
    producer = work.log.producer(work.identity(lease.held, "exactly-once"))
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
