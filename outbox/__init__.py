"""Part one of the road: the application writes events in the transaction that changes its data.

    outbox = Outbox(metadata=Base.metadata, source="/orders")
    with Session(engine) as session, session.begin():
        session.add(order)
        outbox.write(session, topic="orders", key=str(order.id), type="OrderPlaced", payload={"id": order.id})

A message is sent if, and only if, its transaction commits. A relay carries the messages on, in commit order.
"""

import outbox.migrations  # noqa: F401 - registers with an Alembic before 1.18, when that is loaded
from outbox.context import Correlation, correlate, current_correlation
from outbox.errors import (
    ConfigurationError,
    Fenced,
    MessageAtFault,
    OutboxError,
    Permanent,
    Retryable,
    Unreachable,
    WriteError,
)
from outbox.message import Message
from outbox.outbox import Outbox
from outbox.retry import RetryPolicy
from outbox.serializer import JSON, Serializer
from outbox.tables import log_tables

__all__ = [
    "JSON",
    "ConfigurationError",
    "Correlation",
    "Fenced",
    "Message",
    "MessageAtFault",
    "Outbox",
    "OutboxError",
    "Permanent",
    "RetryPolicy",
    "Retryable",
    "Serializer",
    "Unreachable",
    "WriteError",
    "correlate",
    "current_correlation",
    "log_tables",
]
