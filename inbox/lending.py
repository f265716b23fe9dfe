"""What a handler is lent: sessions and a connection that are the transaction, and that it must not end."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from opentelemetry import context as telemetry
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from sqlalchemy import Connection, Engine, NestedTransaction, Transaction, event
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.orm import Session
from sqlalchemy.util import await_only

from inbox.claims import Dialect
from inbox.delivery import Delivery
from inbox.handlers import Asks, Handler
from outbox.cloudevents import CORRELATION_ID, TRACEPARENT
from outbox.context import correlate
from outbox.errors import OutboxError
from outbox.message import Message

_trace = TraceContextTextMapPropagator()


class HandlerTimedOut(OutboxError):
    """A handler took longer than its time-out; what it did is rolled back."""


class TransactionEnded(OutboxError):
    """A handler ended the transaction that it was lent; nothing that it did there is kept."""


class LentSession(Session):
    """A session inside the inbox's transaction. Flush as you like; commit, rollback and close are the inbox's."""

    def commit(self) -> None:
        """Refuse.

        Raises:
            TransactionEnded: always.
        """
        raise TransactionEnded(_refusal("committed its session"))

    def rollback(self) -> None:
        """Refuse.

        Raises:
            TransactionEnded: always.
        """
        raise TransactionEnded(_refusal("rolled back its session"))

    def close(self) -> None:
        """Refuse.

        Raises:
            TransactionEnded: always.
        """
        raise TransactionEnded(_refusal("closed its session"))

    def give_back(self) -> None:
        """Flush, and end the session's own part; the connection's transaction goes on."""
        self.info[_OURS] = True
        super().commit()
        super().close()

    def drop(self) -> None:
        """Let go of everything in it."""
        super().close()


_OURS = "inbox_gives_back"


@event.listens_for(LentSession, "before_commit")
def _refuse_commit(session: Session) -> None:
    # `with session.begin()` ends here without calling `commit`. A savepoint's release is the handler's business.
    if not session.in_nested_transaction() and not session.info.get(_OURS):
        raise TransactionEnded(_refusal("committed its session"))


class Gate:
    """Lets no COMMIT through while a transaction is lent. One for each engine."""

    def __init__(self) -> None:
        self._shut = False

    def watch(self, engine: Engine) -> None:
        """Stand in the way of every commit on this engine's connections."""
        event.listen(engine, "commit", self._refuse)

    @contextmanager
    def shut(self) -> Iterator[None]:
        """Refuse commits inside this block."""
        self._shut = True
        try:
            yield
        finally:
            self._shut = False

    def _refuse(self, _connection: Connection) -> None:
        if self._shut:
            raise TransactionEnded(_refusal("committed its connection"))


class Lent:
    """One transaction, lent to the handlers that run in it: its own, or a savepoint of a test's."""

    def __init__(
        self,
        connection: Connection,
        dialect: Dialect | None,
        asynchronous: AsyncConnection | None,
        savepoint: NestedTransaction | None = None,
    ) -> None:
        self.connection = connection
        self._asynchronous = asynchronous
        self._transaction: Transaction = connection.begin() if savepoint is None else savepoint
        self._current: Callable[[], Transaction | None] = (
            connection.get_transaction if savepoint is None else connection.get_nested_transaction
        )
        self._lasts: Callable[[], bool] = (lambda: True) if dialect is None else dialect.transaction_lasts(connection)
        self._session: LentSession | None = None
        self._lent_session: Session | AsyncSession | None = None

    def call(self, handler: Handler, delivery: Delivery[Any]) -> None:
        """Call the handler, in the message's context and within its time-out.

        Raises:
            HandlerTimedOut: it took too long.
            TransactionEnded: it ended the transaction.
            Exception: whatever the handler raised.
        """
        arguments = [self._argument(ask, delivery) for ask in handler.asks]
        begun = time.monotonic()
        if handler.asynchronous:
            await_only(_timed(handler, arguments, delivery.message))
        else:
            with caused_by(delivery.message):
                handler.function(*arguments)
            if time.monotonic() - begun > handler.timeout_seconds:
                raise HandlerTimedOut(f"the handler took longer than its {handler.timeout_seconds:g} s")
        self._settle_session()
        self._see_that_it_lasts()

    def take_back(self) -> None:
        """End the session's part, and see that the transaction can be committed."""
        if self._session is not None:
            self._session.give_back()
        self._see_that_it_lasts()

    def commit(self) -> None:
        """End the transaction for good."""
        self._transaction.commit()

    def abandon(self) -> None:
        """Roll everything back."""
        try:
            if self._session is not None:
                self._session.drop()
        finally:
            # A failed flush has rolled it back already: rolling back once more would only warn.
            if self._current() is self._transaction:
                self._transaction.rollback()

    def _argument(self, ask: Asks, delivery: Delivery[Any]) -> object:
        if ask is Asks.DELIVERY:
            return delivery
        if ask is Asks.CONNECTION:
            return self._asynchronous or self.connection
        if self._lent_session is None:
            self._lent_session = self._open_session()
        return self._lent_session

    def _open_session(self) -> Session | AsyncSession:
        # One for the whole transaction: a session a message costs as much as a small statement.
        # rollback_only: the session's own commit must not end the transaction; its failed flush must.
        if self._asynchronous is None:
            self._session = LentSession(
                bind=self.connection, join_transaction_mode="rollback_only", expire_on_commit=False
            )
            return self._session
        lent = AsyncSession(
            bind=self._asynchronous,
            sync_session_class=LentSession,
            join_transaction_mode="rollback_only",
            expire_on_commit=False,
        )
        if isinstance(lent.sync_session, LentSession):
            self._session = lent.sync_session
        return lent

    def _settle_session(self) -> None:
        """Send what the handler left in the session, so that an error is its own and not the next handler's."""
        session = self._session
        if session is not None and (session.identity_map or session.new):
            session.flush()
            session.expunge_all()

    def _see_that_it_lasts(self) -> None:
        lent = self._transaction
        if not lent.is_active or self._current() is not lent or not self._lasts():
            raise TransactionEnded(_refusal("ended its transaction, or caught an error of the database that did,"))


async def _timed(handler: Handler, arguments: list[object], message: Message) -> None:
    # The context is set inside the coroutine: outside of it runs another greenlet, with a context of its own.
    with caused_by(message):
        call: Callable[..., Coroutine[Any, Any, None]] = handler.function
        limit = asyncio.timeout(handler.timeout_seconds)
        try:
            async with limit:
                await call(*arguments)
        except TimeoutError as error:
            if limit.expired():
                raise HandlerTimedOut(f"the handler took longer than its {handler.timeout_seconds:g} s") from error
            raise


def caused_by(message: Message) -> AbstractContextManager[object]:
    """Let what is written inside carry on the message's trace and correlation id, and name it as its cause."""
    own = str(message.id)
    correlation = correlate(correlation_id=message.headers.get(CORRELATION_ID) or own, causation_id=own)
    return _traced(message, correlation) if TRACEPARENT in message.headers else correlation


@contextmanager
def _traced(message: Message, correlation: AbstractContextManager[object]) -> Iterator[None]:
    token = telemetry.attach(_trace.extract(message.headers))
    try:
        with correlation:
            yield
    finally:
        telemetry.detach(token)


def _refusal(what: str) -> str:
    return (
        f"the handler {what}: the transaction is the inbox's, which commits it when the handler returns and rolls it "
        "back when it raises; to try something that may fail, use begin_nested()"
    )
