"""Waiting for a database or log that does not answer: as long as it takes, or for a bounded time."""

import logging
import random
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from outbox.errors import Unreachable

_FIRST_SECONDS = 0.05
_LONGEST_SECONDS = 2.0
_SAY_EVERY_SECONDS = 30.0

Result = TypeVar("Result")
logger = logging.getLogger(__name__)


class Stopped(Exception):
    """The stop event was set while waiting."""


def wait_for(
    attempt: Callable[[], Result],
    *,
    seconds: float | None,
    stop: threading.Event | None = None,
) -> Result:
    """Return what `attempt` returns, tried again while it raises `Unreachable`.

    Says so on the first failure, and again every half minute.

    Args:
        attempt: bounds itself; what it raises beside `Unreachable` passes.
        seconds: how long to go on; None is for ever. With 0 it is tried once.
        stop: ends the waiting.

    Raises:
        Unreachable: the last one, when the time is up.
        Stopped: `stop` was set.
    """
    began = said = time.monotonic()
    pause, failures = _FIRST_SECONDS, 0
    while True:
        try:
            return attempt()
        except Unreachable as error:
            now = time.monotonic()
            left = float("inf") if seconds is None else began + seconds - now
            if left <= 0:
                raise
            if not failures or now - said >= _SAY_EVERY_SECONDS:
                _say(error, seconds)
                said = now
        failures += 1
        wanted = min(pause * random.uniform(0.8, 1.2), left)  # noqa: S311 - spreads attempts, hides nothing
        if stop is None:
            time.sleep(wanted)
        elif stop.wait(wanted):
            raise Stopped
        pause = min(pause * 2, _LONGEST_SECONDS)


def _say(error: Unreachable, seconds: float | None) -> None:
    if seconds is None:
        logger.warning("%s; waiting until it answers", error)
    else:
        # Without the reason: if the time is up, that is the next line.
        logger.info("no answer yet; waiting up to %g s", seconds)
