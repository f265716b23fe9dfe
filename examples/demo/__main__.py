"""Runs the demo: starts PostgreSQL and the processes, kills some of them, and closes the accounts.

python -m examples.demo
"""

import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Engine, create_engine

from examples.demo import accounts, billing, orders
from scripts.postgresql_server import PostgresqlServer

WRITERS = 3
RELAY_LEASE_SECONDS = 2  # how long another relay waits for one that does not answer; 10 if you say nothing
KILLS = ["relay", "billing", "relay"]
QUIET_SECONDS = 2  # each kill comes so long after everything moves again
STUCK_SECONDS = 60  # nothing was billed for so long: something is broken
PROGRAMS = Path(sys.executable).parent


class Processes:
    """The processes of the demo, by name, with what they say kept in files."""

    def __init__(self, database: str, folder: Path) -> None:
        self._database = database
        self._folder = folder
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def command(self, name: str) -> list[str]:
        """Return the command line of a process: for the relay and for billing just what you would type."""
        # The log is in the same database here; it could be another database, or a broker.
        where = ["--database", self._database, "--log", self._database]
        if name == "relay":
            return [str(PROGRAMS / "relay"), "run", *where, "--lease", str(RELAY_LEASE_SECONDS)]
        if name == "billing":
            return [str(PROGRAMS / "inbox"), "run", "examples.demo.billing:inbox", *where]
        return [sys.executable, "-m", "examples.demo.orders", self._database]

    def start(self, name: str) -> None:
        with self._said(name).open("ab") as said:
            self._running[name] = subprocess.Popen(self.command(name), stdout=said, stderr=said)

    def kill_and_restart(self, name: str) -> int:
        """Kill a process as a crash would (it gets no word of it), and start another; return who died."""
        victim = self._running[name]
        victim.kill()
        victim.wait()
        self.start(name)
        return victim.pid

    def stop_writers(self) -> None:
        """End the writers wherever they are: what they had not committed has never been."""
        for name in [name for name in self._running if name.startswith("orders")]:
            writer = self._running.pop(name)
            writer.terminate()
            writer.wait()

    def complain_if_one_failed(self) -> None:
        for name, process in self._running.items():
            ended = process.poll()
            if ended:
                raise SystemExit(f"{name} ended with {ended}:\n{self._said(name).read_text()[-3000:]}")

    def stop(self) -> None:
        for process in self._running.values():
            process.send_signal(signal.SIGTERM)
        for process in self._running.values():
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()

    def _said(self, name: str) -> Path:
        return self._folder / f"{name}.log"


@contextmanager
def postgresql() -> Iterator[str]:
    """Start a PostgreSQL for the demo alone; delete it afterwards."""
    server = PostgresqlServer()
    try:
        yield server.start().url().replace("postgresql://", "postgresql+psycopg://")
    finally:
        server.delete()


def make_tables(database: str, engine: Engine) -> None:
    made = subprocess.run(
        [PROGRAMS / "outbox", "init", "--database", database], check=False, capture_output=True, text=True
    )
    if made.returncode:
        raise SystemExit(made.stderr)
    orders.Base.metadata.create_all(engine)
    billing.Base.metadata.create_all(engine)


def run(processes: Processes, engine: Engine) -> None:
    """Let everything run, kill what is to be killed, and wait until all that was committed is billed."""
    started = time.monotonic()
    kills = list(KILLS)
    writing = True
    mark = accounts.Progress(0, 0, 0)  # how far everything was at the last kill
    moves_since: float | None = None
    billed, billed_at = 0, 0.0
    while True:
        seconds = time.monotonic() - started
        now = look(engine)
        say(seconds, f"committed {now.committed:>6,}   in the log {now.in_the_log:>6,}   billed {now.billed:>6,}")
        processes.complain_if_one_failed()
        if now.billed > billed:
            billed, billed_at = now.billed, seconds
        if moves_since is None and now.in_the_log > mark.in_the_log and now.billed > mark.billed:
            moves_since = seconds
        if writing and moves_since is not None and seconds - moves_since >= QUIET_SECONDS:
            if kills:
                name = kills.pop(0)
                say(seconds, f"{name} (pid {processes.kill_and_restart(name)}) killed with SIGKILL; another one starts")
                mark, moves_since = look(engine), None
            else:
                processes.stop_writers()
                say(seconds, "the writers go home")
                writing = False
        elif not writing and now.done:
            return
        elif seconds - billed_at > STUCK_SECONDS:
            processes.stop_writers()
            say(seconds, f"nothing was billed for {STUCK_SECONDS} s: the accounts are closed as they are")
            return
        time.sleep(max(0.0, 1 - (time.monotonic() - started) % 1))


def look(engine: Engine) -> accounts.Progress:
    with engine.connect() as connection:
        return accounts.progress(connection)


def say(seconds: float, words: str) -> None:
    print(f"{seconds:5.0f} s  {words}", flush=True)


def main() -> int:
    print("starting a PostgreSQL of the demo's own")
    with postgresql() as database, tempfile.TemporaryDirectory(prefix="demo-") as folder:
        engine = create_engine(database)
        make_tables(database, engine)
        processes = Processes(database, Path(folder))
        print(f"starting {WRITERS} writers of orders, a relay and a billing consumer\n")
        try:
            for name in [*(f"orders {number}" for number in range(1, WRITERS + 1)), "relay", "billing"]:
                processes.start(name)
            run(processes, engine)
        finally:
            processes.stop()
        with engine.connect() as connection:
            result = accounts.close_accounts(connection)
        engine.dispose()
    print(f"\n{result.table()}\n")
    print("every event arrived once, in order" if result.in_order else "THE ACCOUNTS ARE NOT IN ORDER")
    return 0 if result.in_order else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("stopped")
