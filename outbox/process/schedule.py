"""What a process does now and then beside its loop: APScheduler says what is due, one background thread does it.

Only for what is no step: pruning, gauges. Each chore opens a connection of its own, and works in small batches.
"""

import logging
import threading
import time
from collections.abc import Callable
from datetime import UTC
from types import TracebackType
from typing import Self

from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler

from outbox.errors import OutboxError
from outbox.process.notices import Notices
from outbox.process.pace import Pace

REST = 9.0
"""After a pass, its chore is not begun again for so many times as long as its batches took."""
LONGEST_REST_SECONDS = 3_600.0

Chore = Callable[[Pace], None]

# A pass that is longer than its interval is our normal case; APScheduler would warn of it each time.
_quiet = logging.getLogger(f"{__name__}.apscheduler")
_quiet.setLevel(logging.ERROR)


class Schedule:
    """Chores by the clock, while the block lasts that it is entered for; one at a time, a late one once.

    Leaving the block ends a chore that is under way between two of its batches, and waits for that.

    Args:
        name: of its thread.
        logger: says what went wrong; a chore that failed is tried again at its next time.
    """

    def __init__(self, name: str, logger: logging.Logger) -> None:
        self._logger = logger
        self._over = threading.Event()
        self._scheduler = BackgroundScheduler(
            logger=_quiet,
            timezone=UTC,
            executors={"default": ThreadPoolExecutor(1, {"thread_name_prefix": name})},
            job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None},
        )

    def every(self, seconds: float, name: str, chore: Chore) -> None:
        """Add a chore, to be done for the first time after `seconds`.

        Args:
            seconds: its interval; longer while a pass takes long.
            name: what it is, for the words when it fails.
            chore: does one pass at the pace that it is given.
        """
        timed = _Timed(name, chore, self._over, self._logger)
        self._scheduler.add_job(timed.run, "interval", seconds=seconds, id=name)

    def __enter__(self) -> Self:
        self._scheduler.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._scheduler.shutdown(wait=True)


class _Timed:
    """One chore, and when it may be done again."""

    def __init__(self, name: str, chore: Chore, over: threading.Event, logger: logging.Logger) -> None:
        self._name = name
        self._chore = chore
        self._over = over
        self._logger = logger
        self._notices = Notices(logger)
        self._not_before = 0.0

    def run(self) -> None:
        if self._over.is_set() or time.monotonic() < self._not_before:
            return
        pace = Pace(self._over)
        attempt(self._name, self._chore, pace, self._logger, self._notices)
        self._not_before = time.monotonic() + min(pace.busy_seconds * REST, LONGEST_REST_SECONDS)


def attempt(name: str, chore: Chore, pace: Pace, logger: logging.Logger, notices: Notices | None = None) -> None:
    """Do one pass; a failure is said and ends nothing, since all that a chore does can be done later."""
    notices = notices or Notices(logger)
    try:
        chore(pace)
    except OutboxError as error:
        notices.stand({name: f"{name}: {error}; trying again later"})
    except Exception as error:
        logger.error("%s: %s: %s", name, type(error).__name__, error, exc_info=error)  # noqa: TRY400 - the formatter decides about the traceback
    else:
        notices.stand({})
