"""Reads from a live database what stands there in the place of our tables: plain data, one file a dialect."""

from outbox.inspect.live import Dialect, LiveColumn, LiveTable, dialect_for

__all__ = ["Dialect", "LiveColumn", "LiveTable", "dialect_for"]
