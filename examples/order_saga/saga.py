"""The processes of the saga: for relays and inboxes just the commands that you would type."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from examples.order_saga.check import Verdict, check
from examples.order_saga.settings import Settings
from examples.order_saga.stage import SERVICES, Stage

PROGRAMS = Path(sys.executable).parent
WRITERS = ("orders customers", "shipping warehouse")
RELAYS = tuple(f"{service} relay" for service in SERVICES)
INBOXES = tuple(f"{service} inbox" for service in SERVICES)
STOP_SECONDS = 20.0


class Saga:
    """The processes by name, with what they say kept in files."""

    def __init__(self, stage: Stage, settings: Settings, folder: Path) -> None:
        self.stage = stage
        self.settings = settings
        self.folder = folder
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def command(self, service: str, does: str) -> list[str]:
        """Return the command line of a service's process: its relay, its inbox, or what its module does."""
        if does == "relay":
            return [str(PROGRAMS / "relay"), "run"]
        if does == "inbox":
            return [str(PROGRAMS / "inbox"), "run", f"examples.order_saga.{service}:inbox"]
        return [sys.executable, "-m", f"examples.order_saga.{service}", does]

    def environment(self, service: str) -> dict[str, str]:
        """Return the variables that a service's processes are started with."""
        own = replace(
            self.settings, database_url=self.stage.database(service), topic_prefix=self.stage.topic_prefix
        ).environment()
        road = {
            "RELAY_LOG": self.stage.log,
            "RELAY_DELIVERY": self.settings.delivery,  # the built-in log is written exactly once, whatever this says
            "RELAY_LEASE": "2",  # how long another relay waits for one that does not answer; 10 if you say nothing
            "INBOX_LOG": self.stage.log,
            "INBOX_GROUP": f"{self.stage.topic_prefix}{service}",
        }
        return {**os.environ, **own, **road}

    def prepare(self) -> None:
        """Make the tables of the services, and those of the log where it is a database."""
        if not self.stage.log.startswith("kafka:"):
            self.run([str(PROGRAMS / "outbox"), "init", "--log", self.stage.log], "orders")
        for service in SERVICES:
            self.run(self.command(service, "init"), service)

    def run(self, arguments: Sequence[str], service: str) -> None:
        """Run a command of a service to its end."""
        done = subprocess.run(
            arguments, env=self.environment(service), check=False, capture_output=True, text=True, timeout=60
        )
        if done.returncode:
            raise SystemExit(f"{' '.join(arguments)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")

    def start(self, name: str, *options: str) -> subprocess.Popen[bytes]:
        """Start a process: "orders relay", "shipping warehouse". "stock inbox 2" is one more of a kind."""
        service, does = name.split()[:2]
        with self.said(name).open("ab") as said:
            process = subprocess.Popen(
                [*self.command(service, does), *options],
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                env=self.environment(service),
                start_new_session=True,  # a Ctrl-C at our terminal is for us: we end them in good order
            )
        self.running[name] = process
        return process

    def complain_if_one_failed(self) -> None:
        for name, process in self.running.items():
            ended = process.poll()
            if ended:
                raise SystemExit(f"{name} ended with {ended}:\n{self.words(name)}")

    def stop(self) -> None:
        """Tell every process to end (SIGTERM: it finishes what is in hand), and wait until it has."""
        for process in self.running.values():
            process.send_signal(signal.SIGTERM)
            process.send_signal(signal.SIGCONT)
        for process in self.running.values():
            try:
                process.wait(timeout=STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.running.clear()

    def checked(self) -> Verdict:
        """Return what the check says now; the built-in log is always written exactly once."""
        exactly_once = self.settings.stage == "embedded" or self.settings.delivery == "exactly-once"
        return check(
            self.stage.databases, self.stage.log, exactly_once=exactly_once, topic_prefix=self.stage.topic_prefix
        )

    def said(self, name: str) -> Path:
        return self.folder / f"{name.replace(' ', '-')}.txt"

    def words(self, name: str) -> str:
        return self.said(name).read_text(errors="replace")[-3000:]
