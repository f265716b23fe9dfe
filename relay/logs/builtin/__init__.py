"""The built-in log: a partitioned log in SQL tables, for teams without a broker."""

from relay.logs.builtin.log import BuiltinLog
from relay.logs.builtin.log import open_builtin as open  # noqa: A004 - the name that every adapter's opener has

__all__ = ["BuiltinLog", "open"]
