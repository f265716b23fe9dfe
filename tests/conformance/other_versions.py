"""Other versions of libraries, each in a folder of its own that a subprocess puts first on its path."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / ".services" / "python"


def installed(*requirements: str) -> list[str]:
    """Return the folders with these versions, as `alembic==1.17.2`; installed once, and kept.

    Skips the test where no package index answers; under OUTBOX_TEST_REQUIRE=all that is an error.
    """
    return [str(_folder(one)) for one in requirements]


def _folder(requirement: str) -> Path:
    folder = FOLDER / f"{requirement.replace('==', '-')}-{sys.implementation.cache_tag}"
    if folder.exists():
        return folder
    FOLDER.mkdir(parents=True, exist_ok=True)
    making = tempfile.mkdtemp(dir=FOLDER)
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps"]
    done = subprocess.run(
        [*command, "--target", making, requirement], capture_output=True, text=True, timeout=120, check=False
    )
    if done.returncode:
        shutil.rmtree(making)
        why = f"{requirement} cannot be installed: {done.stderr.strip()[-300:]}"
        if "all" in os.environ.get("OUTBOX_TEST_REQUIRE", ""):
            pytest.fail(why)
        pytest.skip(why)
    try:
        Path(making).rename(folder)
    except OSError:  # another test process was faster
        shutil.rmtree(making)
    return folder
