"""The write: a message becomes part of the transaction that changes the data."""

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any
from uuid import UUID

from sqlalchemy import Connection, Engine, MetaData
from sqlalchemy.orm import Session, scoped_session
from uuid_utils.compat import uuid7

from outbox.context import context_headers
from outbox.errors import ConfigurationError, WriteError
from outbox.message import Message
from outbox.serializer import JSON, Serializer, encoded
from outbox.tables.outbox import OutboxTables, outbox_tables
from outbox.validation import is_topic, storable, valid_headers, valid_id, valid_topic
from outbox.writing.hooks import listen
from outbox.writing.statement import OutboxInsert
from outbox.writing.target import bind_as_given, remember, unwrapped

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, async_scoped_session

    AnySession = Session | scoped_session[Any] | AsyncSession | async_scoped_session[Any] | Connection | AsyncConnection

MAX_PAYLOAD_BYTES = 900_000
"""What fits into a Kafka record of 1 MB together with its headers."""


class Outbox:
    """Writes messages into the outbox table, as part of the caller's transaction. Safe to share between threads.

    Attributes:
        tables: the tables of the set `outbox`, as registered on the metadata.
    """

    def __init__(
        self,
        *,
        metadata: MetaData | None = None,
        schema: str | None = None,
        prefix: str = "",
        source: str | None = None,
        topics: Collection[str] | None = None,
        serializer: Serializer = JSON,
        max_payload_bytes: int = MAX_PAYLOAD_BYTES,
        bind: "Engine | Connection | AsyncEngine | AsyncConnection | None" = None,
    ) -> None:
        """Register the tables on `metadata`; any number of objects on one metadata share the same tables.

        Args:
            metadata: your models' metadata, so that Alembic sees the tables; without it, those of `outbox init`.
            schema: where the tables lie; the metadata's own schema unless named.
            prefix: put before the tables' names.
            source: who writes, a URI reference such as `/orders`; the relay fills in the installation's if None.
            topics: the topics that may be written to; any, if None.
            serializer: for payloads that are neither bytes, text nor None.
            max_payload_bytes: a payload over this is refused.
            bind: where the outbox table lies, for sessions that are bound to several databases or to none.

        Raises:
            ConfigurationError: a topic, the source or the limit is not valid.
        """
        if isinstance(topics, str) or not all(map(is_topic, topics or ())):
            raise ConfigurationError(f"topics={topics!r}: each is 1 to 249 of A-Z a-z 0-9 . _ - and not . or ..")
        if max_payload_bytes < 1:
            raise ConfigurationError(f"max_payload_bytes={max_payload_bytes}: it has to be 1 or more")
        if source is not None and not _is_source(source):
            raise ConfigurationError(f"source={source!r}: leave it out, or name who writes, as in source='/orders'")
        self.tables: OutboxTables = outbox_tables(metadata if metadata is not None else MetaData(), schema, prefix)
        self._source = source
        self._topics = None if topics is None else frozenset(topics)
        self._serializer = serializer
        self._max_payload_bytes = max_payload_bytes
        self._bind = bind_as_given(bind)
        self._insert = OutboxInsert(self.tables.outbox)
        listen()

    def write(
        self,
        session: "AnySession",
        *,
        topic: str,
        payload: Any,
        key: str | None = None,
        type: str | None = None,  # noqa: A002 - CloudEvents' word, and the table's
        headers: Mapping[str, str] | None = None,
        id: UUID | None = None,  # noqa: A002 - the same
    ) -> Message:
        """Write a message: it is sent if, and only if, the session's transaction commits.

        Nothing is awaited and nothing is sent: all messages of a transaction are inserted by one statement, the last
        before its COMMIT, in the order of their writing. One written in a savepoint that rolls back is dropped with it.
        Without a transaction one is begun, as `execute` would.

        Args:
            session: whose transaction.
            topic: where to; 1 to 249 of `[A-Za-z0-9._-]`, not `.` or `..`.
            payload: bytes as they are, text as UTF-8, None as a tombstone, anything else by the serializer.
            key: messages of one topic and key keep their order; None promises none.
            type: what happened; the topic if it is not given.
            headers: your own; `traceparent`, `content-type` and names that begin with `ce_` are refused.
            id: a UUIDv7 is made if it is not given.

        Returns:
            The message as it will be stored, without its time and position.

        Raises:
            WriteError: the message is refused, or the transaction cannot take it (AUTOCOMMIT, over, failed, prepared,
                being committed). Nothing is stored, and the transaction can go on.
        """
        message = self._message(topic=topic, payload=payload, key=key, type=type, headers=headers, id=id)
        remember(unwrapped(session), message, self._insert, self._bind)
        return message

    def _message(
        self,
        *,
        topic: str,
        payload: Any,
        key: str | None = None,
        type: str | None = None,  # noqa: A002 - as in `write`
        headers: Mapping[str, str] | None = None,
        id: UUID | None = None,  # noqa: A002 - the same
    ) -> Message:
        content, content_type = encoded(payload, self._serializer, self._max_payload_bytes)
        return Message(
            id=uuid7() if id is None else valid_id(id),
            topic=valid_topic(topic, self._topics),
            key=None if key is None else storable("the key", key),
            type=storable("the type", type) if type else topic,
            payload=content,
            content_type=content_type,
            headers={**valid_headers(headers), **context_headers()},
            source=self._source,
        )


def _is_source(source: str) -> bool:
    try:
        return storable("source", source) != ""
    except WriteError:
        return False
