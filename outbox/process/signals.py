"""SIGTERM and SIGINT ask for a clean end; the second one ends the process at once."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from outbox.process.exits import Exit

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_SAID = b"stopping: finishing what is in hand (a second signal ends at once)\n"


@contextmanager
def stopping(*, quiet: bool = False) -> Iterator[threading.Event]:
    """Give an event that SIGTERM and SIGINT set; call it in the main thread.

    A thread of its own reads the signals from a pipe. A handler in Python would run in the main thread only: too late
    when that waits inside a C library, and a deadlock when it is just inside `Event.wait`, whose lock `set` needs.

    Args:
        quiet: say nothing on stderr.
    """
    stop = threading.Event()
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    before = {number: signal.signal(number, _noted) for number in _SIGNALS}
    woken_before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    watcher = threading.Thread(target=_watch, args=(reading, stop, quiet), name="signals", daemon=True)
    watcher.start()
    try:
        yield stop
    finally:
        signal.set_wakeup_fd(woken_before)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(writing)
        watcher.join()
        os.close(reading)


def _noted(_number: int, _frame: object) -> None:
    """Do nothing: with a handler in place the interpreter writes the signal's number into the pipe."""


def _watch(reading: int, stop: threading.Event, quiet: bool) -> None:  # noqa: FBT001 - a thread's target
    while number := os.read(reading, 1):
        if number[0] not in _SIGNALS:
            continue
        if stop.is_set():
            os._exit(Exit.FAILED)
        stop.set()
        if not quiet:
            os.write(2, _SAID)
