"""Chores beside a loop: their pace, what is said of them, and how they end."""

import logging
import threading
import time

import pytest

from outbox.errors import Unreachable
from outbox.process.notices import Notices
from outbox.process.pace import Pace
from outbox.process.schedule import Schedule, attempt

logger = logging.getLogger("relay")


def test_a_pass_rests_in_proportion_to_its_batches() -> None:
    began = time.monotonic()
    pace = Pace(threading.Event(), share=0.5)
    for batch, _ in enumerate(pace.batches()):
        busy_until(time.monotonic() + 0.02)
        if batch == 3:
            break
    assert pace.busy_seconds >= 0.08
    assert time.monotonic() - began >= 0.08 + 3 * 0.02, "three rests as long as their batches"


def busy_until(deadline: float) -> None:
    while time.monotonic() < deadline:
        pass


def test_a_pass_ends_between_two_batches_when_it_is_told_to() -> None:
    over = threading.Event()
    batches = 0
    for _ in Pace(over, share=1.0).batches():
        batches += 1
        over.set()
    assert batches == 1


def test_a_pass_with_little_time_ends_when_that_is_over() -> None:
    assert list(Pace(threading.Event(), seconds=0).batches()) == []


def test_chores_are_done_again_and_again_one_at_a_time() -> None:
    inside = threading.Lock()
    done = {"a": 0, "b": 0}
    enough = threading.Event()

    def chore(name: str) -> None:
        assert inside.acquire(blocking=False), "two chores at once"
        done[name] += 1
        if min(done.values()) >= 2:
            enough.set()
        inside.release()

    with Schedule("tests", logger) as schedule:
        for name in done:
            schedule.every(0.02, name, lambda _, name=name: chore(name))
        assert enough.wait(30)
    after = dict(done)
    assert done == after, "nothing is begun any more"


def test_leaving_ends_a_chore_between_two_batches() -> None:
    started = threading.Event()

    def endless(pace: Pace) -> None:
        for _ in pace.batches():
            started.set()

    with Schedule("tests", logger) as schedule:
        schedule.every(0.01, "endless", endless)
        assert started.wait(30)
    assert not any(thread.name.startswith("tests") for thread in threading.enumerate())


def test_a_chore_that_fails_is_said_once_in_our_words_and_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    tries = threading.Semaphore(0)

    def failing(_: Pace) -> None:
        tries.release()
        raise Unreachable("the database is away")

    with caplog.at_level(logging.DEBUG), Schedule("tests", logger) as schedule:
        schedule.every(0.01, "pruning", failing)
        for _ in range(3):
            assert tries.acquire(timeout=30)
    said = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert [record.getMessage() for record in said] == ["pruning: the database is away; trying again later"]
    assert all(record.exc_info is None for record in said)


def test_an_error_of_another_kind_is_one_line_and_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def broken(_: Pace) -> None:
        raise ZeroDivisionError("by zero")

    attempt("pruning", broken, Pace(threading.Event()), logger)
    assert [record.getMessage() for record in caplog.records] == ["pruning: ZeroDivisionError: by zero"]


def test_what_stands_is_said_when_it_is_new_and_again_after_it_was_gone(caplog: pytest.LogCaptureFixture) -> None:
    notices = Notices(logger)
    for words in ({"a": "a 1"}, {"a": "a 2", "b": "b"}, {"b": "b"}, {"a": "a 3"}):
        notices.stand(words)
    assert [record.getMessage() for record in caplog.records] == ["a 1", "b", "a 3"]


def test_what_stands_is_said_again_after_its_time(caplog: pytest.LogCaptureFixture) -> None:
    notices = Notices(logger, again_seconds=0.0)
    notices.stand({"a": "a 1"})
    notices.stand({"a": "a 2"})
    assert len(caplog.records) == 2
