"""What the demos here share, and a service does not need: servers of their own, and processes that are ended."""

import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Self
from uuid import uuid4

import psycopg
from psycopg import sql

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "scripts"))  # programs, and no package

from fetched import Missing
from kafka_server import KafkaServer
from local_kafka import programs_of_kafka
from postgresql_server import PostgresqlServer, free_port

__all__ = [
    "PROGRAMS",
    "ROOT",
    "Failed",
    "Processes",
    "broker",
    "folder",
    "free_port",
    "postgresql",
    "sigterm_as_ctrl_c",
]

PROGRAMS = Path(sys.executable).parent
PATIENCE_SECONDS = 15


class Failed(Exception):
    """The demo cannot go on; its words are for whoever runs it."""


class Processes:
    """The processes of a demo, by name, with what they say kept in files.

    Leaving the block ends all of them: by SIGTERM, and those that do not go by SIGKILL.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, *command: str, environment: Mapping[str, str] | None = None) -> int:
        """Start a program of this environment (`relay`, `python`, ...); return its process id."""
        with self.said(name).open("ab") as said:
            self._running[name] = subprocess.Popen(
                [str(PROGRAMS / command[0]), *command[1:]],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
            )
        return self._running[name].pid

    def kill(self, name: str) -> int:
        """Kill a process as a crash would (SIGKILL): it gets no word of it. Return who died."""
        victim = self._running.pop(name)
        victim.kill()
        victim.wait()
        return victim.pid

    def end(self, name: str) -> int:
        """Ask a process to end (SIGTERM), and wait until it has; return who ended."""
        process = self._running.pop(name)
        process.send_signal(signal.SIGTERM)
        _wait(process)
        return process.pid

    def complain_if_one_ended(self) -> None:
        """Say which process ended that should not have, with the last of what it said.

        Raises:
            Failed: one ended.
        """
        for name, process in self._running.items():
            code = process.poll()
            if code is not None:
                raise Failed(f"{name} ended with {code}:\n{self.said(name).read_text()[-3000:]}")

    def said(self, name: str) -> Path:
        """Return the file with what a process said."""
        return self._folder / f"{name}.log"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._running.values():
            process.send_signal(signal.SIGTERM)
        for process in self._running.values():
            _wait(process)


def _wait(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(timeout=PATIENCE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextmanager
def folder() -> Iterator[Path]:
    """Make a folder that is deleted afterwards."""
    with tempfile.TemporaryDirectory(prefix="demo-") as name:
        yield Path(name)


@contextmanager
def postgresql(*names: str, url: str = "") -> Iterator[dict[str, str]]:
    """Make databases, and yield their URLs by these names; they are deleted afterwards.

    Args:
        names: what they are called here.
        url: of a server that is there; without it, one is started for the demo alone.
    """
    with _server(url) as server_url, psycopg.connect(server_url, autocommit=True) as connection:
        made = {name: f"demo_{uuid4().hex[:8]}_{name}" for name in names}
        for database in made.values():
            connection.execute(sql.SQL("create database {}").format(sql.Identifier(database)))
        where = server_url.rpartition("/")[0].replace("postgresql://", "postgresql+psycopg://")
        try:
            yield {name: f"{where}/{database}" for name, database in made.items()}
        finally:
            for database in made.values():
                connection.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(database)))


@contextmanager
def _server(url: str) -> Iterator[str]:
    if url:
        yield url.replace("+psycopg", "")
        return
    server = PostgresqlServer()
    try:
        yield server.start().url()
    finally:
        server.delete()


@contextmanager
def broker() -> Iterator[str]:
    """Start a Kafka for a demo alone; yield its URL. It is deleted afterwards.

    Raises:
        Failed: there is no Java here, or no Maven to fetch Kafka's programs with.
    """
    try:
        server = KafkaServer(programs=programs_of_kafka())
    except Missing as missing:
        raise Failed(str(missing)) from None
    try:
        yield server.start().url()
    finally:
        server.delete()


@contextmanager
def sigterm_as_ctrl_c() -> Iterator[None]:
    """Let SIGTERM end a demo as Ctrl-C does: through its `finally` blocks."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
