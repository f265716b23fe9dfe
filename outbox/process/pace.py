"""The pace of work that is done beside the real one: in small batches, with a pause after each."""

import threading
import time
from collections.abc import Iterator

SHARE = 0.2
"""Of the time, at most so much is spent in batches; the rest is pause."""


class Pace:
    """Lends its pace to one pass over something long.

    Args:
        over: set to end the pass between two batches.
        share: how much of the time the batches may take together, up to 1: no pauses.
        seconds: how long the pass may take; None is as long as there is something to do.
    """

    def __init__(self, over: threading.Event, *, share: float = SHARE, seconds: float | None = None) -> None:
        self._over = over
        self._rest = (1 - share) / share
        self._deadline = None if seconds is None else time.monotonic() + seconds
        self.busy_seconds = 0.0

    def batches(self) -> Iterator[None]:
        """Yield once for each batch, resting between two in proportion to what the last one took; end when told to."""
        while not self._over.is_set() and (self._deadline is None or time.monotonic() < self._deadline):
            began = time.monotonic()
            try:
                yield
            finally:
                took = time.monotonic() - began
                self.busy_seconds += took
            self._over.wait(took * self._rest)
