"""The heart of the inbox: what happens to a segment of records inside one transaction."""

import logging
import time

from sqlalchemy import text

from inbox.claims import SLACK_SECONDS, MessageDialect
from inbox.deduplicate import Deduplicate, identity_of
from inbox.delivery import Delivery
from inbox.handlers import Handler, Handlers
from inbox.lane import Segment, is_over
from inbox.lending import Lent
from outbox.retry import RetryPolicy
from relay.logs.contract import Record

_logger = logging.getLogger("inbox")
_NOTHING = text("select 1")


class HandlerFailed(Exception):
    """A handler raised; the cause says what."""

    def __init__(self, record: Record, policy: RetryPolicy) -> None:
        super().__init__(record.message.id)
        self.record = record
        self.policy = policy


class TooSlow(Exception):
    """The transaction of a batch has lasted too long to begin another handler in it."""

    def __init__(self, handled: int) -> None:
        super().__init__(handled)
        self.handled = handled


def handle(lent: Lent, segment: Segment, handlers: Handlers, deduplicate: Deduplicate) -> float:
    """Claim the segment's records and hand the new ones to their handlers; return how many seconds that took.

    Raises:
        Fenced: another consumer has claimed them.
        HandlerFailed: a handler raised.
        TooSlow: the batch takes too long for one transaction.
    """
    due = deduplicate.take(lent.connection, segment, handlers)
    begun = heard = time.monotonic()
    for handled, (record, handler) in enumerate(due):
        now = time.monotonic()
        if handled and is_over(now - begun):
            raise TooSlow(handled)
        if now - heard > SLACK_SECONDS / 2:
            # Handlers that call others and no SQL leave the session idle, and the server ends idle sessions.
            lent.connection.execute(_NOTHING)
            heard = now
        _call(lent, segment, record, handler)
    return time.monotonic() - begun


def handle_one(lent: Lent, segment: Segment, handlers: Handlers, dialect: MessageDialect) -> bool:
    """Insert the id of the segment's one message, and hand it to its handler; return False when it was handled before.

    Raises:
        Forgotten: the group is no longer registered.
        HandlerFailed: the handler raised.
    """
    (record,) = segment.records
    handler = handlers.for_message(record.message)
    if handler is None or not dialect.remember(lent.connection, segment.partition, record.offset, identity_of(record)):
        return False
    _call(lent, segment, record, handler)
    return True


def _call(lent: Lent, segment: Segment, record: Record, handler: Handler) -> None:
    try:
        lent.call(handler, delivery_of(record, handler, segment.attempt, record.offset < segment.handed_to))
    except Exception as error:
        raise HandlerFailed(record, handler.retry) from error


def delivery_of(record: Record, handler: Handler, attempt: int, redelivered: bool) -> Delivery[object]:  # noqa: FBT001
    """Return what the handler is given; its data are decoded already where the handler names a model.

    Raises:
        Undecodable: the payload is not what the model says.
    """
    partition = record.partition.number
    delivery: Delivery[object] = Delivery(
        record.message, partition, record.offset, attempt, redelivered, handler.decoder
    )
    if handler.eager:
        _ = delivery.data
    return delivery
