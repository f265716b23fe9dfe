"""docs/commands.md is generated; it cannot lag behind the commands."""

import inspect
import subprocess
import sys
from importlib import import_module
from typing import get_type_hints

import pytest

from outbox.process.durations import parse_duration
from tests.house.source import ROOT


def test_the_reference_of_the_commands_is_what_they_say_now():
    generated = subprocess.run(
        [sys.executable, "scripts/cli_reference.py"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert (ROOT / "docs" / "commands.md").read_text() == generated, "run: make reference"


@pytest.mark.parametrize("program", ["relay", "inbox"])
def test_a_retention_that_is_shown_is_the_one_that_counts(program: str):
    command = inspect.signature(import_module(f"{program}.cli").run).parameters["retain"]
    declared = get_type_hints(import_module(f"{program}.cli").run, include_extras=True)["retain"].__metadata__[0]
    assert parse_duration(declared.show_default) == command.default
