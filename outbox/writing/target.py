"""Which transaction a message is written to, and whether it can still take one. Nothing here waits or sends."""

from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, Engine, Table
from sqlalchemy.exc import InvalidRequestError, UnboundExecutionError
from sqlalchemy.orm import Session, SessionTransaction

from outbox.errors import ConfigurationError, WriteError
from outbox.message import Message
from outbox.writing import pending
from outbox.writing.autocommit import refuse_autocommit, refuse_autocommit_option
from outbox.writing.pending import Bind, Pending, SessionState, Written
from outbox.writing.statement import OutboxInsert
from outbox.writing.unpublished import (
    begins_without_waiting,
    connection_of,
    is_ending,
    is_left_behind,
    refuse_ended_block,
    savepoints,
    scopes,
    without_savepoint,
)

DIALECTS = ("postgresql", "sqlite")


def unwrapped(session: Any) -> Session | Connection:
    """Return the Session or Connection that a scoped or async one wraps.

    Raises:
        WriteError: it is none of them, or an AsyncConnection that was not started.
    """
    # Told apart by what they have: the async ones need not be importable here.
    if not isinstance(session, (Session, Connection)) and hasattr(session, "registry") and callable(session):
        session = session()
    if hasattr(session, "sync_session"):
        session = session.sync_session
    elif hasattr(session, "sync_connection"):
        if session.sync_connection is None:
            raise WriteError("this AsyncConnection was not started: write inside `async with engine.connect()`")
        session = session.sync_connection
    if not isinstance(session, (Session, Connection)):
        raise WriteError(
            "write takes a Session, scoped_session, AsyncSession, Connection or AsyncConnection, "
            f"not {type(session).__name__}"
        )
    return session


def bind_as_given(bind: Any) -> Bind | None:
    """Return the Engine or Connection of `Outbox(bind=...)`, unwrapped where it is an async one."""
    for wrapped in ("sync_engine", "sync_connection"):
        bind = getattr(bind, wrapped, bind)
    if bind is not None and not isinstance(bind, (Engine, Connection)):
        raise ConfigurationError(f"bind takes an Engine or a Connection, sync or async, not {type(bind).__name__}")
    return bind


def remember(target: Session | Connection, message: Message, insert: OutboxInsert, bind: Bind | None) -> None:
    """Let `message` be inserted before the COMMIT of the target's transaction, which is begun if there is none.

    Raises:
        WriteError: that transaction cannot take a message.
    """
    try:
        refuse_ended_block(target)
        if isinstance(target, Session):
            _remember_in_session(target, message, insert, bind)
        else:
            _remember_in_connection(target, message, insert)
    except InvalidRequestError as error:
        raise WriteError(f"no message can be written here: {error}") from error


def _remember_in_connection(connection: Connection, message: Message, insert: OutboxInsert) -> None:
    refuse_dialect(connection)
    if connection.closed:
        raise WriteError("this connection is closed: nothing can be written to it any more")
    if connection.get_transaction() is None:
        refuse_autocommit_option(connection)
        if not begins_without_waiting(connection):
            raise WriteError(
                "this AsyncConnection has no transaction, and beginning one takes an await (it listens for `begin`): "
                "begin first, as in `async with connection.begin()`"
            )
        connection.begin()
    pending_list = pending_of(connection)
    written = Written(next(pending.numbers), message, insert, savepoints=savepoints(connection))
    pending_list.add(written)


def _remember_in_session(session: Session, message: Message, insert: OutboxInsert, bind: Bind | None) -> None:
    if not session.is_active and session.get_transaction() is not None:
        raise WriteError(
            "the session's transaction can take no more messages: it has failed, is prepared, or is being committed"
        )
    bind = _bind_of(session, insert.table, bind)
    refuse_dialect(bind)
    refuse_autocommit_option(bind, session)
    root = session.get_transaction() or _begun(session)
    state = pending.sessions.get(root)
    if state is None:
        state = pending.sessions[root] = SessionState()
    connection = _connection(session, root, bind)
    written = Written(next(pending.numbers), message, insert, scopes=scopes(session))
    if connection is None:
        state.waiting.append((bind, written))
    else:
        share(state, connection, [written])


def _begun(session: Session) -> SessionTransaction:
    if not session.autobegin:
        raise WriteError("autobegin is off and this session has no transaction: call session.begin() first")
    return session.begin()


def _bind_of(session: Session, table: Table, bind: Bind | None) -> Bind:
    try:
        own = session.get_bind(clause=table)
    except UnboundExecutionError as error:
        if bind is None:
            raise WriteError(
                f"this session has no bind for the table {table.fullname!r}: "
                f"name its engine with Outbox(bind=engine), or in the session's binds"
            ) from error
        return bind
    # A session that joined a Connection must not open a second one to the same engine.
    if bind is None or (isinstance(own, Connection) and own.engine is bind):
        return own
    return bind


def _connection(session: Session, root: SessionTransaction, bind: Bind) -> Connection | None:
    connection = connection_of(root, bind)
    if connection is not None:
        if is_left_behind(session, connection):
            raise WriteError(
                "the connection's transaction or savepoint that this session works in was ended behind its back: "
                "end the session's own transaction first"
            )
        return connection
    if isinstance(bind, Connection) and _can_join_now(bind):
        # Joined as `execute` would, or the session's commit and rollback would pass by what they are to end.
        # Where that takes a SAVEPOINT nothing is sent: what is written belongs to the session's scope all the same.
        return bind if _joins_by_savepoint(session, bind) else root.connection(None, bind=bind)
    if is_ending(root):
        # In a listener after ours, or in the flush of a commit, nothing is certain to come that could connect.
        return session.connection(bind_arguments={"bind": bind})
    return None


def _can_join_now(connection: Connection) -> bool:
    return connection.get_transaction() is not None or not connection.dialect.is_async


def _joins_by_savepoint(session: Session, connection: Connection) -> bool:
    mode = session.join_transaction_mode
    nested = connection.in_nested_transaction()
    return connection.in_transaction() and (mode == "create_savepoint" or (mode == "conditional_savepoint" and nested))


def share(state: SessionState, connection: Connection, messages: list[Written]) -> None:
    """Put a session's messages into the list of the connection that it works on.

    Raises:
        WriteError: the connection's transaction can take no message, or is none.
    """
    if not messages:
        return
    shared = pending_of(connection)
    state.shares(shared)
    around = savepoints(connection)
    for written in messages:
        # Where the session's scope is a transaction or savepoint of the connection, that one's end decides: a session
        # that only joined may be closed, and leaves its work there, and its messages with it.
        unsent = without_savepoint(written.scopes, connection)
        shared.add(replace(written, scopes=unsent, savepoints=around))


def pending_of(connection: Connection) -> Pending:
    """Return the list of the connection's transaction.

    Raises:
        WriteError: the transaction is over, failed, prepared or being committed, or the connection is in AUTOCOMMIT.
    """
    transaction = connection.get_transaction()
    if transaction is None or not transaction.is_active:
        raise WriteError("the connection's transaction is over or has failed: roll back, then write in a new one")
    refuse_autocommit(connection)
    found = pending.connections.get(transaction)
    if found is None:
        found = pending.connections[transaction] = Pending()
    if found.is_closed:
        raise WriteError("the connection's transaction can take no more messages: it is prepared or being committed")
    return found


def refuse_dialect(bind: Bind) -> None:
    """Raise unless the database is one of ours.

    Raises:
        WriteError: it is another.
    """
    if bind.dialect.name not in DIALECTS:
        raise WriteError(f"the outbox works on PostgreSQL and SQLite, not on {bind.dialect.name}")
