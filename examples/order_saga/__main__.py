"""Runs the saga: starts the stage and the processes, says how it goes, and has the result checked.

python -m examples.order_saga
"""

import signal
import sys
import tempfile
import time
from pathlib import Path

import psycopg

from examples.order_saga.saga import INBOXES, RELAYS, WRITERS, Saga
from examples.order_saga.settings import Settings
from examples.order_saga.stage import Stage, made

STUCK_SECONDS = 60  # nothing has moved for so long: something is broken
REST_SECONDS = 20  # longer than that nothing should be under way when all orders have come to an end
LOOK = """
    select count(*) as placed, count(*) filter (where state = 'placed') as under_way,
           count(*) filter (where state = 'shipped') as shipped,
           count(*) filter (where state = 'cancelled') as cancelled
    from orders
"""


def run(saga: Saga, orders: int) -> bool:
    """Let everything run until all orders have come to an end; return whether they have."""
    started = time.monotonic()
    moved_at, before = 0.0, (0, 0, 0, 0)
    database = saga.stage.database("orders").replace("+psycopg", "")
    with psycopg.connect(database, autocommit=True) as connection:
        while True:
            seconds = time.monotonic() - started
            saga.complain_if_one_failed()
            now = connection.execute(LOOK).fetchone() or before
            placed, under_way, shipped, cancelled = now
            say(
                seconds,
                f"placed {placed:>6,}   under way {under_way:>5,}   shipped {shipped:>6,}   cancelled {cancelled:>5,}",
            )
            if placed >= orders and not under_way:
                return True
            if now != before:
                moved_at, before = seconds, now
            elif seconds - moved_at > STUCK_SECONDS:
                say(seconds, f"nothing has moved for {STUCK_SECONDS} s")
                return False
            time.sleep(max(0.0, 1 - (time.monotonic() - started) % 1))


def say(seconds: float, words: str) -> None:
    print(f"{seconds:5.0f} s  {words}", flush=True)


def perform(settings: Settings, stage: Stage, folder: Path) -> int:
    """Run the saga on a stage; return the exit code."""
    saga = Saga(stage, settings, folder)
    print("making the tables of four services", flush=True)
    saga.prepare()
    names = (*RELAYS, *INBOXES, *WRITERS)
    print(f"starting {', '.join(names)}\n", flush=True)
    try:
        for name in names:
            saga.start(name)
        if run(saga, settings.orders):
            print("\nall orders have come to an end; refunds and returns to the shelf may still be on their way")
            deadline = time.monotonic() + REST_SECONDS
            while saga.checked().wrong and time.monotonic() < deadline:
                time.sleep(0.5)
    finally:
        saga.stop()
    verdict = saga.checked()
    print(f"\n{verdict.table()}\n\n{verdict.words()}")
    return 1 if verdict.wrong else 0


def main() -> int:
    settings = Settings.from_environment()
    servers = "PostgreSQL" if settings.stage == "embedded" else "PostgreSQL and Kafka"
    print(f"stage {settings.stage}: {servers}", flush=True)
    with tempfile.TemporaryDirectory(prefix="order-saga-") as folder, made(settings) as stage:
        return perform(settings, stage, Path(folder))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("stopped")
