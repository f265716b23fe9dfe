"""The set `outbox`: the writer's table and the relay's journal of checkpoints."""

from dataclasses import dataclass

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    Column,
    DateTime,
    Float,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    Uuid,
    event,
    text,
)
from sqlalchemy.schema import AddConstraint
from sqlalchemy.sql.naming import conv

from outbox.tables.names import Place, comment, only_on, place_of, registered
from outbox.tables.types import POSITION, XID8, current_transaction, random_id, utc_now

TOPIC_ON_POSTGRESQL = r"topic ~ '^[A-Za-z0-9._-]{1,249}$' and topic not in ('.', '..')"
TOPIC_ON_SQLITE = "length(topic) between 1 and 249 and topic not glob '*[^A-Za-z0-9._-]*' and topic not in ('.', '..')"
OWN_TRANSACTION = "transaction_id = pg_current_xact_id()"


@dataclass(frozen=True, slots=True)
class OutboxTables:
    """The tables of the set `outbox`."""

    place: Place
    outbox: Table
    relay: Table
    relay_checkpoint: Table
    installation: Table


def outbox_tables(metadata: MetaData, schema: str | None = None, prefix: str = "") -> OutboxTables:
    """Register the set `outbox` on `metadata`; idempotent."""
    place = place_of(metadata, schema, prefix)
    return OutboxTables(
        place,
        registered(metadata, place, "outbox", lambda: _outbox(metadata, place)),
        registered(metadata, place, "relay", lambda: _relay(metadata, place)),
        registered(metadata, place, "relay_checkpoint", lambda: _checkpoint(metadata, place)),
        registered(metadata, place, "outbox_installation", lambda: _installation(metadata, place)),
    )


def _outbox(metadata: MetaData, place: Place) -> Table:
    name = place.prefix + "outbox"
    own_transaction = only_on(
        "postgresql", CheckConstraint(OWN_TRANSACTION, name=conv(f"{name}_own_transaction"), postgresql_not_valid=True)
    )
    topic_on_postgresql = only_on("postgresql", CheckConstraint(TOPIC_ON_POSTGRESQL, name=conv(f"{name}_topic")))
    topic_on_sqlite = only_on("sqlite", CheckConstraint(TOPIC_ON_SQLITE, name=conv(f"{name}_topic")))
    table = Table(
        name,
        metadata,
        # CACHE 1, the default: a cache hands out positions that are older than the locks they are compared with.
        Column("position", POSITION, Identity(always=True), primary_key=True),
        Column("transaction_id", XID8(), server_default=current_transaction(), nullable=False),
        Column("id", Uuid(), server_default=random_id(), nullable=False),
        Column("source", Text()),
        Column("topic", Text(), nullable=False),
        Column("key", Text()),
        # As SQL: an empty text as a default is another one on SQLite each time Alembic looks.
        Column("type", Text(), server_default=text("''"), nullable=False),
        Column("payload", LargeBinary()),
        Column("content_type", Text(), server_default="application/json", nullable=False),
        Column("headers", JSON(none_as_null=True)),
        Column("created_at", DateTime(timezone=True), server_default=utc_now(), nullable=False),
        own_transaction,
        topic_on_postgresql,
        topic_on_sqlite,
        Index(conv(f"{name}_transaction_position"), "transaction_id", "position"),
        schema=place.schema,
        comment=comment("outbox"),
        sqlite_autoincrement=True,
    )
    # By ALTER TABLE: inside CREATE TABLE PostgreSQL ignores NOT VALID. Only a constraint that is not valid is
    # restored by
    # pg_dump after the data, so that rows of an older cluster are let in by a restore, and by nothing else.
    event.listen(table, "after_create", AddConstraint(own_transaction).execute_if(dialect="postgresql"))
    return table


def _relay(metadata: MetaData, place: Place) -> Table:
    return Table(
        place.prefix + "relay",
        metadata,
        Column("name", Text(), primary_key=True),
        Column("incarnation", Uuid(), nullable=False, unique=True),
        Column("topics", Text(), nullable=False),
        Column("log", Text(), nullable=False),
        Column("cluster", Text(), nullable=False),
        Column("database", Text(), nullable=False),
        Column("registered_at", DateTime(timezone=True), server_default=utc_now(), nullable=False),
        schema=place.schema,
        comment=comment("outbox"),
    )


def lease_columns() -> list[Column[object]]:
    """Return the columns that every journal with a lease has beside its key."""
    return [
        Column("epoch", BigInteger(), nullable=False),
        Column("owner", Text()),
        Column("backend", Integer(), nullable=False),
        Column("lease_seconds", Float(), nullable=False),
        Column("lease_until", DateTime(timezone=True), nullable=False),
    ]


def _checkpoint(metadata: MetaData, place: Place) -> Table:
    return Table(
        place.prefix + "relay_checkpoint",
        metadata,
        Column("incarnation", Uuid(), primary_key=True),
        Column("step", BigInteger(), primary_key=True, autoincrement=False),
        *lease_columns(),
        Column("snapshot_from", Text(), nullable=False),
        Column("snapshot_to", Text()),
        Column("last", BigInteger(), nullable=False),
        Column("position", BigInteger(), nullable=False),
        # For a log elsewhere: how many chunks are done; and the open one, which begins behind this checkpoint.
        Column("chunk", BigInteger(), server_default="0", nullable=False),
        Column("open_last", BigInteger()),
        Column("open_entries", BigInteger()),
        Column("open_digest", BigInteger()),
        # At most once: how many may not have arrived; those that are on their way count until they have.
        Column("maybe_lost", BigInteger(), server_default="0", nullable=False),
        schema=place.schema,
        comment=comment("outbox"),
    )


def _installation(metadata: MetaData, place: Place) -> Table:
    return Table(
        place.prefix + "outbox_installation",
        metadata,
        Column(
            "single",
            Integer(),
            CheckConstraint("single = 1", name=conv("outbox_installation_single")),
            primary_key=True,
            autoincrement=False,
            server_default="1",
        ),
        Column("id", Uuid(), server_default=random_id(), nullable=False),
        schema=place.schema,
        comment=comment("outbox"),
    )
