"""The one question of deduplication, for those who run their own consumer loop: is this message new to the group?"""

from collections.abc import Awaitable
from uuid import UUID

from sqlalchemy import Connection, Table, Uuid, bindparam, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.orm import Session

from outbox.errors import ConfigurationError
from outbox.tables.names import Place
from relay.logs.cloudevents import message_id as canonical

_INSERT = """
insert into {inbox} (consumer_group, source, message_id) values (:consumer_group, :source, :message_id)
on conflict do nothing
"""


class FirstTime:
    """Asks for one group, in the session that is at hand."""

    def __init__(self, place: Place, table: Table, group: str) -> None:
        self._table = table
        self._group = group
        # The type is named: the two dialects store a uuid differently.
        self._insert = text(_INSERT.format(inbox=place.sql("inbox"))).bindparams(bindparam("message_id", type_=Uuid()))

    def ask(
        self, session: Session | Connection | AsyncSession | AsyncConnection, message_id: UUID | str, source: str
    ) -> bool | Awaitable[bool]:
        """Insert the message's row; return whether it was not there, or an awaitable of it.

        Raises:
            ConfigurationError: this is no session or connection.
        """
        match session:
            case AsyncSession():
                return session.run_sync(lambda inner: self._in_session(inner, message_id, source))
            case AsyncConnection():
                return session.run_sync(self._in_connection, message_id, source)
            case Connection():
                return self._in_connection(session, message_id, source)
            case Session():
                return self._in_session(session, message_id, source)
        raise ConfigurationError(
            f"first_time asks a Session, AsyncSession or Connection, not a {type(session).__name__}"
        )

    def _in_session(self, session: Session, message_id: UUID | str, source: str) -> bool:
        # By the table: a session with several engines has to find the one that the table lies on.
        return self._in_connection(session.connection(bind_arguments={"clause": self._table}), message_id, source)

    def _in_connection(self, connection: Connection, message_id: UUID | str, source: str) -> bool:
        known = message_id if isinstance(message_id, UUID) else canonical(message_id)
        values = {"consumer_group": self._group, "source": source, "message_id": known}
        return connection.execute(self._insert, values).rowcount == 1
