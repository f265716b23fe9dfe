"""What `inbox status` says: per group what was handled, and how far behind it is. No inbox needs to be running."""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from sqlalchemy import Connection, MetaData, NullPool, Table, create_engine, func, select

from inbox.claims import Limits, dialect_for
from inbox.registration import REGISTRATION
from outbox.errors import Unreachable
from outbox.message import Offset
from outbox.process.urls import parse_url, with_driver
from outbox.tables.inbox import inbox_tables
from relay.logs.contract import Bounds, LogOptions, Partition
from relay.logs.registry import open_log

T = TypeVar("T")

RETRY_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class GroupStatus:
    """Where one consumer group stands.

    Attributes:
        group: its name.
        lag_messages: by topic and partition, how many records it has not handled; None without a log to compare with.
        handled: how many messages were handed to a handler that succeeded.
        duplicates: how many records repeated a message and were passed by.
        ignored: how many records had no handler for their type.
        dead_letters: how many messages are parked.
    """

    group: str
    lag_messages: Mapping[str, Mapping[int, int]] | None
    handled: int
    duplicates: int
    ignored: int
    dead_letters: int = 0


@dataclass(frozen=True, slots=True)
class _Standing:
    """A group's newest claims, and the counts in them."""

    ends: dict[Partition, Offset]
    topics: set[str]
    handled: int = 0
    duplicates: int = 0
    ignored: int = 0


def status(
    database: str, *, log: str | None = None, schema: str | None = None, prefix: str = "", wait: float = 10.0
) -> list[GroupStatus]:
    """Return where each registered group stands, by name.

    Args:
        database: URL of the handlers' database.
        log: URL of the log, for the lag.
        schema: where the tables lie.
        prefix: put before their names.
        wait: how many seconds to wait for a database or log that is away.

    Raises:
        Unreachable: it is away for longer.
        ConfigurationError: a URL or the tables are not as they must be.
    """
    tables = inbox_tables(MetaData(), schema, prefix)
    url = parse_url(database)
    dialect = dialect_for(url, tables.place, "status")
    engine = create_engine(
        dialect.url(with_driver(url)),
        poolclass=NullPool,
        connect_args=dict(dialect.connect_arguments(Limits(wait, wait))),
    )

    def read() -> dict[str, _Standing]:
        with dialect.translated(url), engine.connect() as connection:
            return _standings(connection, tables.inbox_offset)

    standings = _within(wait, read)
    held = _held(log, {topic for one in standings.values() for topic in one.topics}, LogOptions(schema, prefix), wait)
    return [_status(group, standing, held) for group, standing in sorted(standings.items())]


def _standings(connection: Connection, offsets: Table) -> dict[str, _Standing]:
    keys = (offsets.c.consumer_group, offsets.c.topic, offsets.c.incarnation)
    registered = connection.execute(
        select(*keys, func.max(offsets.c.step)).where(offsets.c.partition == REGISTRATION).group_by(*keys)
    ).all()
    found = {group: _Standing({}, set()) for group, *_ in registered}
    for group, topic, incarnation, partitions in registered:
        if incarnation:
            numbers = (Partition(topic, incarnation, number) for number in range(partitions))
            found[group] = _with_topic(found[group], topic, _newest(connection, offsets, group, numbers))
    return found


def _newest(
    connection: Connection, offsets: Table, group: str, partitions: Iterable[Partition]
) -> dict[Partition, tuple[Offset, int, int, int]]:
    """Return end, handled, duplicates and ignored of the newest claims: by the end of the index, one by one."""
    columns = (offsets.c.end_offset, offsets.c.handled, offsets.c.duplicates, offsets.c.ignored)
    found = {}
    for partition in partitions:
        row = connection.execute(
            select(*columns)
            .where(
                offsets.c.consumer_group == group,
                offsets.c.incarnation == partition.incarnation,
                offsets.c.partition == partition.number,
            )
            .order_by(offsets.c.step.desc())
            .limit(1)
        ).one_or_none()
        if row is not None:
            found[partition] = (Offset(row[0]), row[1], row[2], row[3])
    return found


def _with_topic(standing: _Standing, topic: str, newest: Mapping[Partition, tuple[Offset, int, int, int]]) -> _Standing:
    return _Standing(
        standing.ends | {partition: claim[0] for partition, claim in newest.items()},
        standing.topics | {topic},
        standing.handled + sum(claim[1] for claim in newest.values()),
        standing.duplicates + sum(claim[2] for claim in newest.values()),
        standing.ignored + sum(claim[3] for claim in newest.values()),
    )


def _held(log: str | None, topics: set[str], options: LogOptions, wait: float) -> Mapping[Partition, Bounds] | None:
    if log is None:
        return None
    opened = open_log(log, options)
    try:
        _within(wait, opened.check)
        return _within(wait, lambda: opened.partitions(sorted(topics)))
    finally:
        opened.close()


def _status(group: str, standing: _Standing, held: Mapping[Partition, Bounds] | None) -> GroupStatus:
    lag: dict[str, dict[int, int]] | None = None
    if held is not None:
        lag = {}
        for partition, bounds in sorted(held.items()):
            if partition.topic in standing.topics:
                begin = standing.ends.get(partition, bounds.first)
                lag.setdefault(partition.topic, {})[partition.number] = max(0, bounds.end - begin)
    return GroupStatus(group, lag, standing.handled, standing.duplicates, standing.ignored)


def _within(seconds: float, attempt: Callable[[], T]) -> T:
    deadline = time.monotonic() + seconds
    while True:
        try:
            return attempt()
        except Unreachable:
            if time.monotonic() >= deadline:
                raise
            time.sleep(RETRY_SECONDS)
