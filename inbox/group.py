"""The front of the inbox: a consumer group, its handlers, and the ways to run it."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from datetime import timedelta
from typing import Any, Literal, TypeVar, overload
from uuid import UUID

from sqlalchemy import Connection, MetaData
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.orm import Session

from inbox.claims import Limits, dialect_for
from inbox.deduplicate import ById, ByOffset
from inbox.first_time import FirstTime
from inbox.handlers import Handlers, handler_of
from inbox.hands.many import Worker
from inbox.loop import Loop, Manner
from inbox.registration import Registration
from inbox.retention.chores import Chores, Group
from inbox.transactions import EventLoopTransactions, Target, ThreadTransactions, Transactions
from outbox.errors import ConfigurationError
from outbox.process.durations import checked_retention
from outbox.process.urls import parse_url
from outbox.retry import RetryPolicy
from outbox.tables.inbox import inbox_tables
from outbox.tables.names import Place
from relay.logs.contract import Log, LogOptions
from relay.logs.registry import open_log

RETAIN = timedelta(days=8)
"""Longer than the built-in log keeps records, which is 7 days."""

Function = TypeVar("Function", bound=Callable[..., Any])

MOST_CONCURRENCY = 500
"""Each handler that runs at the same time has a connection to the database."""

_running: set[str] = set()
_running_lock = threading.Lock()


class Inbox:
    """One consumer group: its handlers, in the database that their effects go to.

    Args:
        group: the group's name; it stands in the database with what was handled.
        metadata: where to register the set `inbox`, so that Alembic sees it; without it, the tables of `outbox init`.
        schema: where the tables lie; by default the metadata's own schema.
        prefix: put before the tables' names.
        deduplicate: by what a repeat is known. `"id"`: each message's id is remembered, in a row of its own.
            `"offset"`: no ids, and constant space; a message that lies twice in the log is handled twice, so it is for
            logs that are written exactly once.

    Raises:
        ConfigurationError: an empty group, or another way to deduplicate.
    """

    def __init__(
        self,
        group: str,
        *,
        metadata: MetaData | None = None,
        schema: str | None = None,
        prefix: str = "",
        deduplicate: Literal["id", "offset"] = "id",
    ) -> None:
        self._group = _group_name(group)
        if deduplicate not in ("id", "offset"):
            raise ConfigurationError(f"deduplicate={deduplicate!r} is not known: write 'id' (the default) or 'offset'")
        self._by_offset = deduplicate == "offset"
        self._tables = inbox_tables(MetaData() if metadata is None else metadata, schema, prefix)
        self._handlers = Handlers()

    @property
    def group(self) -> str:
        """The consumer group's name."""
        return self._group

    @property
    def place(self) -> Place:
        """Schema and prefix of the tables."""
        return self._tables.place

    def handler(
        self,
        topic: str,
        *,
        type: str | None = None,  # noqa: A002 - the word that the message has for it
        data: Any = None,
        retry: RetryPolicy | None = None,
        timeout_seconds: float = 60,
        batch: bool = True,
    ) -> Callable[[Function], Function]:
        """Register a handler for a topic; a decorator that leaves the function as it is.

        The function asks for what it needs by annotation: `Delivery` or `Delivery[X]`, and a `Session`, `AsyncSession`,
        `Connection` or `AsyncConnection`, which is the transaction that also says that the message is handled, and has
        what `outbox.write` adds. Without annotations: the delivery, then the session.

        Args:
            topic: whose messages.
            type: of which type; without it, of all types that have no handler of their own.
            data: a dataclass or pydantic model that the payload must fit; `Delivery[X]` says the same.
            retry: by default 5 attempts, 0.5 s doubling up to 30 s, with full jitter.
            timeout_seconds: the longest one call may take. An `async def` handler is cancelled; a `def` handler is
                judged when it returns.
            batch: whether several messages may be handled in one transaction.

        Raises:
            ConfigurationError: a second handler for a topic and type, `def` and `async def` in one Inbox, or a
                signature that cannot be called.
        """

        def register(function: Function) -> Function:
            self._handlers.add(
                handler_of(
                    function,
                    topic,
                    type=type,
                    data=data,
                    retry=retry,
                    timeout_seconds=timeout_seconds,
                    batch=batch,
                )
            )
            return function

        return register

    def run(
        self,
        database: str,
        log: str,
        *,
        once: bool = False,
        concurrency: int = 1,
        group: str | None = None,
        start: Literal["earliest", "latest"] = "earliest",
        stop: threading.Event | None = None,
        retain: timedelta = RETAIN,
        wait: float = 10.0,
    ) -> None:
        """Handle messages until told to stop.

        Handlers made by `def` run in threads of their own, one at a time unless `concurrency` says more; `async def`
        handlers on an event loop that is made for them (see `run_async` for one's own).

        Args:
            database: URL of the handlers' database.
            log: URL of the log.
            once: end when each partition is read to the end it had when first seen, or belongs to a live member.
            concurrency: how many messages are handled at a time, each in a transaction and connection of its own; the
                order of a key is kept. For slow handlers, on PostgreSQL; with 1, messages share transactions. Not by
                offset.
            group: another name for the group.
            start: where a group begins that is not registered yet.
            stop: set it to end; what is in hand is finished first.
            retain: for how long the ids of messages are remembered, counted back from the group's newest; by offset
                there are none.
            wait: how many seconds `once` waits for a database or a log that is away.

        Raises:
            ConfigurationError: URL, tables or handlers are not as they must be, or the group runs in this process
                already.
            Permanent: under `once`, a message stopped its partition; or the log has lost records.
            Unreachable: under `once`, the database or the log was away for longer than `wait`.
        """
        if self._handlers.asynchronous:
            asyncio.run(
                self.run_async(
                    database,
                    log,
                    once=once,
                    concurrency=concurrency,
                    group=group,
                    start=start,
                    stop=stop,
                    retain=retain,
                    wait=wait,
                )
            )
            return
        self._refuse_count(concurrency)
        name, target = self._target(database, group, wait)
        manner = _manner(once, start, stop, wait)
        checked_retention(retain, "--retain")
        with _only_once(name), _opened(log, self.place) as opened:
            loop = self._loop(opened, name, target, connect=ThreadTransactions, manner=manner, concurrency=concurrency)
            with self._chores(name, target, opened, retain, manner):
                loop.run()

    async def run_async(
        self,
        database: str,
        log: str,
        *,
        once: bool = False,
        concurrency: int = 1,
        group: str | None = None,
        start: Literal["earliest", "latest"] = "earliest",
        stop: threading.Event | None = None,
        retain: timedelta = RETAIN,
        wait: float = 10.0,
    ) -> None:
        """Handle messages on the running event loop, until told to stop; for `async def` handlers. See `run`.

        When the task is cancelled, what is in hand is finished first.

        Raises:
            ConfigurationError: the handlers are not `async def`; and as `run`.
            Permanent: as `run`.
            Unreachable: as `run`.
        """
        if not self._handlers.asynchronous:
            raise ConfigurationError("run_async is for async def handlers: call run")
        self._refuse_count(concurrency)
        name, target = self._target(database, group, wait)
        manner = _manner(once, start, stop, wait)
        checked_retention(retain, "--retain")
        with _only_once(name), _opened(log, self.place) as opened:
            here = asyncio.get_running_loop()
            loop = self._loop(
                opened,
                name,
                target,
                connect=lambda one: EventLoopTransactions(one, here),
                manner=manner,
                concurrency=concurrency,
            )
            chores = self._chores(name, target, opened, retain, manner)

            def run() -> None:
                with chores:
                    loop.run()

            running = asyncio.ensure_future(asyncio.to_thread(run))
            try:
                await asyncio.shield(running)
            except asyncio.CancelledError:
                manner.stop.set()
                await running
                raise

    @overload
    def first_time(self, session: Session | Connection, message_id: UUID | str, source: str = "") -> bool: ...
    @overload
    def first_time(
        self, session: AsyncSession | AsyncConnection, message_id: UUID | str, source: str = ""
    ) -> Awaitable[bool]: ...
    def first_time(
        self, session: Session | Connection | AsyncSession | AsyncConnection, message_id: UUID | str, source: str = ""
    ) -> bool | Awaitable[bool]:
        """Return whether this group sees a message for the first time; for those who run their own consumer loop.

        Inserts the message's row in the session's transaction: commit it together with the message's effects. A twin
        that asks at the same moment waits until this transaction has ended.

        Args:
            session: the transaction; for an async one the answer is to be awaited.
            message_id: the CloudEvents id.
            source: the CloudEvents source.

        Raises:
            ConfigurationError: this Inbox knows repeats by offset, or that is no session.
        """
        if self._by_offset:
            raise ConfigurationError(
                f"group {self._group!r} remembers no ids (deduplicate='offset'), so it cannot tell whether a message "
                "comes for the first time: ask an Inbox with a group of its own, and without deduplicate="
            )
        return FirstTime(self.place, self._tables.inbox, self._group).ask(session, message_id, source)

    def _target(self, database: str, group: str | None, wait: float) -> tuple[str, Target]:
        name = self._group if group is None else _group_name(group)
        if not self._handlers.topics:
            raise ConfigurationError(f"group {name!r} has no handlers: decorate functions with @inbox.handler(topic)")
        url = parse_url(database)
        limits = Limits(self._handlers.timeout_seconds, wait)
        return name, Target(url, dialect_for(url, self.place, name), limits, self.place)

    def _chores(
        self, name: str, target: Target, log: Log, retain: timedelta, manner: Manner
    ) -> AbstractContextManager[None]:
        if self._by_offset:
            return nullcontext()
        group = Group(name, target.url, self.place, self._handlers.topics, retain)
        return Chores(group, log).beside(manner.stop, once=manner.once)

    def _refuse_count(self, concurrency: int) -> None:
        if not 1 <= concurrency <= MOST_CONCURRENCY:
            raise ConfigurationError(
                f"concurrency {concurrency} cannot be: from 1 to {MOST_CONCURRENCY}, each with a connection of its own"
            )
        if self._by_offset and concurrency > 1:
            raise ConfigurationError(
                f"group {self._group!r} knows by its offsets alone what is handled (deduplicate='offset'), and with "
                "--concurrency messages are handled out of their order, known by their ids: leave --concurrency out, "
                "or deduplicate='offset'"
            )

    def _loop(
        self,
        log: Log,
        name: str,
        target: Target,
        *,
        connect: Callable[[Target], Transactions],
        manner: Manner,
        concurrency: int,
    ) -> Loop:
        workers = []
        if concurrency > 1:
            others = target.dialect.others(concurrency)
            workers = [Worker(connect(replace(target, dialect=other)), other) for other in others]
        return Loop(
            log,
            name,
            self._handlers,
            transactions=connect(target),
            target=target,
            registration=Registration(self._tables.inbox_offset, name),
            deduplicate=(ByOffset if self._by_offset else ById)(self._tables, name, target.dialect),
            manner=manner,
            workers=workers,
        )


def _manner(once: bool, start: str, stop: threading.Event | None, wait: float) -> Manner:  # noqa: FBT001
    if start not in ("earliest", "latest"):
        raise ConfigurationError(f"start={start!r} is not known: write earliest or latest")
    return Manner(once, start == "latest", threading.Event() if stop is None else stop, wait)


def _group_name(group: str) -> str:
    if not group or not group.isprintable():
        raise ConfigurationError(f"{group!r} is no group's name: write one or more printable characters")
    return group


@contextmanager
def _only_once(group: str) -> Iterator[None]:
    """Two members of one process would stand in each other's way, and mostly they are two programs by mistake."""
    with _running_lock:
        if group in _running:
            raise ConfigurationError(
                f"group {group!r} runs in this process already: give each Inbox its own name, or run another process"
            )
        _running.add(group)
    try:
        yield
    finally:
        with _running_lock:
            _running.discard(group)


@contextmanager
def _opened(url: str, place: Place) -> Iterator[Log]:
    log = open_log(url, LogOptions(place.schema, place.prefix))
    try:
        yield log
    finally:
        log.close()
