"""Connecting to a database that may not be there yet: waiting, and saying so."""

import logging
import threading

from outbox.errors import Retryable
from outbox.journal import boot_seconds
from outbox.process.urls import parse_url
from outbox.process.waiting import wait_for
from outbox.tables import Place
from relay.database import open_database
from relay.database.contract import OutboxDatabase

logger = logging.getLogger("relay")
FIRST_WAIT_SECONDS = 0.1
LONGEST_WAIT_SECONDS = 2.0
SAY_SECONDS = 10.0
PATIENT_SECONDS = 600.0
"""For commands that hold no lease: a statement may take half of it, as counting a long backlog does."""


class Patience:
    """How long to go on trying after a fault, and when to say so again. A success resets it."""

    def __init__(self, most_seconds: float | None) -> None:
        self._most = most_seconds
        self._since: float | None = None
        self._said = 0.0
        self._wait = FIRST_WAIT_SECONDS

    def reset(self) -> None:
        """The fault is over."""
        self._since, self._wait, self._said = None, FIRST_WAIT_SECONDS, 0.0

    def bear(self, error: Retryable, stop: threading.Event) -> None:
        """Wait before the next attempt.

        Raises:
            Retryable: the error itself, when it has lasted for too long.
        """
        now = boot_seconds()
        self._since = self._since or now
        if self._most is not None and now - self._since >= self._most:
            raise error
        if not self._said or now - self._said >= SAY_SECONDS:
            logger.warning("%s; trying again", error)
            self._said = now
        stop.wait(self._wait)
        self._wait = min(self._wait * 2, LONGEST_WAIT_SECONDS)


def connected(database: str, *, schema: str | None, prefix: str, wait: float, name: str) -> OutboxDatabase:
    """Return a connection to an outbox's database, made within `wait` seconds.

    Raises:
        Unreachable: it does not answer in that time.
        ConfigurationError: the URL cannot be read.
    """
    url = parse_url(database)
    return wait_for(
        lambda: open_database(url, Place(schema, prefix), name=name, lease_seconds=PATIENT_SECONDS), seconds=wait
    )
