"""All tables, as SQLAlchemy metadata, in three sets; the SQL against them lives with its package."""

from outbox.tables.inbox import InboxTables, inbox_tables
from outbox.tables.log import LogTables, log_tables
from outbox.tables.names import Place
from outbox.tables.outbox import OutboxTables, outbox_tables
from outbox.tables.types import XID8

__all__ = ["XID8", "InboxTables", "LogTables", "OutboxTables", "Place", "inbox_tables", "log_tables", "outbox_tables"]
