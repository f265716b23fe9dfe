"""Running the demos of the examples as somebody does who ends them half-way."""

import os
import signal
import subprocess
import tempfile
from pathlib import Path

from databases import wait_until

ROOT = Path(__file__).resolve().parents[2]
DEMO_SECONDS = 280  # a machine that is busy with other tests may need many times what the README says


def interrupted_demo(command: list[str], *, when: str, number: signal.Signals) -> None:
    """Start a demo, end it as it prints a line with certain words, and see that nothing of it is left."""
    # Not in pytest's own folder: the user that the server runs as cannot enter that.
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "TMPDIR": name},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            assert process.stdout is not None
            assert any(when in line for line in process.stdout)
            if number == signal.SIGINT:
                os.killpg(process.pid, number)  # as a terminal does: the whole group hears it
            else:
                process.send_signal(number)
            _, talk = process.communicate(timeout=DEMO_SECONDS / 2)
        finally:
            process.kill()
            process.communicate()
        assert (process.returncode, talk) == (1, "stopped\n")
        wait_until(lambda: not _in_group(process.pid), "all its processes are gone", 30)
        left = [file.name for file in folder.iterdir() if not file.name.startswith("postgresql-programs-")]
        assert left == []


def _in_group(group: int) -> list[int]:
    """Return the living processes of a process group."""
    asked = subprocess.run(["ps", "-A", "-o", "pid=,pgid=,stat="], capture_output=True, text=True, check=True).stdout
    found = [line.split() for line in asked.splitlines()]
    return [int(pid) for pid, its, state in found if int(its) == group and not state.startswith("Z")]
