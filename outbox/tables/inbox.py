"""The set `inbox`: what was handled, and the journal of claims."""

from dataclasses import dataclass

from sqlalchemy import BigInteger, Column, DateTime, Integer, MetaData, Table, Text, Uuid

from outbox.tables.names import Place, comment, place_of, registered
from outbox.tables.types import utc_now


@dataclass(frozen=True, slots=True)
class InboxTables:
    """The tables of the set `inbox`."""

    place: Place
    inbox: Table
    inbox_offset: Table


def inbox_tables(metadata: MetaData, schema: str | None = None, prefix: str = "") -> InboxTables:
    """Register the set `inbox` on `metadata`; idempotent."""
    place = place_of(metadata, schema, prefix)
    return InboxTables(
        place,
        registered(metadata, place, "inbox", lambda: _inbox(metadata, place)),
        registered(metadata, place, "inbox_offset", lambda: _offset(metadata, place)),
    )


def _inbox(metadata: MetaData, place: Place) -> Table:
    return Table(
        place.prefix + "inbox",
        metadata,
        Column("consumer_group", Text(), primary_key=True),
        Column("source", Text(), primary_key=True),
        Column("message_id", Uuid(), primary_key=True),
        Column("received_at", DateTime(timezone=True), server_default=utc_now(), nullable=False),
        schema=place.schema,
        comment=comment("inbox"),
    )


def _offset(metadata: MetaData, place: Place) -> Table:
    """One row a batch. Partition -1 holds the registrations, whose step is the number of partitions known then."""
    return Table(
        place.prefix + "inbox_offset",
        metadata,
        Column("consumer_group", Text(), primary_key=True),
        Column("incarnation", Text(), primary_key=True),
        Column("partition", Integer(), primary_key=True, autoincrement=False),
        Column("step", BigInteger(), primary_key=True, autoincrement=False),
        Column("topic", Text(), nullable=False),
        Column("begin_offset", BigInteger(), nullable=False),
        Column("end_offset", BigInteger(), nullable=False),
        Column("handled", BigInteger(), nullable=False),
        Column("duplicates", BigInteger(), nullable=False),
        Column("ignored", BigInteger(), nullable=False),
        Column("claimed_at", DateTime(timezone=True), server_default=utc_now(), nullable=False),
        schema=place.schema,
        comment=comment("inbox"),
    )
