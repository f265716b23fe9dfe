"""Letting go of a consumer group: its members that are gone, and its committed offsets."""

from datetime import timedelta

from sqlalchemy import Connection, MetaData, delete, func, select

from outbox.errors import Permanent
from outbox.process.database import connected
from outbox.process.urls import dialect_of
from outbox.tables.log import LogTables, log_tables
from relay.logs.builtin.address import Address
from relay.logs.builtin.group.store import GONE_SECONDS

ALIVE = timedelta(seconds=GONE_SECONDS)
"""A member that was seen within this time, by the log's clock, is alive."""


def forget_group(address: Address, group: str) -> bool:
    """Delete what the log has of a group; return whether there was anything.

    Raises:
        Permanent: a member of it is alive.
    """
    tables = log_tables(MetaData(), address.place.schema, address.place.prefix)
    with connected(address.url, name="log forget") as connection:
        if dialect_of(address.url) == "sqlite":
            # Here and not with the first write: a read transaction that wants to write fails at once.
            connection.exec_driver_sql("begin immediate")
        known = _forget(connection, tables, group)
        connection.commit()
    return known


def _forget(connection: Connection, tables: LogTables, group: str) -> bool:
    # Members that join or leave lock this row, so that none comes in between.
    connection.execute(select(tables.group).where(tables.group.c.consumer_group == group).with_for_update())
    _refuse_alive(connection, tables, group)
    gone = [
        connection.execute(delete(table).where(table.c.consumer_group == group)).rowcount
        for table in (tables.member, tables.group_offset, tables.group)
    ]
    return any(gone)


def _refuse_alive(connection: Connection, tables: LogTables, group: str) -> None:
    member = tables.member.c
    clock = connection.scalar(select(func.now()))
    for name, seen_at in connection.execute(
        select(member.member, member.seen_at).where(member.consumer_group == group)
    ):
        # Either way: a clock that was set back must not keep a member alive for as long.
        if clock is not None and abs(clock - seen_at) < ALIVE:
            raise Permanent(f"group {group!r} is alive: {name} is a member of it; stop it, and forget the group then")
