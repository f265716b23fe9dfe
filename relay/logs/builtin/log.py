"""The built-in log, whatever dialect keeps it."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import timedelta

from outbox.check import refuse_differences
from outbox.errors import ConfigurationError
from outbox.message import Offset
from outbox.process.database import connected
from outbox.process.pace import Pace
from outbox.process.urls import dialect_of, shown
from relay.logs.builtin import retention
from relay.logs.builtin.address import Address, parse_address
from relay.logs.builtin.consumer import BuiltinConsumer
from relay.logs.builtin.forgetting import forget_group
from relay.logs.builtin.group.membership import Membership
from relay.logs.builtin.group.store import GroupStore, Pulse
from relay.logs.builtin.producer import Appender, BuiltinProducer
from relay.logs.builtin.store import Store, Topic
from relay.logs.contract import (
    Bounds,
    Capabilities,
    Consumer,
    Listener,
    LogOptions,
    NumberedProducer,
    Partition,
    ProducerIdentity,
    Record,
)
from relay.logs.retention import Unread

TAIL_RECORDS = 500
TAIL_BYTES = 4_000_000
TAIL_WAIT_SECONDS = 0.05


def open_builtin(url: str, options: LogOptions) -> "BuiltinLog":
    """Open the built-in log of a database URL; see `Log`.

    Raises:
        ConfigurationError: a setting in the URL cannot be read.
    """
    return BuiltinLog(parse_address(url, options))


class BuiltinLog:
    """A log in the tables `log_*` of one database.

    Attributes:
        capabilities: what it promises.
        pulse: how often members of groups are heard of, and when they count as gone.
    """

    capabilities = Capabilities(exactly_once=True, fences=True, local=True)
    pulse = Pulse()

    def __init__(self, address: Address) -> None:
        self.address = address
        self._checked = False

    def store(self, name: str) -> Store:
        """Open a connection to the log's tables; `name` is what the database shows of it."""
        if dialect_of(self.address.url) == "postgresql":
            from relay.logs.builtin.postgresql import PostgresqlStore  # noqa: PLC0415 - needs the extra

            return PostgresqlStore(self.address, name=name)
        from relay.logs.builtin.sqlite import SqliteStore  # noqa: PLC0415 - one dialect is enough for one process

        return SqliteStore(self.address)

    def group_store(self, group: str) -> GroupStore:
        """Open a connection to a group's tables."""
        if dialect_of(self.address.url) == "postgresql":
            from relay.logs.builtin.group.postgresql import PostgresqlGroup  # noqa: PLC0415 - needs the extra

            return PostgresqlGroup(self.address, group, self.pulse)
        from relay.logs.builtin.group.sqlite import SqliteGroup  # noqa: PLC0415 - one dialect is enough for one process

        return SqliteGroup(self.address, group, self.pulse)

    @contextmanager
    def _opened(self, name: str) -> Iterator[Store]:
        store = self.store(name)
        try:
            yield store
        finally:
            store.close()

    def check(self) -> None:
        """See that the log answers; the first time, that its tables are ours and its server is fit for them."""
        if not self._checked:
            self._refuse_unfit()
            self._checked = True
        with self._opened("log check") as store:
            store.topics([])

    def _refuse_unfit(self) -> None:
        url = self.address.url
        with connected(url, name="log check") as connection:
            try:
                refuse_differences(connection, self.address.place, ["log"])
            except ConfigurationError as error:
                # `outbox init` alone would make all three sets.
                words = str(error).replace("`outbox init`", f"`outbox init --log '{self.address.shown()}'`")
                raise ConfigurationError(f"the log at {shown(url)}: {words}") from None
        if dialect_of(url) == "postgresql":
            from outbox.process.postgresql import refuse_pooler  # noqa: PLC0415 - needs the extra

            refuse_pooler(url)

    def identity(self) -> str:
        """Return the log's uuid."""
        with self._opened("log identity") as store:
            return store.identity()

    def producer(self, identity: ProducerIdentity) -> NumberedProducer:
        """Open a relay's hand, for an outbox in another database; in its own a relay appends without one."""
        return BuiltinProducer(self._appender(identity), identity)

    def _appender(self, identity: ProducerIdentity) -> Appender:
        if dialect_of(self.address.url) == "postgresql":
            from relay.logs.builtin.producer_postgresql import PostgresqlAppender  # noqa: PLC0415 - needs the extra

            return PostgresqlAppender(self.address, identity)
        from relay.logs.builtin.producer_sqlite import SqliteAppender  # noqa: PLC0415 - as in `store`

        return SqliteAppender(self.address, identity)

    def consumer(self, group: str, topics: Sequence[str], listener: Listener) -> Consumer:
        """Open a group member's hand."""
        return BuiltinConsumer(
            lambda: self.store(f"inbox-log {group}"),
            lambda stated: Membership(lambda: self.group_store(group), stated, self.pulse),
            group,
            topics,
            listener,
        )

    def committed(self, group: str) -> Mapping[Partition, Offset]:
        """Return the offsets that the group has reported."""
        with closing(self.group_store(group)) as store:
            return store.committed()

    def forget(self, group: str) -> bool:
        """Let go of a group; see `Log.forget`.

        Raises:
            Permanent: a member of it is alive.
        """
        return forget_group(self.address, group)

    def partitions(self, topics: Sequence[str]) -> Mapping[Partition, Bounds]:
        """Return the partitions of those of the topics that exist, and what each holds."""
        with self._opened("log partitions") as store:
            return store.bounds(_by_partition(store.topics(topics)))

    def tail(self, topic: str, *, from_start: bool, follow: bool) -> Iterator[Record | None]:
        """Yield a topic's records; see `Log.tail`."""
        # The bounds are those of the call, so they are taken here: a generator would take them when it is first asked.
        with self._opened(f"log tail {topic}") as store:
            known = _by_partition(store.topics([topic]))
            bounds = store.bounds(known)
        reached = {part: held.first if from_start else held.end for part, held in bounds.items()}
        if follow:
            return self._follow(topic, known, reached)
        return self._held(topic, known, reached, {part: held.end for part, held in bounds.items()})

    def _held(
        self,
        topic: str,
        known: dict[Partition, Topic],
        reached: dict[Partition, Offset],
        ends: Mapping[Partition, Offset],
    ) -> Iterator[Record | None]:
        with self._opened(f"log tail {topic}") as store:
            while known := {part: found for part, found in known.items() if reached[part] < ends[part]}:
                before = dict(reached)
                for record in _next_records(store, known, reached):
                    if record.offset < ends[record.partition]:
                        yield record
                if reached == before:
                    return

    def _follow(
        self, topic: str, known: dict[Partition, Topic], reached: dict[Partition, Offset]
    ) -> Iterator[Record | None]:
        with self._opened(f"log tail {topic}") as store:
            while True:
                if not known:
                    # A topic that appears while we follow it is read from its first record.
                    known = _by_partition(store.topics([topic]))
                    reached.update((part, held.first) for part, held in store.bounds(known).items())
                anything = False
                for record in _next_records(store, known, reached):
                    anything = True
                    yield record
                if not anything:
                    yield None
                    time.sleep(TAIL_WAIT_SECONDS)

    def enrol(self, group: str, topics: Sequence[str]) -> Sequence[str]:
        """Make a group known to retention; see `RetainingLog.enrol`."""
        with self._retention() as tables:
            return tables.enrol(group, topics)

    def prune(self, pace: Pace) -> int:
        """Delete old records that every group has read; see `RetainingLog.prune`."""
        with self._retention() as tables:
            return retention.prune(tables, pace)

    def unread(self) -> Sequence[Unread]:
        """Return what is kept although it is old; see `RetainingLog.unread`."""
        with self._retention() as tables:
            return retention.unread(tables.standing())

    def retentions(self, topics: Sequence[str]) -> Mapping[str, timedelta | None]:
        """Return for how long topics keep records; see `RetainingLog.retentions`."""
        with self._retention() as tables:
            found = tables.retentions(topics)
        return {name: None if seconds is None else timedelta(seconds=seconds) for name, seconds in found.items()}

    @contextmanager
    def _retention(self) -> Iterator[retention.Retention]:
        tables = self._open_retention()
        try:
            yield tables
        finally:
            tables.close()

    def _open_retention(self) -> retention.Retention:
        if dialect_of(self.address.url) == "postgresql":
            from relay.logs.builtin.retention_postgresql import PostgresqlRetention  # noqa: PLC0415 - needs the extra

            return PostgresqlRetention(self.address)
        from relay.logs.builtin.retention_sqlite import SqliteRetention  # noqa: PLC0415 - as above

        return SqliteRetention(self.address)

    def close(self) -> None:
        """Nothing is held between calls."""


def _next_records(store: Store, known: dict[Partition, Topic], reached: dict[Partition, Offset]) -> Iterator[Record]:
    """Yield the next records of each partition, and move `reached` behind them."""
    if not known:
        return
    wanted = [(part, topic, reached[part]) for part, topic in known.items()]
    for part, records in store.read(wanted, most_records=TAIL_RECORDS, most_bytes=TAIL_BYTES).items():
        reached[part] = Offset(records[-1].offset + 1)
        yield from records


def _by_partition(topics: Mapping[str, Topic]) -> dict[Partition, Topic]:
    return {part: topic for topic in topics.values() for part in topic.parts()}
