"""Where `scripts/services` keeps what it fetches and runs, and Maven, which fetches it. Standard library only."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STATE = ROOT / ".services"
CACHE = STATE / "cache"


class Missing(Exception):
    """The programs of a server cannot be had; the words say what to install."""


def have_maven() -> bool:
    """Return whether Maven is on this machine."""
    return shutil.which("mvn") is not None


def maven(what: str, *arguments: str) -> None:
    """Run Maven, which checks what it fetches against the checksums in its repository.

    Args:
        what: what is fetched, for the error.
        arguments: a goal and its options.

    Raises:
        Missing: it could not be fetched.
    """
    CACHE.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        ["mvn", "-q", "-B", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise Missing(f"{what}: Maven could not fetch it: {done.stdout[-1000:]}")
