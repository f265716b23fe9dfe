"""What the import contracts in pyproject.toml cannot say. `make check` holds those by lint-imports."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from relay.logs import registry
from tests.house.source import ROOT, all_files, imports, package_files, shown


def test_the_contracts_name_every_module_of_relay_but_its_logs():
    """A module that is missing in the list could be imported by the inbox unseen."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    forbidden = next(contract for contract in contracts if contract["id"] == "road")["forbidden_modules"]
    children = [
        child for child in (ROOT / "relay").iterdir() if child.suffix == ".py" or (child / "__init__.py").exists()
    ]
    modules = {f"relay.{child.stem}" for child in children} - {"relay.logs", "relay.__init__"}
    assert set(forbidden) == modules, "pyproject.toml, contract 'road': forbidden_modules"


def test_the_contracts_name_every_adapter():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    named = next(contract for contract in contracts if contract["id"] == "adapters")["modules"]
    assert set(named) == set(registry._OURS.values()), "pyproject.toml, contract 'adapters': modules"


def test_nothing_of_ours_comes_through_the_front_door_of_relay():
    """`relay/__init__.py` re-exports lazily: an import through it would hide a circle from the contracts."""
    found = [
        f"{shown(file)}:{line}"
        for file in package_files()
        for line, module in imports(file)
        if module == "relay" and file != ROOT / "relay" / "__init__.py"
    ]
    assert found == []


@pytest.mark.parametrize(
    ("module", "stem"), [("psycopg", "postgresql"), ("confluent_kafka", "kafka"), ("alembic", "migrations")]
)
def test_a_driver_is_imported_only_in_files_named_after_its_server(module: str, stem: str):
    found = [
        f"{shown(file)}:{line}"
        for file in package_files()
        for line, imported in imports(file)
        if imported.split(".")[0] == module and stem not in {file.stem, file.parent.name}
    ]
    assert found == []


LOADED = """
import json, sys
before = set(sys.modules)
import {module}
print(json.dumps(sorted(set(sys.modules) - before)))
"""
ALLOWED = {"sqlalchemy", "opentelemetry", "uuid_utils", "typing_extensions", "greenlet", "outbox"}
COMPILED = {"cython_runtime", "_cython_"}  # what SQLAlchemy's compiled parts leave in sys.modules


def _loads(module: str) -> set[str]:
    """Return what an import of a module brings into a fresh process."""
    said = subprocess.run(
        [sys.executable, "-c", LOADED.format(module=module)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(json.loads(said.stdout))


def test_import_outbox_loads_nothing_that_an_application_did_not_ask_for():
    loaded = {name.split(".")[0] for name in _loads("outbox")}
    foreign = loaded - ALLOWED - sys.stdlib_module_names
    assert {name for name in foreign if not name.startswith((*COMPILED, "_sysconfigdata"))} == set()


def test_import_outbox_does_not_load_what_the_processes_share_nor_the_testing_kit():
    assert {name for name in _loads("outbox") if name.startswith(("outbox.process", "outbox.testing"))} == set()


def test_import_relay_logs_does_not_load_the_relay():
    loaded = {name for name in _loads("relay.logs") if name.startswith("relay.")}
    assert {name for name in loaded if not name.startswith("relay.logs")} == set()


def test_every_file_is_found_by_these_tests():
    """A wrong folder here would make every test of the house pass."""
    assert len(package_files()) > 20
    assert Path(__file__).resolve() in all_files()
