"""How the relays of an outbox stand; needs no relay running."""

from contextlib import closing

from relay.connecting import connected
from relay.database.contract import RelayStatus

__all__ = ["RelayStatus", "status"]


def status(database: str, *, schema: str | None = None, prefix: str = "", wait: float = 10.0) -> list[RelayStatus]:
    """Return how every registered relay stands, by name; empty when none is registered.

    Raises:
        Unreachable: the database does not answer within `wait` seconds.
        ConfigurationError: the URL cannot be read, or the tables are missing.
    """
    with closing(connected(database, schema=schema, prefix=prefix, wait=wait, name="status")) as outbox:
        return list(outbox.status())
