"""A handler with one UPDATE, as the inbox calls it, and the loop that calls it in batches and remembers nothing."""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

from sqlalchemy import BigInteger, Column, Connection, Integer, MetaData, Table, create_engine, update
from sqlalchemy.orm import Session

from benchmarks.began import Began
from inbox import Delivery, Inbox
from relay.logs.contract import LogOptions, Record
from relay.logs.registry import open_log

BATCH = 500
"""What the built-in log hands an inbox in one go, and so the most that it handles in one transaction."""
account = Table("account", MetaData(), Column("id", Integer, primary_key=True), Column("balance", BigInteger))

_called: list[Began] = []


def by_session(delivery: Delivery[Any], session: Session) -> None:
    session.execute(_update(delivery))


def by_connection(delivery: Delivery[Any], connection: Connection) -> None:
    connection.execute(_update(delivery))


def _update(delivery: Delivery[Any]) -> Any:
    if not _called:
        _called.append(Began.now())
    return update(account).where(account.c.id == int(delivery.message.key or 0)).values(balance=account.c.balance + 1)


HANDLERS: dict[str, Callable[..., None]] = {"session": by_session, "connection": by_connection}


def inbox_handles(database: str, handler: str, group: str) -> Began:
    """Handle all there is by an inbox; return when the first message was handed over."""
    inbox = Inbox(group)
    inbox.handler("orders")(HANDLERS[handler])
    inbox.run(database, database, once=True)
    return _called[0]


def loop_handles(database: str, handler: str) -> Began:
    """Handle all there is by a loop; return when it began with the first batch."""
    engine = create_engine(database.replace("postgresql:", "postgresql+psycopg:"))
    log = open_log(database, LogOptions(None, ""))
    for deliveries in _batches(log.tail("orders", from_start=True, follow=False)):
        with engine.connect() as connection, connection.begin():
            if handler == "pipeline":
                _pipelined(connection, deliveries)
            elif handler == "session":
                session = Session(connection)
                for delivery in deliveries:
                    by_session(delivery, session)
                session.close()
            else:
                for delivery in deliveries:
                    by_connection(delivery, connection)
    log.close()
    engine.dispose()
    return _called[0]


def _pipelined(connection: Connection, deliveries: Iterable[Delivery[Any]]) -> None:
    driver: Any = connection.connection.driver_connection
    with driver.pipeline():
        for delivery in deliveries:
            if not _called:
                _called.append(Began.now())
            driver.execute("update account set balance = balance + 1 where id = %s", (int(delivery.message.key or 0),))


def _batches(records: Iterator[Record | None]) -> Iterator[list[Delivery[Any]]]:
    while batch := [
        Delivery(record.message, record.partition.number, record.offset, 1, False, _as_it_is)
        for record in islice(records, BATCH)
        if record is not None
    ]:
        yield batch


def _as_it_is(message: Any) -> Any:
    return message.payload
