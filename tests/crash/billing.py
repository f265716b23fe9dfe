"""The consumers of the invariants' tests: each message is one row of `effects`, which allows a message twice."""

import os
import signal
import time
from pathlib import Path

from sqlalchemy import text
from sqlalchemy.orm import Session

from inbox import Delivery, Inbox

SCHEMA = "create table effects (place bigint generated always as identity, topic text, key text, payload bytea)"
MARK = "TEST_MARK"
"""The environment variable with the file that the first handler of its kind makes; others see it, and go on."""
SLOW_SECONDS = 6.0

inbox = Inbox("billing")
by_offset = Inbox("billing", deduplicate="offset")
before_payments = Inbox("billing")
one_slow = Inbox("billing")
one_stops = Inbox("billing")


# A short time-out: when a consumer is stopped inside its transaction, the server ends that a little after it.
@inbox.handler("orders", timeout_seconds=2)
@inbox.handler("payments", timeout_seconds=2)
@by_offset.handler("orders", timeout_seconds=2)
@by_offset.handler("payments", timeout_seconds=2)
@before_payments.handler("orders", timeout_seconds=2)
def handle(delivery: Delivery, session: Session) -> None:
    """Leave an effect; slowly, so that a kill falls into the middle of a batch."""
    session.execute(
        text(
            "with slow as (select pg_sleep(0.003))"
            " insert into effects (topic, key, payload) select :t, :k, :p from slow"
        ),
        {"t": delivery.message.topic, "k": delivery.message.key, "p": delivery.message.payload},
    )


@one_slow.handler("orders", timeout_seconds=60)
def handle_slowly(delivery: Delivery, session: Session) -> None:
    """The first of all takes long."""
    handle(delivery, session)
    if is_first():
        time.sleep(SLOW_SECONDS)


@one_stops.handler("orders", timeout_seconds=2)
@one_stops.handler("payments", timeout_seconds=2)
def handle_until_stopped(delivery: Delivery, session: Session) -> None:
    """The first process of all stops itself, inside its transaction; somebody else may have it go on."""
    handle(delivery, session)
    if is_first():
        os.kill(os.getpid(), signal.SIGSTOP)


def is_first() -> bool:
    """Return whether nobody asked before."""
    try:
        Path(os.environ[MARK]).open("x").close()
    except FileExistsError:
        return False
    return True
