"""`memory://NAME?partitions=8`: a log inside one process, for tests. It lives as long as the process does.

All logs opened by one name are the same log. It is at-least-once: a relay that goes back to its checkpoint repeats
records. Members of a group share the partitions; one is gone when it is closed, and only then.
"""

from relay.logs.memory.consumer import MemoryConsumer
from relay.logs.memory.log import MemoryLog, MemoryProducer
from relay.logs.memory.log import open_memory as open  # noqa: A004 - the name that every adapter's opener has

__all__ = ["MemoryConsumer", "MemoryLog", "MemoryProducer", "open"]
