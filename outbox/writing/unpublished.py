"""What SQLAlchemy 2.0 and 2.1 know and do not tell in public; all of it in one place, and tried on both."""

from weakref import ref

from sqlalchemy import Connection, Engine
from sqlalchemy.engine.util import TransactionalContext
from sqlalchemy.orm import Session, SessionTransaction
from sqlalchemy.util.concurrency import in_greenlet

from outbox.writing.pending import Bind, Scope


def refuse_ended_block(subject: Session | Connection) -> None:
    """Raise what `execute` raises inside a `with` block whose transaction or savepoint has already ended."""
    TransactionalContext._trans_ctx_check(subject)  # noqa: SLF001


def savepoints(connection: Connection) -> tuple[str, ...]:
    """Return the names of the savepoints that are open, the innermost first.

    The events name a savepoint when it is rolled back, but not when it begins.
    """
    names = []
    nested = connection.get_nested_transaction()
    while nested is not None:
        names.append(nested._savepoint)  # noqa: SLF001
        nested = nested._previous_nested  # noqa: SLF001
    return tuple(names)


def scopes(session: Session) -> tuple[Scope, ...]:
    """Return the session's open savepoints, the innermost first, and its root transaction."""
    found = []
    transaction = session.get_nested_transaction() or session.get_transaction()
    while transaction is not None:
        if transaction.nested or transaction.parent is None:
            found.append(ref(transaction))
        transaction = transaction.parent
    return tuple(found)


def connection_of(transaction: SessionTransaction, bind: Bind) -> Connection | None:
    """Return the connection that a session's root transaction has for `bind`, if it has one already."""
    # SessionTransaction.connections is public from 2.1.7 on.
    for connection, *_ in transaction._connections.values():  # noqa: SLF001
        if connection is bind or connection.engine is bind:
            return connection
    return None


def without_savepoint(around: tuple[Scope, ...], connection: Connection) -> tuple[Scope, ...]:
    """Return those of a session's scopes that have no transaction or savepoint of `connection` to end."""
    return tuple(
        scope
        for scope in around
        if (transaction := scope()) is not None and connection not in transaction._connections  # noqa: SLF001
    )


def is_ending(transaction: SessionTransaction) -> bool:
    """Return whether a session's root transaction is in the middle of its `prepare` or `commit`."""
    return transaction._current_fn is not None  # noqa: SLF001


def is_left_behind(session: Session, connection: Connection) -> bool:
    """Return whether the connection's transaction or savepoint that the session would end has ended without it."""
    transaction = session.get_nested_transaction() or session.get_transaction()
    while transaction is not None:
        joined = transaction._connections.get(connection)  # noqa: SLF001
        if joined is not None and not joined[1].is_active:
            return True
        transaction = transaction.parent
    return False


def is_unable_to_wait(bind: Bind) -> bool:
    """Return whether SQL on this bind takes an await, and none is possible here."""
    return bind.dialect.is_async and not in_greenlet()


def begins_without_waiting(connection: Connection) -> bool:
    """Return whether `connection.begin()` can be called here.

    A listener for `begin` that has to wait, outside of a greenlet, would leave an AsyncConnection that believes itself
    to be in the middle of beginning for ever, and runs statements without a transaction.
    """
    return not (is_unable_to_wait(connection) and connection.dispatch.begin)


def level_on_connect(engine: Engine) -> object:
    """Return what `create_engine(isolation_level=...)` was given."""
    return engine.dialect._on_connect_isolation_level  # noqa: SLF001
