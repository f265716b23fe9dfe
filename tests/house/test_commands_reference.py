"""docs/commands.md is generated; it cannot lag behind the commands."""

import subprocess
import sys

from tests.house.source import ROOT


def test_the_reference_of_the_commands_is_what_they_say_now():
    generated = subprocess.run(
        [sys.executable, "scripts/cli_reference.py"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert (ROOT / "docs" / "commands.md").read_text() == generated, "run: make reference"
