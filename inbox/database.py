"""The handlers' database, for what the loop itself does there: with patience, and with an end to what hangs."""

import logging
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from sqlalchemy import Connection

from inbox.lending import Lent
from inbox.transactions import CommitFailed, Target, Transactions
from outbox.check import refuse_differences
from outbox.errors import Retryable, TimedOut
from outbox.process.database import connected
from outbox.process.patience import Patience

T = TypeVar("T")

_logger = logging.getLogger("inbox")


class HandlersDatabase:
    """One connection to the handlers' database.

    Args:
        transactions: where the work is done.
        target: which database.
        patience: with the database.
    """

    def __init__(self, transactions: Transactions, target: Target, patience: Patience) -> None:
        self.target = target
        self.patience = patience
        self._transactions = transactions

    def examine(self) -> None:
        """See that the database is fit for us, and its tables as we expect them; once, when we start.

        Raises:
            ConfigurationError: it is not; the words say all that differs.
        """
        self.patience.until_done(self._examine)

    def _examine(self) -> None:
        self.target.dialect.examine(self.target.url)
        with connected(self.target.url, name="inbox check") as connection:
            refuse_differences(connection, self.target.place, ["inbox"])

    def submit(self, work: Callable[[Lent], T]) -> Future[T]:
        """Begin work in a transaction; see `Transactions.submit`."""
        return self._transactions.submit(work)

    def attempt(self, work: Callable[[Connection], T]) -> T:
        """Do work of our own in a transaction, once."""

        def translated(lent: Lent) -> T:
            with self.target.dialect.translated():
                return work(lent.connection)

        try:
            return self.submit(translated).result()
        except CommitFailed as failed:
            raise Retryable(f"it is not known whether a COMMIT was done: {failed.__cause__}") from failed

    def persist(self, work: Callable[[Connection], T]) -> T:
        """Do work in a transaction, as often and as long as it takes."""
        return self.patience.until_done(lambda: self._insist(work))

    def _insist(self, work: Callable[[Connection], T]) -> T:
        try:
            return self.attempt(work)
        except TimedOut as error:
            self.end_stuck(error)
            raise

    def end_stuck(self, error: TimedOut) -> None:
        """Whoever holds a lock of ours for longer than any handler may take hangs: end it, so that we can go on."""
        dialect, limits = self.target.dialect, self.target.limits
        ended = self.attempt(lambda connection: dialect.end_stuck(connection, limits))
        if ended:
            _logger.warning("%s: ended %s sessions of this group that held a transaction for too long", error, ended)

    def close(self) -> None:
        """Let go of the connection; nothing may be in hand."""
        self._transactions.close()
