"""When the work of a measured process began: what it did before, once in its life, is not counted."""

import time
from typing import NamedTuple


class Began(NamedTuple):
    """A moment, by the clock on the wall and by the CPU's."""

    seconds: float
    cpu_seconds: float

    @classmethod
    def now(cls) -> "Began":
        """Return this moment."""
        return cls(time.perf_counter(), time.process_time())
