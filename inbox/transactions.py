"""Where work is done: one connection to the handler's database, in a thread of its own or on an event loop.

The work itself is synchronous and written once. For `async def` handlers it runs on an `AsyncConnection` through
SQLAlchemy's greenlets, and awaits the handlers from in there.
"""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, TypeVar

from sqlalchemy import URL, Connection, NullPool, create_engine
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from inbox.claims import Dialect, Limits
from inbox.lending import Gate, Lent
from outbox.process.urls import with_driver
from outbox.tables.names import Place

T = TypeVar("T")
Work = Callable[[Lent], T]

_logger = logging.getLogger("inbox")


class CommitFailed(Exception):
    """The COMMIT was refused, or its outcome is unknown; the cause says which."""


class Transactions(Protocol):
    """Runs one piece of work after the other, each in a transaction."""

    def submit(self, work: Work[T]) -> Future[T]:
        """Begin a transaction, do the work in it, commit; connect first when there is no connection.

        The future raises what the work raised (all is rolled back then), `Unreachable` when there is no connection to
        be had, `ConfigurationError` when the server will not do, and `CommitFailed`.
        """
        ...

    def close(self) -> None:
        """Let go of the connection; nothing may be in hand."""
        ...


@dataclass(frozen=True, slots=True)
class Target:
    """The handler's database, and how we want to be connected to it."""

    url: URL
    dialect: Dialect
    limits: Limits
    place: Place

    def driver_url(self, *, asynchronous: bool) -> URL:
        """Return the URL for SQLAlchemy."""
        return self.dialect.url(with_driver(self.url, asynchronous=asynchronous))


class ThreadTransactions:
    """For `def` handlers: a thread of its own, so that a slow handler does not keep its group from the log."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._gate = Gate()
        self._connection: Connection | None = None
        self._engine = create_engine(
            target.driver_url(asynchronous=False),
            poolclass=NullPool,
            hide_parameters=True,  # what a handler binds is its users' data, and errors are said in the log
            connect_args=dict(target.dialect.connect_arguments(target.limits)),
        )
        target.dialect.adapt(self._engine)
        self._gate.watch(self._engine)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="inbox-handlers")

    def submit(self, work: Work[T]) -> Future[T]:
        """Do the work in the thread."""
        return self._thread.submit(self._run, work)

    def close(self) -> None:
        """Close the connection in its thread, and end the thread."""
        self._thread.submit(self._disconnect).result()
        self._thread.shutdown()

    def _run(self, work: Work[T]) -> T:
        if self._connection is None:
            with self._target.dialect.translated(self._target.url):
                connection = self._engine.connect()
            try:
                self._target.dialect.prepare(connection, self._target.limits)
            except BaseException:
                connection.invalidate()
                connection.close()
                raise
            self._connection = connection
        try:
            return transact(self._connection, None, work, self._target.dialect, self._gate)
        finally:
            if _is_spoilt(self._connection, self._target.dialect):
                self._disconnect()

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            _invalidate(connection)
            connection.close()


class EventLoopTransactions:
    """For `async def` handlers: the event loop of whoever called `run_async`."""

    def __init__(self, target: Target, loop: asyncio.AbstractEventLoop) -> None:
        self._target = target
        self._loop = loop
        self._gate = Gate()
        self._turn = asyncio.Lock()
        self._connection: AsyncConnection | None = None
        self._engine = create_async_engine(
            target.driver_url(asynchronous=True),
            poolclass=NullPool,
            hide_parameters=True,  # what a handler binds is its users' data, and errors are said in the log
            connect_args=dict(target.dialect.connect_arguments(target.limits)),
        )
        target.dialect.adapt(self._engine.sync_engine)
        self._gate.watch(self._engine.sync_engine)

    def submit(self, work: Work[T]) -> Future[T]:
        """Do the work on the event loop; called from another thread."""
        return asyncio.run_coroutine_threadsafe(self._run(work), self._loop)

    def close(self) -> None:
        """Close the connection on its event loop."""
        asyncio.run_coroutine_threadsafe(self._disconnect(), self._loop).result()

    async def _run(self, work: Work[T]) -> T:
        # One after the other, as in a thread: while one waits for the server, the event loop would begin the next.
        async with self._turn:
            return await self._transact(work)

    async def _transact(self, work: Work[T]) -> T:
        dialect, limits = self._target.dialect, self._target.limits
        if self._connection is None:
            with dialect.translated(self._target.url):
                connection = await self._engine.connect()
            try:
                await connection.run_sync(dialect.prepare, limits)
            except BaseException:
                await connection.invalidate()
                await connection.close()
                raise
            self._connection = connection
        lent = self._connection
        try:
            return await lent.run_sync(transact, lent, work, dialect, self._gate)
        finally:
            if await lent.run_sync(_is_spoilt, dialect):
                await self._disconnect()

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.run_sync(_invalidate)
            await connection.close()


def transact(
    connection: Connection, asynchronous: AsyncConnection | None, work: Work[T], dialect: Dialect, gate: Gate
) -> T:
    """Do the work in one transaction; whatever goes wrong, nothing of it stays."""
    with dialect.translated():
        lent = Lent(connection, dialect, asynchronous)
    try:
        with gate.shut():
            result = work(lent)
        try:
            lent.take_back()
            lent.commit()
        except Exception as error:
            raise CommitFailed from error
    except BaseException:
        _abandon(lent)
        raise
    return result


def _abandon(lent: Lent) -> None:
    try:
        lent.abandon()
    except Exception as error:  # noqa: BLE001 - the reason for abandoning is what counts; the connection is dropped
        _logger.debug("rolling back failed: %s", error)
        _invalidate(lent.connection)


def _is_spoilt(connection: Connection, dialect: Dialect) -> bool:
    """Return whether a connection is not as it was before the transaction, so that a new one has to be made.

    A COMMIT that SQLAlchemy's hooks refused leaves the server's transaction open, without a word.
    """
    return (
        connection.closed
        or connection.invalidated
        or connection.in_transaction()
        or dialect.transaction_lasts(connection)()
    )


def _invalidate(connection: Connection) -> None:
    if not connection.closed and not connection.invalidated:
        connection.invalidate()
