"""Whether a connection commits each statement by itself: then a message has no transaction to be part of."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.orm import Session

from outbox.errors import WriteError
from outbox.writing.pending import Bind
from outbox.writing.unpublished import level_on_connect

_REFUSED = (
    "this connection is in AUTOCOMMIT: there is no transaction that the message could be part of; "
    "write inside a transaction of another isolation level"
)


def refuse_autocommit_option(bind: Bind, session: Session | None = None) -> None:
    """Look at what engine, connection and session were told.

    Raises:
        WriteError: they say AUTOCOMMIT.
    """
    # A session has execution options of its own from SQLAlchemy 2.1 on.
    told: Mapping[str, Any] = getattr(session, "execution_options", None) or {}
    level = told.get("isolation_level") or bind.get_execution_options().get("isolation_level")
    if str(level or level_on_connect(bind.engine)).upper() == "AUTOCOMMIT":
        raise WriteError(_REFUSED)


def refuse_autocommit(connection: Connection) -> None:
    """Look at a connection that is in a transaction, and at its driver: it can be told behind SQLAlchemy's back.

    Raises:
        WriteError: it commits each statement by itself.
    """
    refuse_autocommit_option(connection)
    pooled: Any = connection.connection
    driver = pooled.dbapi_connection
    if connection.dialect.name == "sqlite":
        # isolation_level=None with a BEGIN of the user's own is SQLAlchemy's recipe for SQLite, and a real transaction.
        by_itself = driver.isolation_level is None or getattr(driver, "autocommit", None) is True
        if by_itself and not pooled.driver_connection.in_transaction:
            raise WriteError(_REFUSED)
    elif getattr(driver, "autocommit", False) is True:
        raise WriteError(_REFUSED)
