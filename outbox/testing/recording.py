"""What transactions committed: the messages in order, and questions about them that fail in words."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from threading import Lock
from typing import Any
from weakref import ReferenceType, WeakSet, ref

from sqlalchemy import Connection, Engine, ExceptionContext, RootTransaction, event

from outbox.message import Message
from outbox.writing.statement import OutboxInsert

_SHOWN = 200


def decoded(message: Message) -> Any:
    """Return a message's payload as its content type says: JSON as Python data, text as str, else the bytes."""
    if message.payload is None:
        return None
    if message.content_type == "application/json":
        return json.loads(message.payload)
    return message.payload.decode() if message.content_type.startswith("text/") else message.payload


@dataclass(frozen=True, slots=True)
class _Batch:
    """What one transaction inserted before its COMMIT."""

    transaction: ReferenceType[RootTransaction]
    messages: Sequence[Message]

    @property
    def is_committed(self) -> bool:
        """Whether the COMMIT has come back: a batch whose COMMIT failed is dropped at once."""
        transaction = self.transaction()
        return transaction is None or transaction.connection.get_transaction() is not transaction


class Recording:
    """The messages that transactions committed, the first first. Safe to share between threads."""

    def __init__(self) -> None:
        self._batches: list[_Batch] = []
        self._lock = Lock()
        _listen()
        _all.add(self)

    @property
    def messages(self) -> list[Message]:
        """Every message of a transaction that committed; none of one that rolled back, savepoints too."""
        with self._lock:
            return [message for batch in self._batches if batch.is_committed for message in batch.messages]

    def of(self, *, topic: str | None = None, type: str | None = None, key: str | None = None) -> list[Message]:  # noqa: A002 - the word of `write`
        """Return the messages of a topic, a type, a key, or any of these together."""
        wanted = {"topic": topic, "type": type, "key": key}
        return [
            message
            for message in self.messages
            if all(value is None or getattr(message, name) == value for name, value in wanted.items())
        ]

    def one(self, *, topic: str | None = None, type: str | None = None, key: str | None = None) -> Message:  # noqa: A002 - the same
        """Return the one message that fits.

        Raises:
            AssertionError: none or several do; the words tell what was recorded.
        """
        found = self.of(topic=topic, type=type, key=key)
        if len(found) != 1:
            raise AssertionError(f"expected one message{_asked(topic, type, key)}, found {len(found)}.\n{self}")
        return found[0]

    def none(self, *, topic: str | None = None, type: str | None = None, key: str | None = None) -> None:  # noqa: A002 - the same
        """See that no message fits; without arguments, that there is none at all.

        Raises:
            AssertionError: one does; the words tell what was recorded.
        """
        found = self.of(topic=topic, type=type, key=key)
        if found:
            raise AssertionError(f"expected no message{_asked(topic, type, key)}, found {len(found)}.\n{self}")

    def clear(self) -> None:
        """Forget what was recorded so far."""
        with self._lock:
            self._batches.clear()

    def add(self, connection: Connection, messages: Sequence[Message]) -> None:
        """Remember what a connection's transaction is about to commit."""
        transaction = connection.get_transaction()
        if transaction is not None:
            with self._lock:
                self._batches.append(_Batch(ref(transaction), tuple(messages)))

    def drop(self, transaction: RootTransaction) -> None:
        """Forget a transaction that was rolled back after all."""
        with self._lock:
            self._batches = [batch for batch in self._batches if batch.transaction() is not transaction]

    def __str__(self) -> str:
        messages = self.messages
        if not messages:
            return "Nothing is recorded: was the transaction committed?"
        return "Recorded:\n" + "\n".join(f"  {number}. {_shown(one)}" for number, one in enumerate(messages, start=1))


class RecordedInsert(OutboxInsert):
    """Stands in the place of the INSERT, at the very moment when that would be sent."""

    def __init__(self, instead_of: OutboxInsert, recording: Recording, *, insert: bool) -> None:
        super().__init__(instead_of.table)
        self._instead_of = instead_of
        self._recording = recording
        self._sends = insert

    @property
    def group(self) -> object:
        """Never one statement with others: another Outbox on the same table may not be recorded."""
        return self

    def execute(self, connection: Connection, messages: Sequence[Message]) -> None:
        """Record the messages; insert them if asked to."""
        if self._sends:
            self._instead_of.execute(connection, messages)
        self._recording.add(connection, messages)


_all: "WeakSet[Recording]" = WeakSet()


@cache
def _listen() -> None:
    event.listen(Engine, "handle_error", _commit_failed)
    event.listen(Engine, "rollback_twophase", _prepared_and_rolled_back)


def _commit_failed(context: ExceptionContext) -> None:
    """A COMMIT can fail after the INSERT: by a deferred constraint, a lost connection. No rollback is told of then."""
    if context.connection is not None:
        _drop(context.connection)


def _prepared_and_rolled_back(connection: Connection, _xid: Any, _is_prepared: bool) -> None:  # noqa: FBT001
    _drop(connection)


def _drop(connection: Connection) -> None:
    transaction = connection.get_transaction()
    if transaction is not None:
        for recording in list(_all):
            recording.drop(transaction)


def _asked(topic: str | None, kind: str | None, key: str | None) -> str:
    named = {"topic": topic, "type": kind, "key": key}
    asked = ", ".join(f"{name} {value!r}" for name, value in named.items() if value is not None)
    return f" of {asked}" if asked else ""


def _shown(message: Message) -> str:
    payload = "no payload" if message.payload is None else message.payload[:_SHOWN].decode(errors="replace")
    return f"topic={message.topic!r} type={message.type!r} key={message.key!r} {payload}"
