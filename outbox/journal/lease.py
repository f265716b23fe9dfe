"""What a lease is, whatever database keeps it."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

KEEP_STEPS = 100
"""How many of the newest steps a prune leaves: enough to read what happened last."""


def boot_seconds() -> float:
    """Return seconds on a clock that also runs while the machine sleeps, where there is one."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


@dataclass(frozen=True, slots=True)
class Held:
    """A lease that is ours, and the state that came with it.

    Attributes:
        step: the newest step, which is ours.
        epoch: the number of this lease; it names one connection.
        seconds: the lease's length.
        deadline: on the clock of `boot_seconds`; counted from before the renewal was sent, so nobody else starts
        earlier. state: the journal's own columns in that step.
    """

    step: int
    epoch: int
    seconds: float
    deadline: float
    state: Mapping[str, Any]

    def expired(self) -> bool:
        """Return whether somebody else may hold the lease by now."""
        return boot_seconds() >= self.deadline


@dataclass(frozen=True, slots=True)
class Taken:
    """The answer to an attempt to take a lease: ours, or whose it is and for how long yet."""

    held: Held | None
    holder: str | None
    remaining_seconds: float


class Lease(Protocol):
    """One journal with a lease, on one connection. Not safe to use from two threads."""

    @property
    def held(self) -> Held:
        """The lease as of the last statement. Only valid after `take` gave one."""
        ...

    def take(self) -> Taken:
        """Take the lease if it is free, expired, or ours from an earlier connection: the epoch rises by one.

        Durable when it returns. Concurrent: one of several gets it. Again: raises the epoch again.

        Raises:
            Forgotten: there is no such registration any more.
            Retryable: the database does not answer now.
        """
        ...

    def advance(self, **state: object) -> Held:
        """Insert the next step with these columns of the state changed; renews the lease.

        Raises:
            Fenced: the step is no longer the newest, or not of this connection.
            Retryable: unknown outcome; take the lease again before anything else.
        """
        ...

    def release(self) -> None:
        """Give the lease back, so that the next one starts at once; no error when it was lost already."""
        ...
