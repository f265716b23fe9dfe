"""What became of a segment: handled, a handler's failure, or nobody's."""

import logging
import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Protocol, TypeVar

from inbox.handlers import Handlers
from inbox.lane import Segment, Verdict
from inbox.lending import HandlerTimedOut
from inbox.transactions import CommitFailed, Target
from inbox.work import HandlerFailed
from outbox.errors import Fenced, Retryable, TimedOut
from outbox.process.patience import Patience
from outbox.retry import RetryPolicy
from relay.logs.contract import Partition, Record

R_contra = TypeVar("R_contra", contravariant=True)
R = TypeVar("R")

_logger = logging.getLogger("inbox")


class Passing(Protocol):
    """What can meet a fault that is nobody's attempt."""

    @property
    def partition(self) -> Partition:
        """Whose records."""
        ...

    def passed_fault(self, *, now: float, random: Callable[[], float]) -> None:
        """It is to be tried again a little later."""
        ...


class Judged(Passing, Protocol[R_contra]):
    """A lane, which decides what its segment's outcome means for it."""

    def done(self, segment: Segment, result: R_contra, /) -> None:
        """The segment was handled."""
        ...

    def failed(
        self,
        segment: Segment,
        record: Record,
        error: BaseException,
        policy: RetryPolicy,
        *,
        now: float,
        random: Callable[[], float],
    ) -> Verdict:
        """A handler failed."""
        ...


class Judge:
    """Tells the lanes what became of their segments."""

    def __init__(
        self, target: Target, handlers: Handlers, patience: Patience, end_stuck: Callable[[TimedOut], None]
    ) -> None:
        self._target = target
        self._handlers = handlers
        self._patience = patience
        self._end_stuck = end_stuck

    def judge(self, lane: Judged[R], segment: Segment, outcome: Future[R]) -> None:
        """Look at the outcome. What is neither a handler's failure nor passing is raised."""
        try:
            result = outcome.result()
        except HandlerFailed as failed:
            self._failed(lane, segment, failed.record, failed.policy, failed.__cause__ or failed)
        except CommitFailed as failed:
            self._commit_failed(lane, segment, failed.__cause__ or failed)
        except (Fenced, Retryable) as error:
            self.pass_by(lane, error)
        else:
            lane.done(segment, result)
            self._patience.worked()

    def pass_by(self, lane: Passing, error: Fenced | Retryable) -> None:
        """A claim was lost, or the database could not do it now: nobody's attempt."""
        if isinstance(error, Retryable) and not isinstance(error, TimedOut):
            self._patience.failed(error)
        self._pass(lane, error)
        if isinstance(error, TimedOut):
            self._clear_the_way(error)

    def _clear_the_way(self, error: TimedOut) -> None:
        try:
            self._end_stuck(error)
        except (Retryable, Fenced) as another:
            _logger.info("could not look for sessions that hang: %s", another)

    def _failed(
        self, lane: Judged[R], segment: Segment, record: Record, policy: RetryPolicy, error: BaseException
    ) -> None:
        dialect = self._target.dialect
        if any(dialect.is_passing(one) for one in _chain(error)):
            self._pass(lane, error)
            return
        if any(dialect.is_timeout(one) for one in _chain(error)):
            error = HandlerTimedOut(f"the handler took longer than it may: {error}")
        verdict = lane.failed(segment, record, error, policy, now=time.monotonic(), random=random.random)
        if verdict is Verdict.STOPPED:
            _logger.debug("the failure in full", exc_info=error)
        else:
            _logger.warning(
                "handling message %s of topic %s failed (%s: %s): %s",
                record.message.id,
                record.message.topic,
                type(error).__name__,
                error,
                verdict.value,
                exc_info=error if verdict is Verdict.AGAIN and segment.attempt == 1 else None,
            )

    def _commit_failed(self, lane: Judged[R], segment: Segment, error: BaseException) -> None:
        """A COMMIT can fail by the handlers' doing (a deferred constraint), or have an unknown outcome."""
        if not segment.records or any(self._target.dialect.is_passing(one) for one in _chain(error)):
            self._pass(lane, error)
            return
        record = segment.records[0]
        handler = self._handlers.for_message(record.message)
        policy = RetryPolicy() if handler is None else handler.retry
        self._failed(lane, segment, record, policy, error)

    def _pass(self, lane: Passing, error: BaseException) -> None:
        _logger.info(
            "topic %s, partition %s: %s; nobody's attempt, going on from the newest claim",
            lane.partition.topic,
            lane.partition.number,
            error,
        )
        lane.passed_fault(now=time.monotonic(), random=random.random)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield the error and what it came from: a handler may wrap the database's error in one of its own."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        yield link
        seen.add(id(link))
        link = link.__cause__ or link.__context__
