"""What SQLAlchemy tells us, for every Engine and Session of the process, and what we do about it.

Listening on the classes costs an engine that writes nothing a few microseconds a transaction; listening on instances
costs 17 to 53. Running SQL inside these events works, under asyncio too.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from typing import Any

from sqlalchemy import Connection, Engine, event
from sqlalchemy.orm import Session, SessionTransaction

from outbox.errors import WriteError
from outbox.message import Message
from outbox.writing import pending
from outbox.writing.pending import Pending, SessionState, Written
from outbox.writing.statement import OutboxInsert
from outbox.writing.target import share
from outbox.writing.unpublished import scopes

_NOTHING = Pending(is_closed=True)


@cache
def listen() -> None:
    """Register the listeners, once in the life of the process."""
    of_engine = (commit, prepare_twophase, commit_twophase, rollback_savepoint)
    of_session = (after_begin, before_commit, after_commit, after_rollback, after_transaction_end)
    for target, listeners in ((Engine, of_engine), (Session, of_session)):
        for listener in listeners:
            event.listen(target, listener.__name__, listener)


def commit(connection: Connection) -> None:
    """Insert before COMMIT."""

    def roll_back() -> None:
        connection.dialect.do_rollback(connection.connection)

    _insert_all(connection, roll_back)


def prepare_twophase(connection: Connection, _xid: Any) -> None:
    """Insert before PREPARE TRANSACTION. If that fails SQLAlchemy, for once, rolls back itself."""
    _insert_all(connection, None)


def commit_twophase(connection: Connection, xid: Any, is_prepared: bool) -> None:  # noqa: FBT001 - SQLAlchemy's signature
    """Insert before the COMMIT of a two-phase transaction that nobody prepared."""

    def roll_back() -> None:
        connection.dialect.do_rollback_twophase(connection, xid, is_prepared=False)

    if not is_prepared:
        _insert_all(connection, roll_back)


def _insert_all(connection: Connection, roll_back: Callable[[], None] | None) -> None:
    transaction = connection.get_transaction()
    if transaction is None:
        return
    found = pending.connections.get(transaction)
    if found is None:
        # A listener after ours must not believe that it can still write.
        pending.connections[transaction] = _NOTHING
        return
    taken = found.take()
    try:
        for insert, messages in _by_table(taken):
            insert.execute(connection, messages)
    except BaseException as error:
        error.add_note(
            f"{len(taken)} message(s), the first of topic {taken[0].message.topic!r}, could not be inserted before "
            "COMMIT, so the transaction is rolled back; if a table is missing or different, see `outbox check`"
        )
        if roll_back is not None:
            _abandon(connection, roll_back, error)
        raise


def _abandon(connection: Connection, roll_back: Callable[[], None], error: BaseException) -> None:
    # After an error in a commit event SQLAlchemy takes the transaction for ended and skips the ROLLBACK: the pool would
    # hand it on, open, and its next user would commit what has failed here.
    if connection.invalidated or connection.closed:
        return
    try:
        roll_back()
    except BaseException:  # noqa: BLE001 - what counts is that nobody gets this connection again
        with suppress(Exception):
            connection.invalidate(error)


def _by_table(taken: Sequence[Written]) -> list[tuple[OutboxInsert, list[Message]]]:
    groups: dict[object, tuple[OutboxInsert, list[Message]]] = {}
    for written in taken:
        groups.setdefault(written.insert.group, (written.insert, []))[1].append(written.message)
    return list(groups.values())


def rollback_savepoint(connection: Connection, name: str, _context: None) -> None:
    """Drop what was written inside this savepoint of a connection, in inner ones too."""
    transaction = connection.get_transaction()
    found = None if transaction is None else pending.connections.get(transaction)
    if found is not None:
        found.drop(lambda written: name in written.savepoints)


def after_begin(session: Session, _transaction: SessionTransaction, connection: Connection) -> None:
    """Move what was waiting for this connection into its list."""
    state = _state(session)
    if state is not None and state.waiting:
        _hand_over(state, connection)


def _hand_over(state: SessionState, connection: Connection) -> None:
    binds = (connection, connection.engine)
    # Shared first: if the connection cannot take them they go on waiting, and no commit passes them by.
    share(state, connection, [written for bind, written in state.waiting if bind in binds])
    state.waiting = [(bind, written) for bind, written in state.waiting if bind not in binds]


def before_commit(session: Session) -> None:
    """Connect if messages are waiting: a session without a connection commits nothing and tells nobody."""
    state = _state(session)
    if state is None:
        return
    for bind in {bind for bind, _ in state.waiting}:
        _hand_over(state, session.connection(bind_arguments={"bind": bind}))
    if state.waiting:
        raise WriteError(
            f"{len(state.waiting)} message(s) have no connection to be inserted on: "
            f"the session does not connect to {state.waiting[0][0]!r}, the bind of the outbox table"
        )


def after_commit(session: Session) -> None:
    """Remember that this transaction or savepoint committed; it ends next."""
    state = _state(session)
    if state is not None and state.has_messages:
        state.committed = scopes(session)[0]


def after_rollback(session: Session) -> None:
    """Drop what was written in the transaction or savepoint that was rolled back."""
    state = _state(session)
    scope = session.get_nested_transaction() or session.get_transaction()
    if state is not None and scope is not None:
        state.drop(scope)


def after_transaction_end(session: Session, transaction: SessionTransaction) -> None:
    """Drop what was written in a transaction or savepoint that was closed without a commit."""
    if transaction.nested:
        state = _state(session)
    elif transaction.parent is None:
        state = pending.sessions.pop(transaction, None)
    else:
        return
    if state is not None and not (state.committed is not None and state.committed() is transaction):
        state.drop(transaction)


def _state(session: Session) -> SessionState | None:
    root = session.get_transaction()
    return None if root is None else pending.sessions.get(root)
