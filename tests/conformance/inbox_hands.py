"""Hands that take claims directly, each on a connection of its own; and what they wait for."""

import threading
from typing import Any

from databases import rows, wait_until
from inbox_road import TOPIC
from sqlalchemy import Connection, MetaData, create_engine

from inbox.claims import Claim, Dialect, Limits, Taking, dialect_for
from inbox.registration import Registration
from outbox.message import Offset
from outbox.process.urls import parse_url, with_driver
from outbox.tables import inbox_tables
from outbox.tables.names import Place
from relay.logs.contract import Bounds, Partition

GROUP = "billing"
PARTITION = Partition(TOPIC, "11111111-1111-1111-1111-111111111111", 0)
LIMITS = Limits(handler_seconds=20)


class Hand:
    """One consumer's connection, by which claims are taken directly."""

    def __init__(self, url: str) -> None:
        parsed = parse_url(url)
        self.dialect: Dialect = dialect_for(parsed, Place(), GROUP)
        self.engine = create_engine(self.dialect.url(with_driver(parsed)))
        self.dialect.adapt(self.engine)
        self.connection: Connection = self.engine.connect()
        self.dialect.prepare(self.connection, LIMITS)

    def take(self, claim: Claim, end: int, ids: list[tuple[str, Any]]) -> Any:
        return self.dialect.take(self.connection, Taking(PARTITION, claim, Offset(end), sorted(ids), 0, 0))

    def close(self) -> None:
        self.connection.close()
        self.engine.dispose()


def registration() -> Registration:
    return Registration(inbox_tables(MetaData()).inbox_offset, GROUP)


def register(hand: Hand, partitions: int = 1, *, latest: bool = False, first: int = 0, end: int = 0) -> bool:
    held = {PARTITION._replace(number=number): Bounds(Offset(first), Offset(end)) for number in range(partitions)}
    with hand.connection.begin():
        return registration().register(hand.connection, held, latest=latest)


def newest(hand: Hand, number: int = 0) -> Claim:
    with hand.connection.begin():
        return registration().newest(hand.connection, PARTITION._replace(number=number))


def wait_until_waiting(url: str, thread: threading.Thread, lock: str = "%") -> None:
    """On PostgreSQL, wait until somebody waits for a lock; on SQLite there is nothing to see but that it goes on."""
    if url.startswith("sqlite"):
        thread.join(0.2)
        assert thread.is_alive()
        return
    waiting = "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
    wait_until(lambda: rows(url, waiting)[0][0] == 1, "the twin waits for a lock")


def waits_for(url: str) -> int | None:
    found = rows(
        url,
        "select pg_blocking_pids(pid) from pg_stat_activity"
        " where datname = current_database() and wait_event_type = 'Lock'",
    )
    return found[0][0][0] if found and found[0][0] else None
