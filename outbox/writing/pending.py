"""What is written and not yet inserted, and where it hangs.

A transaction of a connection has one `Pending` list, shared with the sessions that work on that connection; only its
real COMMIT sends it. A session that has no connection yet keeps its messages waiting until it gets one.

Both hang weakly on the transactions themselves. `Connection.info` would outlive them in the pool, and a rolled back
message would go out with the next user's COMMIT.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from weakref import ReferenceType, WeakKeyDictionary, ref

from sqlalchemy import Connection, Engine, RootTransaction
from sqlalchemy.orm import SessionTransaction

from outbox.message import Message
from outbox.writing.statement import OutboxInsert

Bind = Engine | Connection
Scope = ReferenceType[SessionTransaction]

numbers = count(1)
"""Tells the order of writing, over all threads and sessions."""


@dataclass(frozen=True, slots=True)
class Written:
    """A message, as it was written.

    Attributes:
        number: grows with each message written.
        message: the message.
        insert: into which outbox.
        scopes: the session's savepoints around it, and its root transaction, as far as they are none of a connection's.
        savepoints: the names of the connection's savepoints around it. A message is dropped with any of these.
    """

    number: int
    message: Message
    insert: OutboxInsert
    scopes: tuple[Scope, ...] = ()
    savepoints: tuple[str, ...] = ()


class Pending:
    """The messages of one transaction of a connection."""

    __slots__ = ("_written", "is_closed")

    def __init__(self, *, is_closed: bool = False) -> None:
        self._written: list[Written] = []
        self.is_closed = is_closed

    def add(self, written: Written) -> None:
        """Remember one more."""
        self._written.append(written)

    def drop(self, is_dropped: Callable[[Written], bool]) -> None:
        """Forget those whose savepoint or session was rolled back."""
        self._written = [written for written in self._written if not is_dropped(written)]

    def take(self) -> list[Written]:
        """Return what is to be inserted, in the order of writing; nothing more can be written from now on."""
        self.is_closed = True
        # Sorted: what a session wrote before it had a connection comes later into this list than it was written.
        taken, self._written = sorted(self._written, key=lambda written: written.number), []
        return taken


class SessionState:
    """What we know of one transaction of a session.

    Attributes:
        waiting: what was written before there was a connection, and for which bind.
        committed: the transaction or savepoint that committed last.
    """

    __slots__ = ("_lists", "committed", "waiting")

    def __init__(self) -> None:
        self.waiting: list[tuple[Bind, Written]] = []
        self.committed: Scope | None = None
        self._lists: list[Pending] = []

    @property
    def has_messages(self) -> bool:
        """Whether anything was written: most transactions of most programs write nothing."""
        return bool(self.waiting or self._lists)

    def shares(self, pending: Pending) -> None:
        """Remember a list that this session writes to."""
        if all(known is not pending for known in self._lists):
            self._lists.append(pending)

    def drop(self, scope: SessionTransaction) -> None:
        """Forget what was written inside a transaction or savepoint of the session that ended without a commit."""
        gone = ref(scope)
        self.waiting = [(bind, written) for bind, written in self.waiting if gone not in written.scopes]
        for pending in self._lists:
            pending.drop(lambda written: gone in written.scopes)


connections: WeakKeyDictionary[RootTransaction, Pending] = WeakKeyDictionary()
sessions: WeakKeyDictionary[SessionTransaction, SessionState] = WeakKeyDictionary()
