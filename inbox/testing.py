"""For the tests of handlers: hands a message to its handler as `inbox run` would, with no log and no process.

    assert deliver(inbox, session=session, topic="orders", type="OrderPlaced", payload={"id": 42}) is Outcome.HANDLED

All but the fetching is the product's own: which handler, the payload's model, what the handler is lent, the context,
and the row by which a repeat is known (none with `deduplicate="offset"`). It happens inside the transaction of the
session that the test gives.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import Enum
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, delete, false
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.orm import Session

from inbox.group import Inbox
from inbox.lending import Lent
from inbox.work import delivery_of
from outbox.errors import ConfigurationError
from outbox.message import Epoch, Message, Offset, Position
from outbox.testing import message as built
from relay.logs.cloudevents import resolved, wire_headers
from relay.logs.contract import Partition, Record

__all__ = ["Outcome", "deliver", "deliver_async"]


_INSTALLATION = UUID(int=0)


class Outcome(Enum):
    """What became of a delivery."""

    HANDLED = "handled"
    """The handler was called, and what it did is in the transaction."""
    DUPLICATE = "duplicate"
    """The group has handled this message before; the handler was not called."""
    IGNORED = "ignored"
    """The topic has handlers, and none of them for this type."""


def deliver(
    inbox: Inbox,
    message: Message | Record | None = None,
    *,
    session: Session | Connection,
    attempt: int = 1,
    redelivered: bool = False,
    **written: Any,
) -> Outcome:
    """Hand a message to the handler of an Inbox, in the transaction of `session`.

    What the handler did, and the row that it was handled, are in that transaction: commit or roll it back as you like.
    With `deduplicate="offset"` there is no such row: each delivery stands for a record of its own, and is handled.
    When the handler raises, what it did is rolled back (to a savepoint), its exception comes out as it is, and the
    message may be delivered again. Objects of a Session are expired, so that they show what the handler changed.

    Args:
        inbox: whose handlers; its tables have to be there.
        message: what was written or fetched; without it `written` makes one.
        session: the test's own. The handler gets one of its own on the same transaction, as ever.
        attempt: what `Delivery.attempt` says.
        redelivered: what `Delivery.redelivered` says.
        written: topic, payload, key, type, headers, id as `Outbox.write` takes them, and `source`.

    Raises:
        ConfigurationError: the handlers are `async def`, or none is for this topic.
        WriteError: `write` would refuse the message.
        MessageAtFault: the payload is not what the handler's model says.
        Exception: whatever the handler raised.
    """
    if inbox._handlers.asynchronous:  # noqa: SLF001 - this module is the inbox's own door for tests
        raise ConfigurationError("the handlers are async def: await deliver_async(...)")
    record = _record(inbox, message, written)
    connection = _connection(session, inbox)
    outcome = _handle(connection, None, inbox, _Attempt(record, attempt, redelivered))
    if isinstance(session, Session):
        session.expire_all()
    return outcome


async def deliver_async(
    inbox: Inbox,
    message: Message | Record | None = None,
    *,
    session: AsyncSession | AsyncConnection,
    attempt: int = 1,
    redelivered: bool = False,
    **written: Any,
) -> Outcome:
    """Hand a message to the `async def` handler of an Inbox, in the transaction of `session`. See `deliver`.

    Objects of an AsyncSession are not expired, since they could not be loaded again without an await: refresh them.

    Raises:
        ConfigurationError: the handlers are `def`, or none is for this topic.
        WriteError: as `deliver`.
        MessageAtFault: as `deliver`.
        Exception: whatever the handler raised.
    """
    if not inbox._handlers.asynchronous:  # noqa: SLF001 - the same
        raise ConfigurationError("the handlers are def, not async def: call deliver(...)")
    record = _record(inbox, message, written)
    if isinstance(session, AsyncSession):
        await session.flush()
        lent = await session.connection(bind_arguments={"clause": inbox._tables.inbox})  # noqa: SLF001 - the same
    else:
        lent = session
    return await lent.run_sync(_handle, lent, inbox, _Attempt(record, attempt, redelivered))


@dataclass(frozen=True, slots=True)
class _Attempt:
    record: Record
    number: int
    redelivered: bool


def _record(inbox: Inbox, message: Message | Record | None, written: Mapping[str, Any]) -> Record:
    if message is not None and written:
        raise ConfigurationError(f"a message is given, and {', '.join(written)} besides: give one of them")
    record = message if isinstance(message, Record) else _fetched(built(**written) if message is None else message)
    topics = inbox._handlers.topics  # noqa: SLF001 - the same
    if record.message.topic not in topics:
        known = ", ".join(topics) or "none"
        raise ConfigurationError(
            f"no handler reads topic {record.message.topic!r}: group {inbox.group!r} reads {known}"
        )
    return record


def _fetched(message: Message) -> Record:
    """Return the message as it comes out of a log: stored, carried on, and fetched."""
    stored = replace(message, time=message.time or datetime.now(UTC), sequence=message.sequence or Position(1))
    carried = resolved(stored, _INSTALLATION)
    return Record(Partition(message.topic, "testing", 0), Offset(0), carried, wire_headers(carried, Epoch(1)))


def _connection(session: Session | Connection, inbox: Inbox) -> Connection:
    if isinstance(session, Connection):
        return session
    session.flush()
    # By the table: a session with several engines has to find the one that the table lies on.
    return session.connection(bind_arguments={"clause": inbox._tables.inbox})  # noqa: SLF001 - the same


def _handle(connection: Connection, asynchronous: AsyncConnection | None, inbox: Inbox, attempt: _Attempt) -> Outcome:
    message = attempt.record.message
    handler = inbox._handlers.for_message(message)  # noqa: SLF001 - the same
    if handler is None:
        return Outcome.IGNORED
    # A savepoint alone begins no transaction in Python's sqlite3, and its release would commit.
    connection.execute(delete(inbox._tables.inbox).where(false()))  # noqa: SLF001 - the same
    lent = Lent(connection, None, asynchronous, connection.begin_nested())
    try:
        # By offset each delivery is a message of its own, and there is no row of it.
        if not inbox._by_offset and not inbox.first_time(connection, message.id, message.source or ""):  # noqa: SLF001
            lent.abandon()
            return Outcome.DUPLICATE
        lent.call(handler, delivery_of(attempt.record, handler, attempt.number, attempt.redelivered))
        lent.take_back()
        lent.commit()
    except BaseException:
        lent.abandon()
        raise
    return Outcome.HANDLED
