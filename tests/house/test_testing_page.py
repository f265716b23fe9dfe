"""docs/testing.md is an application and its tests: they are run as a user would run them, warnings being errors."""

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.house.source import ROOT

PAGE = (ROOT / "docs" / "testing.md").read_text()
FILES = dict(re.findall(r"^```python\n# (\w+\.py)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE))
NOTHING = """
import sys


def test_nothing():
    assert not {"sqlalchemy", "outbox"} & sys.modules.keys()
"""


def _pytest(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "pytest", "-p", "no:cacheprovider", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def _write(folder: Path, files: dict[str, str]) -> None:
    (folder / "pytest.ini").write_text("[pytest]\naddopts = --strict-config\n")
    for name, body in files.items():
        (folder / name).write_text(body)


def test_the_application_and_its_tests_pass(tmp_path: Path):
    _write(tmp_path, FILES)
    tests = sum(body.count("def test_") for body in FILES.values())
    done = _pytest(tmp_path, "-W", "error", "-q")
    assert f"{tests} passed" in done.stdout, done.stdout + done.stderr
    assert tests == 7


def test_the_fixtures_are_found_by_name_and_none_is_automatic(tmp_path: Path):
    _write(tmp_path, {"test_nothing.py": NOTHING})
    done = _pytest(tmp_path, "-W", "error", "-q", "--setup-show")
    assert "1 passed" in done.stdout, done.stdout + done.stderr
    listed = _pytest(tmp_path, "--fixtures", "-q").stdout
    assert {"outbox_record", "outbox_recording"} <= set(re.findall(r"^(outbox_\w+)", listed, re.MULTILINE))


def test_a_failure_says_what_was_recorded(tmp_path: Path):
    test = FILES["test_recording.py"].replace('one(key="42")', 'one(type="OrderPaid")')
    _write(tmp_path, {**FILES, "test_recording.py": test})
    said = _pytest(tmp_path, "-q", "test_recording.py").stdout
    assert "expected one message of type 'OrderPaid', found 0." in said
    assert "1. topic='orders' type='orders' key='42' hello" in said


def test_the_page_shows_every_file_once():
    assert list(FILES) == ["shop.py", "conftest.py", "test_sending.py", "test_recording.py", "test_handling.py"]
