"""The README is the first thing that users run: what it shows is run here, and what it prints is compared."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.house.source import ROOT

README = (ROOT / "README.md").read_text()
BLOCK = re.compile(r"^```(?P<language>\w+)\n(?P<body>.*?)^```$", re.DOTALL | re.MULTILINE)
FILE = re.compile(r"# (?P<name>\w+\.py)\n")
LONGEST_EXAMPLE = 40


def _blocks(language: str) -> list[str]:
    return [found["body"] for found in BLOCK.finditer(README) if found["language"] == language]


def _example_files() -> dict[str, str]:
    """Return the Python blocks that begin with the name of a file."""
    return {found["name"]: body for body in _blocks("python") if (found := FILE.match(body))}


def _conversations() -> list[list[tuple[str, str]]]:
    """Return each console block as pairs of a command and what it prints on stdout."""
    conversations = []
    for block in _blocks("console"):
        parts = re.split(r"^\$ (.*)\n", block, flags=re.MULTILINE)[1:]
        conversations.append(list(zip(parts[::2], parts[1::2], strict=True)))
    return conversations


def _said(command: str, folder: Path) -> str:
    outside = {
        name: value for name, value in os.environ.items() if not name.startswith(("OUTBOX_", "RELAY_", "INBOX_"))
    }
    path = f"{Path(sys.executable).parent}{os.pathsep}{outside['PATH']}"
    environment = {**outside, "PATH": path, "PYTHONPATH": str(ROOT), "COLUMNS": "120"}
    done = subprocess.run(
        ["sh", "-c", command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


def test_the_examples_of_the_readme_print_what_it_says(tmp_path: Path):
    for name, body in _example_files().items():
        (tmp_path / name).write_text(body)
    conversation = next(
        pairs for pairs in _conversations() if any(f"python {name}" in dict(pairs) for name in _example_files())
    )
    for command, printed in conversation:
        assert _said(command, tmp_path).rstrip() == printed.rstrip(), command


def test_the_example_of_both_sides_is_short():
    assert all(len(body.splitlines()) <= LONGEST_EXAMPLE for body in _example_files().values())
    assert _example_files()


@pytest.mark.parametrize("target", re.findall(r"^\$ make (\S+)", README, re.MULTILINE))
def test_the_make_targets_that_the_readme_names_exist(target: str):
    assert re.search(rf"^{re.escape(target)}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "examples").rglob("*.md"))]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: str(document.relative_to(ROOT)))
def test_links_inside_the_project_lead_somewhere(document: Path):
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", document.read_text())
    local = [link for link in links if "://" not in link]
    assert [link for link in local if not (document.parent / link).exists()] == []
