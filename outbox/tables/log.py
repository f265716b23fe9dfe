"""The set `log`: the built-in log's topics, records and consumer groups."""

from dataclasses import dataclass

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    Column,
    DateTime,
    Identity,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    Uuid,
)
from sqlalchemy.sql.naming import conv

from outbox.tables.names import Place, comment, place_of, registered
from outbox.tables.types import random_id, utc_now


@dataclass(frozen=True, slots=True)
class LogTables:
    """The tables of the set `log`."""

    place: Place
    identity: Table
    topic: Table
    record: Table
    chunk: Table
    group: Table
    member: Table
    group_offset: Table


def log_tables(metadata: MetaData, schema: str | None = None, prefix: str = "") -> LogTables:
    """Register the set `log` on `metadata`; idempotent."""
    place = place_of(metadata, schema, prefix)
    return LogTables(
        place,
        registered(metadata, place, "log_identity", lambda: _identity(metadata, place)),
        registered(metadata, place, "log_topic", lambda: _topic(metadata, place)),
        registered(metadata, place, "log_record", lambda: _record(metadata, place)),
        registered(metadata, place, "log_chunk", lambda: _chunk(metadata, place)),
        registered(metadata, place, "log_group", lambda: _group(metadata, place)),
        registered(metadata, place, "log_member", lambda: _member(metadata, place)),
        registered(metadata, place, "log_group_offset", lambda: _group_offset(metadata, place)),
    )


def _identity(metadata: MetaData, place: Place) -> Table:
    return Table(
        place.prefix + "log_identity",
        metadata,
        Column(
            "single",
            Integer(),
            CheckConstraint("single = 1", name=conv("log_identity_single")),
            primary_key=True,
            autoincrement=False,
            server_default="1",
        ),
        Column("id", Uuid(), server_default=random_id(), nullable=False),
        schema=place.schema,
        comment=comment("log"),
    )


def _topic(metadata: MetaData, place: Place) -> Table:
    return Table(
        place.prefix + "log_topic",
        metadata,
        Column("topic_id", Integer(), Identity(always=True), primary_key=True),
        Column("name", Text(), nullable=False, unique=True),
        Column("incarnation", Uuid(), server_default=random_id(), nullable=False),
        Column("partitions", Integer(), nullable=False),
        Column("retain_seconds", BigInteger()),
        Column("created_at", DateTime(timezone=True), server_default=utc_now(), nullable=False),
        schema=place.schema,
        comment=comment("log"),
        sqlite_autoincrement=True,
    )


def _record(metadata: MetaData, place: Place) -> Table:
    return Table(
        place.prefix + "log_record",
        metadata,
        Column("topic_id", Integer(), primary_key=True, autoincrement=False),
        Column("partition", Integer(), primary_key=True, autoincrement=False),
        Column("offset", BigInteger(), primary_key=True, autoincrement=False),
        Column("sequence", BigInteger(), nullable=False),
        Column("epoch", BigInteger(), nullable=False),
        Column("id", Uuid(), nullable=False),
        Column("source", Text(), nullable=False),
        Column("key", Text()),
        Column("type", Text(), nullable=False),
        Column("content_type", Text(), nullable=False),
        Column("time", DateTime(timezone=True), nullable=False),
        Column("headers", JSON(none_as_null=True)),
        Column("payload", LargeBinary()),
        schema=place.schema,
        comment=comment("log"),
    )


def _chunk(metadata: MetaData, place: Place) -> Table:
    """A journal for each relay whose outbox lies in another database: the number of its last chunk, and its epoch."""
    return Table(
        place.prefix + "log_chunk",
        metadata,
        Column("incarnation", Uuid(), primary_key=True),
        Column("step", BigInteger(), primary_key=True, autoincrement=False),
        Column("epoch", BigInteger(), nullable=False),
        Column("number", BigInteger(), nullable=False),
        Column("relay", Text(), nullable=False),
        Column("installation", Uuid(), nullable=False),
        Column("appended_at", DateTime(timezone=True), server_default=utc_now(), nullable=False),
        schema=place.schema,
        comment=comment("log"),
    )


def _group(metadata: MetaData, place: Place) -> Table:
    """One row a group; its epoch rises whenever a member comes or goes."""
    return Table(
        place.prefix + "log_group",
        metadata,
        Column("consumer_group", Text(), primary_key=True),
        Column("epoch", BigInteger(), nullable=False),
        Column("updated_at", DateTime(timezone=True), server_default=utc_now(), nullable=False),
        schema=place.schema,
        comment=comment("log"),
    )


def _member(metadata: MetaData, place: Place) -> Table:
    """Who is alive: a member that was not seen for ten seconds is gone."""
    return Table(
        place.prefix + "log_member",
        metadata,
        Column("consumer_group", Text(), primary_key=True),
        Column("member", Text(), primary_key=True),
        Column("topics", JSON(), nullable=False),
        Column("joined_at", DateTime(timezone=True), server_default=utc_now(), nullable=False),
        Column("seen_at", DateTime(timezone=True), server_default=utc_now(), nullable=False),
        schema=place.schema,
        comment=comment("log"),
    )


def _group_offset(metadata: MetaData, place: Place) -> Table:
    return Table(
        place.prefix + "log_group_offset",
        metadata,
        Column("consumer_group", Text(), primary_key=True),
        Column("topic_id", Integer(), primary_key=True, autoincrement=False),
        Column("partition", Integer(), primary_key=True, autoincrement=False),
        Column("offset", BigInteger(), nullable=False),
        # Whose the partition is, since which epoch of the group; nobody's when null.
        Column("member", Text()),
        Column("epoch", BigInteger(), server_default="0", nullable=False),
        Column("updated_at", DateTime(timezone=True), server_default=utc_now(), nullable=False),
        schema=place.schema,
        comment=comment("log"),
    )
