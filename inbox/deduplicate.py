"""By what a repeat is known: the ids of messages, or the offsets that are claimed. One class a way.

    segment -> the claim it follows is taken, in the handlers' transaction -> what of it is to be handled

Both take the same claims, so of two consumers that both believe they own a partition only one goes on. What differs is
what a second record of one message is: by id a repeat, by offset one more message.
"""

import logging
from collections.abc import Iterator, Sequence
from typing import Protocol

from sqlalchemy import Connection, Table, exists, literal, select

from inbox.claims import Dialect, Identity, Taking
from inbox.handlers import Handler, Handlers
from inbox.lane import Segment
from outbox.errors import ConfigurationError
from outbox.tables.inbox import InboxTables
from relay.logs.contract import Record

Due = Sequence[tuple[Record, Handler]]
"""What is to be handled, in offset order."""

_logger = logging.getLogger("inbox")


class Deduplicate(Protocol):
    """One way to know a repeat, for one group."""

    def take(self, connection: Connection, segment: Segment, handlers: Handlers) -> Due:
        """Claim a segment's records; return those that are to be handled in the same transaction.

        Durable with the transaction. Of two that take the same step at once, the second waits for the first.

        Raises:
            Fenced: another consumer has claimed them; nothing may be handled.
        """
        ...

    def look(self, connection: Connection) -> None:
        """See whether what the group has handled by now, perhaps the other way, can be relied on; before it goes on.

        Raises:
            ConfigurationError: it cannot.
        """
        ...


class ById:
    """The ids of messages are remembered: a repeat is known wherever it lies, as long as its id is kept."""

    def __init__(self, tables: InboxTables, group: str, dialect: Dialect) -> None:
        self._tables = tables
        self._group = group
        self._dialect = dialect

    def take(self, connection: Connection, segment: Segment, handlers: Handlers) -> Due:
        """Claim the records and insert the ids, of each message once; return those whose ids are new."""
        firsts: dict[Identity, tuple[Record, Handler]] = {}
        handled = 0
        for record, handler in _matched(segment, handlers):
            # An at-least-once repeat often lies in the same batch, where both ids are new to the statement.
            firsts.setdefault(identity_of(record), (record, handler))
            handled += 1
        taking = Taking(
            segment.partition,
            segment.claim,
            segment.end,
            sorted(firsts, key=_order),
            repeats=handled - len(firsts),
            ignored=len(segment.records) - handled,
        )
        fresh = self._dialect.take(connection, taking)
        return [one for identity, one in firsts.items() if fresh is None or identity in fresh]

    def look(self, connection: Connection) -> None:
        """Say so when the group has handled messages and has no id of any, as after a run by offset."""
        offsets = self._tables.inbox_offset
        if _any(connection, self._tables.inbox, self._group):
            return
        handled = exists(select(literal(1)).where(offsets.c.consumer_group == self._group, offsets.c.handled > 0))
        if connection.scalar(select(handled)):
            _logger.warning(
                "group %s has handled messages and remembers the ids of none, as after a run by offset: "
                "a repeat of one of them would be handled again",
                self._group,
            )


class ByOffset:
    """The claim alone decides: what lies below it was handled, each record above it is a message of its own."""

    def __init__(self, tables: InboxTables, group: str, dialect: Dialect) -> None:
        self._tables = tables
        self._group = group
        self._dialect = dialect

    def take(self, connection: Connection, segment: Segment, handlers: Handlers) -> Due:
        """Claim the records; return all that have a handler."""
        due = list(_matched(segment, handlers))
        taking = Taking(
            segment.partition,
            segment.claim,
            segment.end,
            identities=(),
            repeats=0,
            ignored=len(segment.records) - len(due),
            handled=len(due),
        )
        self._dialect.take(connection, taking)
        return due

    def look(self, connection: Connection) -> None:
        """Refuse a group that has ids: what was handled ahead of its claims, by --concurrency, is known by them alone.

        Raises:
            ConfigurationError: it has.
        """
        if _any(connection, self._tables.inbox, self._group):
            inbox, quoted = self._tables.place.sql("inbox"), self._group.replace("'", "''")
            raise ConfigurationError(
                f"group {self._group!r} has run with deduplicate='id', and by offset its ids are not looked at: what "
                "--concurrency handled ahead of its claims would be handled again. Stop its members, run it by id once "
                "more, with --once and without --concurrency, until that ends with exit 0, then "
                f"`delete from {inbox} where consumer_group = '{quoted}'`, and start it by offset"
            )


def identity_of(record: Record) -> Identity:
    """Return who the record's message is."""
    return record.message.source or "", record.message.id


def _matched(segment: Segment, handlers: Handlers) -> Iterator[tuple[Record, Handler]]:
    for record in segment.records:
        handler = handlers.for_message(record.message)
        if handler is not None:
            yield record, handler


def _any(connection: Connection, table: Table, group: str) -> bool:
    return bool(connection.scalar(select(exists(select(literal(1)).where(table.c.consumer_group == group)))))


def _order(identity: Identity) -> tuple[str, int]:
    return identity[0], identity[1].int
