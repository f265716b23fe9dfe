"""The outbox's database as a relay uses it: registration, lease, status; one contract, one file a dialect."""

from sqlalchemy import URL

from outbox.process.urls import dialect_of
from outbox.tables import Place
from relay.database.contract import OutboxDatabase


def open_database(url: URL, place: Place, *, name: str, lease_seconds: float) -> OutboxDatabase:
    """Connect to an outbox's database.

    Args:
        url: which.
        place: where our tables lie in it.
        name: the relay's, as the database shows it.
        lease_seconds: what bounds every statement.

    Raises:
        Unreachable: it does not answer.
        ConfigurationError: it is a standby, or reached through a pooler.
    """
    if dialect_of(url) == "postgresql":
        from relay.database.postgresql import PostgresqlOutbox  # noqa: PLC0415 - needs the extra

        return PostgresqlOutbox(url, place, name=name, lease_seconds=lease_seconds)
    from relay.database.sqlite import SqliteOutbox  # noqa: PLC0415 - one dialect is enough for one process

    return SqliteOutbox(url, place, lease_seconds=lease_seconds)
