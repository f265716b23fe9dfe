"""The road under fault: writers, relays as processes, what they are put through; at its end the lag has to be zero."""

import random
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Self

import psycopg
from checker import NEWEST, Report, check, counts
from processes import Process, start_relay
from proxy import Proxy
from sqlite_writers import SqliteWriters
from writers import Writers

from tests.databases import rows, wait_until

DRAIN_SECONDS = 40.0


class Road:
    """Relays between an outbox and a built-in log.

    Args:
        database: where checker and writers connect.
        folder: for what the processes say.
        log: where the log is; in the same database without it.
        seed: of everything random.
        through: a proxy between the relays and the database.
        log_through: a proxy between the relays and the log.
        lease: the relays' lease in seconds.
    """

    def __init__(
        self,
        database: str,
        folder: Path,
        *,
        log: str = "",
        seed: int = 1,
        through: Proxy | None = None,
        log_through: Proxy | None = None,
        lease: float = 1.0,
    ) -> None:
        self.database = database
        self.log = log or database
        self.choose = random.Random(seed)
        self.relays: list[Process] = []
        self.killed = 0
        self._folder = folder
        self._lease = lease
        self._relays_url = through.url(database) if through else database
        self._relays_log = log_through.url(self.log) if log_through else log or self._relays_url

    def start_relay(self, failpoint: str = "") -> Process:
        said, lease = self._folder / "relays.txt", self._lease
        relay = start_relay(said, self._relays_url, log=self._relays_log, lease=lease, failpoint=failpoint)
        self.relays.append(relay)
        return relay

    def kill_one(self) -> None:
        """Kill a relay, the holder or one that stands by, and start another in its place."""
        relay = self.choose.choice(self.relays)
        self.relays.remove(relay)
        relay.kill()
        self.killed += 1
        self.start_relay()

    def newest(self) -> tuple[int, int, int, str | None]:
        """Return (epoch, step, position, owner) of the newest step; zeros before there is one."""
        found = rows(self.database, NEWEST)
        return (*found[0],) if found else (0, 0, 0, None)

    def holder(self) -> Process | None:
        """Return the relay that has the lease now."""
        owner = self.newest()[3] or ""
        return next((relay for relay in self.relays if f"-{relay.pid}-" in owner), None)

    def records(self) -> int:
        return counts(self.database, self.log)[1]

    def moves_on(self) -> None:
        """Wait until the relays have moved something more."""
        before = self.records()
        wait_until(lambda: self.records() > before, f"nothing came behind {before} records\n{self.words()}")

    def drained(self) -> None:
        """Wait until everything that was committed has arrived, with no human hand (I8)."""

        def all_arrived() -> bool:
            committed, records = counts(self.database, self.log)
            return records >= committed

        with suppress(AssertionError):  # what is missing is told better by the report
            wait_until(all_arrived, "", DRAIN_SECONDS)

    def report(self) -> Report:
        """Drain, end the relays, and say what is wrong."""
        self.drained()
        self.end()
        return check(self.database, self.log)

    def words(self) -> str:
        """Return the last of what the relays have said."""
        return (self._folder / "relays.txt").read_text(errors="replace")[-3000:]

    def end(self) -> None:
        """Kill what runs. Again: no effect."""
        for relay in self.relays:
            relay.kill()


class Watch:
    """Looks at the newest step all the while; a step, epoch or position that goes back is kept in `regressed`."""

    def __init__(self, road: Road) -> None:
        self.regressed: list[str] = []
        self.looked = 0
        self._road = road
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(30)

    def _look(self) -> None:
        before = (0, 0, 0)
        while not self._over.wait(0.02):
            with suppress(psycopg.OperationalError, sqlite3.OperationalError):
                after = self._road.newest()[:3]
                if any(new < old for new, old in zip(after, before, strict=True)):
                    self.regressed.append(f"{before} -> {after}")
                before = after
                self.looked += 1


def under_faults(writers: Writers | SqliteWriters, seconds: float, *faults: Callable[[], None], least: int = 3) -> None:
    """While writers write, let one fault after another happen, in random order; each returns when it is over.

    For so many seconds, and at least so many faults, however slow the machine is.
    """
    choose = random.Random(f"{writers.seed}/faults")
    deadline = time.monotonic() + seconds
    writers.start()
    happened = 0
    while time.monotonic() < deadline or happened < least:
        choose.choice(faults)()
        happened += 1
    writers.stop()
