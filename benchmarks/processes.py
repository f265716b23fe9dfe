"""Processes that are measured while they run."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.ground import Ground
from benchmarks.measuring import Sample

SAMPLING_SECONDS = 0.02
MOST_SECONDS = 1_200.0


class Process:
    """A task of `benchmarks.worker`, in a process of its own."""

    def __init__(self, task: str, **arguments: Any) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", task, json.dumps(arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def cpu_seconds(self) -> float:
        """Return what it has used until now."""
        threads = Path(f"/proc/{self._process.pid}/task").iterdir()
        return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9

    def resident_bytes(self) -> list[int]:
        """Return its memory over time, until it ends."""
        found = []
        while self._process.poll() is None:
            status = Path(f"/proc/{self._process.pid}/status").read_text()
            if "VmRSS:" in status:
                found.append(int(status.partition("VmRSS:")[2].split()[0]) * 1024)
            time.sleep(SAMPLING_SECONDS)
        return found

    def end(self) -> dict[str, Any]:
        """Tell it to end, and return what it took.

        Raises:
            RuntimeError: it failed; standard error says why.
        """
        try:
            said, _ = self._process.communicate("", timeout=MOST_SECONDS)
        except BaseException:  # it must not outlive a run that is stopped
            self._process.kill()
            self._process.wait()
            raise
        if self._process.returncode:
            raise RuntimeError(f"a measured process failed with exit code {self._process.returncode}")
        found: dict[str, Any] = json.loads(said)
        return found


def measured(ground: Ground, amount: int, task: str, *, memory: bool = False, **arguments: Any) -> Sample:
    """Run a task to its end, and return what it took to do so many messages."""
    ground.settle()
    server = ground.cpu_seconds()
    process = Process(task, **arguments)
    resident = process.resident_bytes() if memory else []
    took = process.end()
    return Sample(
        took["seconds"],
        amount,
        took["cpu_seconds"],
        ground.cpu_seconds() - server,
        int(took["peak_bytes"]),
        tuple(resident),
    )
