"""Connecting to a database that may not be there yet: waiting, and saying so."""

import logging

from outbox.process.urls import parse_url
from outbox.process.waiting import wait_for
from outbox.tables import Place
from relay.database import open_database
from relay.database.contract import OutboxDatabase

logger = logging.getLogger("relay")
PATIENT_SECONDS = 600.0
"""For commands that hold no lease: a statement may take half of it, as counting a long backlog does."""


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
