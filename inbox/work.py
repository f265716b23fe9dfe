"""The heart of the inbox: what happens to a segment of records inside one transaction."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import text

from inbox.claims import SLACK_SECONDS, Dialect, Identity, MessageDialect, Taking
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


@dataclass(frozen=True, slots=True)
class Plan:
    """A segment, reduced to the first record of each message.

    Attributes:
        firsts: by message, in offset order: the record to handle, and by what.
        repeats: how many records repeat a message of this very segment.
        ignored: how many have no handler.
    """

    firsts: dict[Identity, tuple[Record, Handler]]
    repeats: int
    ignored: int


def plan(records: Sequence[Record], handlers: Handlers) -> Plan:
    """Reduce records to what is to be handled. An at-least-once repeat often lies in the same batch."""
    firsts: dict[Identity, tuple[Record, Handler]] = {}
    repeats = ignored = 0
    for record in records:
        handler = handlers.for_message(record.message)
        identity = _identity(record)
        if handler is None:
            ignored += 1
        elif identity in firsts:
            repeats += 1
        else:
            firsts[identity] = (record, handler)
    return Plan(firsts, repeats, ignored)


def handle(lent: Lent, segment: Segment, handlers: Handlers, dialect: Dialect) -> float:
    """Claim the segment's records and hand the new ones to their handlers; return how many seconds that took.

    Raises:
        Fenced: another consumer has claimed them.
        HandlerFailed: a handler raised.
        TooSlow: the batch takes too long for one transaction.
    """
    todo = plan(segment.records, handlers)
    taking = Taking(
        segment.partition, segment.claim, segment.end, sorted(todo.firsts, key=_order), todo.repeats, todo.ignored
    )
    fresh = dialect.take(lent.connection, taking)
    begun = heard = time.monotonic()
    handled = 0
    for identity, (record, handler) in todo.firsts.items():
        if fresh is not None and identity not in fresh:
            continue
        now = time.monotonic()
        if handled and is_over(now - begun):
            raise TooSlow(handled)
        if now - heard > SLACK_SECONDS / 2:
            # Handlers that call others and no SQL leave the session idle, and the server ends idle sessions.
            lent.connection.execute(_NOTHING)
            heard = now
        _call(lent, segment, record, handler)
        handled += 1
    return time.monotonic() - begun


def handle_one(lent: Lent, segment: Segment, handlers: Handlers, dialect: MessageDialect) -> bool:
    """Insert the id of the segment's one message, and hand it to its handler; return False when it was handled before.

    Raises:
        Forgotten: the group is no longer registered.
        HandlerFailed: the handler raised.
    """
    (record,) = segment.records
    handler = handlers.for_message(record.message)
    if handler is None or not dialect.remember(lent.connection, segment.partition, record.offset, _identity(record)):
        return False
    _call(lent, segment, record, handler)
    return True


def _call(lent: Lent, segment: Segment, record: Record, handler: Handler) -> None:
    try:
        lent.call(handler, delivery_of(record, handler, segment.attempt, record.offset < segment.handed_to))
    except Exception as error:
        raise HandlerFailed(record, handler.retry) from error


def _identity(record: Record) -> Identity:
    return record.message.source or "", record.message.id


def _order(identity: Identity) -> tuple[str, int]:
    return identity[0], identity[1].int


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
