"""A relay's hand on a built-in log in another database: chunks are appended by a thread, one after another.

By a thread, because a server that hangs answers no time-out of its own: the relay goes on renewing its lease, and
gives up when it has waited long enough.
"""

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from outbox.errors import OutboxError, Retryable, Unreachable
from outbox.message import Entry
from relay.logs.cloudevents import are_texts
from relay.logs.contract import Failure, ProducerIdentity, Settlement
from relay.logs.worker import Worker

STATEMENT_SHARE = 0.5
LOCK_SHARE = 0.3
"""Of the lease: a wait for a lock ends before its statement, and a statement before the lease."""
PRUNE_STEPS = 1_000


@dataclass(frozen=True, slots=True)
class Copied:
    """A chunk as PostgreSQL's `copy (...) to stdout (format binary)` gave it; no row of it became an object."""

    data: bytes
    entries: int


class Appender(Protocol):
    """One connection to a log's tables, for one relay and epoch. Used by one thread, but for `abort`."""

    def open(self) -> int:
        """Connect, fence older epochs, and return the number of the relay's last chunk in the log; 0 for none.

        Raises:
            Fenced: a newer epoch has been here.
            Retryable: no answer; after that, `close`.
        """
        ...

    def append(self, number: int, chunk: Any) -> None:
        """Store the chunk's records and its number, all or nothing.

        Raises:
            Fenced: a newer epoch has been here.
            TimedOut: it took too long; nothing is stored, and the connection is good.
            Retryable: unknown outcome; after that, `close`.
            MessageAtFault: nothing is stored because of one message.
        """
        ...

    def fault(self, entry: Entry) -> str | None:
        """Return why this log cannot store an entry, if so."""
        ...

    def abort(self) -> None:
        """End the connection under whoever waits on it. From any thread."""
        ...

    def close(self) -> None:
        """Close the connection."""
        ...


class BuiltinProducer:
    """A relay's hand; see `NumberedProducer`. Beside entries it takes what its appender takes."""

    def __init__(self, appender: Appender, identity: ProducerIdentity) -> None:
        self._appender = appender
        self._pending: deque[tuple[int, Future[Failure | None]]] = deque()
        self._worker = Worker(f"log of {identity.relay}")
        opened = self._worker.submit(appender.open)
        # Two statements, and connecting.
        if not wait([opened], 2 * identity.lease_seconds).done:
            self.close()
            raise Unreachable(f"the log has not answered for {2 * identity.lease_seconds:g} s")
        try:
            self._number = opened.result()
        except BaseException:
            self.close()
            raise

    def number(self) -> int | None:
        """Return the number of the relay's last chunk in the log."""
        return self._number

    def keep(self, number: int) -> None:
        """Nothing: a table forgets no number."""

    def produce(self, number: int, chunk: Sequence[Entry] | Copied) -> None:
        """Take a chunk; see `Producer.produce`."""
        self._pending.append((number, self._worker.submit(lambda: self._append(number, chunk))))

    def settle(self, timeout_seconds: float) -> Settlement | None:
        """Wait for the oldest chunk that is not settled; see `Producer.settle`."""
        if not self._pending or not wait([self._pending[0][1]], timeout_seconds).done:
            return None
        number, appended = self._pending.popleft()
        return Settlement(number, appended.result())

    def _append(self, number: int, chunk: Sequence[Entry] | Copied) -> Failure | None:
        if number != self._number + 1:
            raise Retryable(f"chunk {number} is not taken: the log has {self._number}, and one before it failed")
        for entry in () if isinstance(chunk, Copied) else chunk:
            reason = _fault(entry) or self._appender.fault(entry)
            if reason is not None:
                return Failure(entry, reason, permanent=True)
        self._appender.append(number, chunk)
        self._number = number
        return None

    def close(self) -> None:
        """Let go of the connection, also of one that somebody waits on. Again: no effect."""
        if self._worker.is_busy():
            self._appender.abort()
        closed = self._worker.end(self._appender.close)
        wait([closed], 1)


def _fault(entry: Entry) -> str | None:
    # A plain-SQL writer may have stored any JSON as headers.
    return None if are_texts(entry.message.headers) else "its headers are not an object of texts"


def prune_now_and_then(pruned: int, step: int, prune: Callable[[], None]) -> int:
    """Delete old steps of a journal when enough have come; return up to where that was done or tried."""
    if step - pruned < PRUNE_STEPS:
        return pruned
    # The next time will do as well: a prune waits for no lock.
    with suppress(OutboxError):
        prune()
    return step
