"""Starting our processes as users do, and doing to them what operating systems do."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
WAIT_SECONDS = 90.0


RELAY = "from relay.cli import main; main()"
SMALL_CHUNKS = "from relay.reader import contract; contract.MOST_ENTRIES_PRODUCED = 10; " + RELAY
"""A relay that needs several chunks for what was written since its last look, and so has the server read ahead."""


class Process:
    """A Python process of ours, with what it says kept in a file."""

    def __init__(self, said: Path, *arguments: str, **environment: str) -> None:
        self.said = said
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        with said.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONPATH": path, **environment},
            )

    @property
    def pid(self) -> int:
        """Return the process's id."""
        return self._process.pid

    def is_running(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        """SIGKILL, and wait for its end. Again: no effect."""
        self._process.kill()
        self._process.wait(WAIT_SECONDS)

    def terminate(self) -> None:
        """SIGTERM: it finishes what is in hand, and ends."""
        self._process.terminate()

    def stop(self) -> None:
        """SIGSTOP: it stands still, with its connections open."""
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT: it goes on, knowing nothing of the time that passed."""
        self._process.send_signal(signal.SIGCONT)

    def ended(self, seconds: float = WAIT_SECONDS) -> int:
        """Wait for its end; return its exit code, negative for a signal."""
        return self._process.wait(seconds)

    def words(self) -> str:
        """Return what it and those before it in the same file have said."""
        return self.said.read_text(errors="replace")


def start_relay(
    said: Path,
    database: str,
    *,
    log: str = "",
    lease: float = 2.0,
    failpoint: str = "",
    once: bool = False,
    delivery: str = "",
    program: str = RELAY,
) -> Process:
    """Start `relay run`.

    Args:
        said: the file for what it says.
        database: the outbox's URL.
        log: the log's URL; without one, a built-in log in the outbox's own database.
        lease: in seconds.
        failpoint: where it is to end itself; `NAME:3` is the third time there.
        once: whether it ends when everything is moved.
        delivery: the guarantee; the command's own default without one.
        program: what Python is to run.
    """
    places = ["--database", database, "--log", log or database]
    options = ["run", *places, "--lease", f"{lease:g}", *(["--once"] if once else [])]
    options += ["--delivery", delivery] if delivery else []
    environment = {"RELAY_FAILPOINT": failpoint} if failpoint else {}
    return Process(said, "-c", program, *options, **environment)


def relay_status(database: str) -> list[dict[str, Any]]:
    """Return what `relay status --json` prints.

    Raises:
        CalledProcessError: it ended with another exit code than 0.
    """
    done = subprocess.run(
        [sys.executable, "-c", RELAY, "status", "--json", "--database", database],
        capture_output=True,
        text=True,
        check=True,
        timeout=WAIT_SECONDS,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found
