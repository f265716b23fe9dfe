"""The project's own source, as the house tests look at it."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("outbox", "relay", "inbox")


def package_files() -> list[Path]:
    """Return every Python file of the three packages."""
    return sorted(file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))


def all_files() -> list[Path]:
    """Return every Python file of the project."""
    folders = (*PACKAGES, "tests", "scripts", "examples", "benchmarks")
    return sorted(file for folder in folders for file in (ROOT / folder).rglob("*.py"))


def shown(file: Path) -> str:
    """Return how a file is called in a finding."""
    return str(file.relative_to(ROOT))


@cache
def tree(file: Path) -> ast.Module:
    """Return a file's syntax tree."""
    return ast.parse(file.read_text(), filename=str(file))


def imports(file: Path) -> Iterator[tuple[int, str]]:
    """Yield the line and the module of each import, those inside functions too."""
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.lineno, node.module
