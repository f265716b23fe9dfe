"""Rules of the house that a reader would otherwise have to remember."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.house.source import PACKAGES, ROOT, all_files, package_files, shown, tree

LONGEST_FILE = 400
LONGEST_TEST_FILE = 600
AVOIDED = {"manager", "service", "processor", "helper", "util", "common", "base", "misc"}
AVOIDED |= {f"{word}s" for word in AVOIDED} | {"utilities", "bases"}
AVOIDED_FOR_OURS = {"engine", "engines"}  # SQLAlchemy's word; a function may speak of it, a module or class of ours not
GIVEN_BY_OTHERS = {"bind_processor", "result_processor"}  # SQLAlchemy calls these methods by name
UNFINISHED = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X)\b|NotImplemented" + r"Error|To be " + r"written")
FRONT_DOOR_LONGEST = 50


def test_no_file_is_longer_than_a_reader_can_hold():
    too_long = {}
    for file in all_files():
        longest = LONGEST_TEST_FILE if file.is_relative_to(ROOT / "tests") else LONGEST_FILE
        length = len(file.read_text().splitlines())
        if length > longest:
            too_long[shown(file)] = length
    assert too_long == {}


def test_the_front_doors_are_tables_of_contents():
    doors = [ROOT / package / "__init__.py" for package in PACKAGES]
    lengths = {shown(door): len(door.read_text().splitlines()) for door in doors}
    assert {name: length for name, length in lengths.items() if length > FRONT_DOOR_LONGEST} == {}


def test_no_type_is_ignored_in_the_packages():
    marked = [shown(file) for file in package_files() if re.search(r"#\s*type:\s*ignore", file.read_text())]
    assert marked == []


def test_nothing_is_marked_unfinished():
    marked = [
        f"{shown(file)}: {found.group()}" for file in all_files() if (found := UNFINISHED.search(file.read_text()))
    ]
    assert marked == []


def _words(name: str) -> set[str]:
    return {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)}


def _names(file: Path) -> Iterator[tuple[str, set[str]]]:
    """Yield each name that a file gives, with the words to be avoided in it."""
    module = file.parent.name if file.stem == "__init__" else file.stem
    yield module, AVOIDED | AVOIDED_FOR_OURS
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.ClassDef):
            yield node.name, AVOIDED | AVOIDED_FOR_OURS
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name not in GIVEN_BY_OTHERS:
            yield node.name, AVOIDED


def test_names_say_what_a_thing_is():
    found = [
        f"{shown(file)}: {name}" for file in package_files() for name, avoided in _names(file) if _words(name) & avoided
    ]
    assert found == []


@pytest.mark.parametrize("name", ["EventManager", "base", "make_utils", "HTTPService", "common_words"])
def test_the_test_of_names_finds_what_it_looks_for(name: str):
    assert _words(name) & AVOIDED


@pytest.mark.parametrize("package", PACKAGES)
def test_type_checkers_of_users_see_our_types(package: str):
    assert (ROOT / package / "py.typed").exists()


def _tests() -> Iterator[tuple[str, str, str]]:
    """Yield file, name and docstring of every test."""
    for file in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.walk(tree(file)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                yield shown(file), node.name, ast.get_docstring(node) or ""


def test_tests_of_an_invariant_say_which():
    wrong = [
        f"{file}: {name}"
        for file, name, said in _tests()
        if (name.startswith("test_invariant") or "invariant" in Path(file).stem or said.startswith("INVARIANT"))
        and not re.match(r"INVARIANT I[1-8](, I[1-8])*:", said)
    ]
    assert wrong == []


@pytest.mark.parametrize("invariant", ["I1", "I2", "I3", "I4", "I5", "I6"])
def test_every_invariant_has_a_test(invariant: str):
    shown_by = [name for _, name, said in _tests() if re.match(rf"INVARIANT [^:]*\b{invariant}\b[^:]*:", said)]
    assert shown_by


def test_every_test_has_a_name_of_its_own():
    """Two test files of one name in folders that are no packages cannot be collected together.

    Nor can what they import: whichever comes first is what all of them get.
    """
    files = [file.name for file in (ROOT / "tests").rglob("*.py") if file.name != "conftest.py"]
    assert sorted(files) == sorted(set(files))
