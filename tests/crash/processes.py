"""Starting our processes as users do, and doing to them what operating systems do."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]
WAIT_SECONDS = 30.0

RELAY = """
import json, logging, sys
from relay import Relay
logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
settings = json.loads(sys.argv[1])
once = settings.pop("once", False)
Relay(settings.pop("database"), settings.pop("log"), **settings).run(once=once)
"""


def wait_until(holds: Callable[[], bool], what: str, seconds: float = WAIT_SECONDS) -> None:
    """Wait on a condition.

    Raises:
        TimeoutError: it does not hold after so many seconds; the words say what did not.
    """
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds:g} s: {what}")
        time.sleep(0.01)


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

    def is_running(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        """SIGKILL, and wait for its end. Again: no effect."""
        self._process.kill()
        self._process.wait(WAIT_SECONDS)

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
    said: Path, database: str, log: str | None = None, *, failpoint: str = "", **settings: object
) -> Process:
    """Start a relay as a process; `log` is the built-in log of the same database by default.

    Args:
        said: the file for what it says.
        database: the outbox's URL.
        log: the log's URL.
        failpoint: where it is to end itself.
        settings: of `Relay`, and `once`.
    """
    text = json.dumps({"database": database, "log": log or database, **settings})
    return Process(said, "-c", RELAY, text, **({"RELAY_FAILPOINT": failpoint} if failpoint else {}))
