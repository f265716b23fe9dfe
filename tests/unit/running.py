"""Runs a command inside the test's own process, as its shell would: much quicker than starting Python for each."""

import io
import os
import subprocess
from contextlib import redirect_stderr, redirect_stdout
from importlib import import_module
from unittest import mock

import pytest

from outbox.process.passwords import _known

_OURS = ("OUTBOX_", "RELAY_", "INBOX_", "DATABASE_URL")


def run_here(program: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Return how the command ended and what it printed."""
    outside = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.dict(os.environ, {**outside, **environment}, clear=True),
        mock.patch("sys.argv", [program, *arguments]),
        redirect_stdout(out),
        redirect_stderr(err),
        pytest.raises(SystemExit) as end,
    ):
        import_module(f"{program}.cli").main()
    _known.clear()
    code = end.value.code
    assert isinstance(code, int)
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


def refused(result: subprocess.CompletedProcess[str], code: int, words: str) -> None:
    """See that a command ended with this code and one line that has these words, and no password."""
    assert result.returncode == code, result.stderr
    lines = [line for line in result.stderr.splitlines() if " info: " not in line]
    assert len(lines) == 1, result.stderr
    assert " error: " in f" {lines[0]}" and words in lines[0], result.stderr
    assert "secret" not in result.stdout + result.stderr
