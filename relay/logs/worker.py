"""A thread that a producer has beside it: a server that hangs answers no time-out of its own, and the relay goes on."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

Result = TypeVar("Result")


class Worker:
    """A thread that does one job after another. It does not keep the process from ending."""

    def __init__(self, name: str) -> None:
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._last: Future[Any] | None = None
        self._ended: Future[None] | None = None
        threading.Thread(target=self._work, name=name, daemon=True).start()

    def submit(self, job: Callable[[], Result]) -> Future[Result]:
        """Have a job done after those before it."""
        future: Future[Result] = Future()
        self._jobs.put(lambda: _do(job, future))
        self._last = future
        return future

    def is_busy(self) -> bool:
        """Return whether a job is not done."""
        return self._last is not None and not self._last.done()

    def end(self, last: Callable[[], None]) -> Future[None]:
        """Do a last job and end. Again: no effect."""
        if self._ended is None:
            self._ended = self.submit(last)
            self._jobs.put(None)
        return self._ended

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()


def done(job: Callable[[], Result]) -> Future[Result]:
    """Do a job here and now."""
    future: Future[Result] = Future()
    _do(job, future)
    return future


def _do(job: Callable[[], Result], future: "Future[Result]") -> None:
    try:
        result = job()
    except BaseException as error:  # noqa: BLE001 - it is whoever waits who has to see it
        future.set_exception(error)
    else:
        future.set_result(result)
