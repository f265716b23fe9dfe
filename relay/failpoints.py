"""Where tests end the process: one name for each moment at which a crash must not matter."""

import os
import signal
from enum import StrEnum

VARIABLE = "RELAY_FAILPOINT"
"""Names a failpoint: the process ends itself by SIGKILL when it comes there. `NAME:3` is the third time."""


class Failpoint(StrEnum):
    """The moments in a relay's step."""

    TAKEN = "taken"
    """The lease is taken; nothing has been read."""
    READ = "read"
    """The window has been looked at; nothing has been sent."""
    OPENED = "opened"
    """The producer of a log that keeps the number of its last chunk is open, and the number is not looked at yet."""
    BEGUN = "begun"
    """The checkpoint says that a chunk is open; the log has nothing of it."""
    SENT = "sent"
    """The chunk is on its way; whether it is in the log only the log knows."""
    PRODUCED = "produced"
    """The log has the chunk; the checkpoint does not know."""
    ADVANCED = "advanced"
    """The checkpoint has been saved."""
    APPENDED = "appended"
    """Records and checkpoint were committed together; the relay has not used the answer yet."""


_wanted, _, _count = os.environ.get(VARIABLE, "").partition(":")
_remaining = int(_count or 1)


def failpoint(reached: Failpoint) -> None:
    """End the process here if the environment says so."""
    global _remaining  # noqa: PLW0603 - one countdown a process
    if reached.value != _wanted:
        return
    _remaining -= 1
    if _remaining <= 0:
        os.kill(os.getpid(), signal.SIGKILL)
