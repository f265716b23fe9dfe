"""Waiting for a database or a log: as long as it takes, saying so now and then; under `once` only so long."""

import logging
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from outbox.errors import Fenced, Retryable, Unreachable
from outbox.retry import RetryPolicy

T = TypeVar("T")

SAY_SECONDS = 10.0
_BACKOFF = RetryPolicy(attempts=2**31, first_seconds=0.1, most_seconds=2.0)


class Stopped(Retryable):
    """The process was told to stop while it waited."""


class Patience:
    """With one thing that may be away: the database, or the log.

    Args:
        what: the thing, in words.
        stop: set to end the waiting.
        give_up_seconds: how long it may be away; None is for ever.
        logger: says what is waited for.
    """

    def __init__(self, what: str, stop: threading.Event, give_up_seconds: float | None, logger: logging.Logger) -> None:
        self._what = what
        self._logger = logger
        self._stop = stop
        self._give_up_seconds = give_up_seconds
        self._since: float | None = None
        self._said = 0.0
        self._failures = 0

    def worked(self) -> None:
        """It is there."""
        if self._since is not None and self._said:
            self._logger.warning("the %s answers again", self._what)
        self._since, self._said, self._failures = None, 0.0, 0

    def failed(self, error: Exception) -> float:
        """It is not; return how many seconds to wait before the next try.

        Raises:
            Unreachable: it was away for longer than we are to wait.
        """
        now = time.monotonic()
        self._since = now if self._since is None else self._since
        if self._give_up_seconds is not None and now - self._since >= self._give_up_seconds:
            raise Unreachable(f"gave up after {self._give_up_seconds:g} s: {error}") from error
        if not self._said or now - self._said > SAY_SECONDS:
            self._logger.warning("waiting for the %s: %s", self._what, error)
            self._said = now
        self._failures += 1
        return _BACKOFF.ceiling(self._failures)

    def until_done(self, attempt: Callable[[], T]) -> T:
        """Return what `attempt` returns, trying again as long as it takes.

        Raises:
            Stopped: the process is to stop.
            Unreachable: we gave up.
        """
        while True:
            try:
                result = attempt()
            except (Retryable, Fenced) as error:
                if self._stop.wait(self.failed(error)):
                    raise Stopped(f"stopped while waiting for the {self._what}") from error
            else:
                self.worked()
                return result
