import subprocess
import sys
from importlib.metadata import EntryPoint

import pytest

from outbox.errors import ConfigurationError
from relay.logs import LogOptions, open_log, registry


def open_of_third_party(url: str, options: LogOptions) -> object:
    return (url, options)


def open_without_its_package(url: str, options: LogOptions) -> object:
    raise ModuleNotFoundError("No module named 'carrier_pigeon'", name="carrier_pigeon.coop")


def open_with_a_bug_of_ours(url: str, options: LogOptions) -> object:
    raise ModuleNotFoundError("No module named 'relay.nothing'", name="relay.nothing")


@pytest.fixture
def third_party(monkeypatch: pytest.MonkeyPatch):
    def register(name: str) -> None:
        entry = EntryPoint("pigeon", f"{__name__}:{name}", registry.ENTRY_POINTS)
        monkeypatch.setattr(registry, "entry_points", lambda group: [entry] if group == registry.ENTRY_POINTS else [])

    return register


@pytest.mark.parametrize(
    ("url", "scheme"),
    [
        ("memory://orders", "memory"),
        ("postgresql://h/d", "postgresql"),
        ("postgresql+asyncpg://h/d", "postgresql"),
        ("postgres://h/d", "postgresql"),
        ("SQLite+aiosqlite:///f.db", "sqlite"),
        ("rabbitmq-stream://h", "rabbitmq-stream"),
    ],
)
def test_a_scheme_is_known_without_its_driver(url: str, scheme: str):
    assert registry.scheme_of(url) == scheme


def test_an_unknown_scheme_is_refused_with_the_known_ones(third_party):
    third_party("open_of_third_party")
    with pytest.raises(
        ConfigurationError, match=r"unknown log scheme 'smoke'.*memory://, pigeon://, postgresql://, sqlite://"
    ):
        open_log("smoke://signal")


@pytest.mark.parametrize("url", ["", "events.db", "user:secret@host/db", "://x", "smoke:x"])
def test_a_url_without_a_scheme_is_refused_and_not_shown(url: str):
    with pytest.raises(ConfigurationError, match="no scheme") as refused:
        open_log(url)
    assert "secret" not in str(refused.value)


def test_a_third_party_opens_its_own_scheme_by_entry_point(third_party):
    third_party("open_of_third_party")
    options = LogOptions(schema="s", prefix="p_")
    assert open_log("pigeon+fast://roof?x=1", options) == ("pigeon+fast://roof?x=1", options)


def test_a_package_that_an_adapter_misses_is_named(third_party):
    third_party("open_without_its_package")
    with pytest.raises(ConfigurationError, match=r"pigeon://.*'carrier_pigeon'.*pip install carrier_pigeon"):
        open_log("pigeon://roof")


def test_a_missing_dependency_of_ours_names_the_extra(monkeypatch: pytest.MonkeyPatch):
    def missing(name: str) -> object:
        raise ModuleNotFoundError("No module named 'psycopg'", name="psycopg")

    monkeypatch.setattr(registry, "import_module", missing)
    with pytest.raises(ConfigurationError, match=r'pip install "outbox-relay-inbox\[postgresql\]"'):
        open_log("postgresql://h/d")


def test_a_module_of_ours_that_is_missing_is_not_blamed_on_the_installation(third_party):
    third_party("open_with_a_bug_of_ours")
    with pytest.raises(ModuleNotFoundError):
        open_log("pigeon://roof")


def test_opening_one_log_loads_no_other_adapter():
    code = (
        "import sys; from relay.logs import open_log; before = set(sys.modules);"
        "assert 'relay.logs.memory' not in before; open_log('memory://x');"
        "assert not {name for name in sys.modules if name.startswith(('relay.logs.builtin', 'psycopg', 'aiosqlite'))}"
    )
    done = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}, check=False)
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("memory://", "needs a name"),
        ("memory://x?partition=3", "unknown setting 'partition'"),
        ("memory://x?partitions=0", "partitions='0'"),
        ("memory://x?partitions=-1", "partitions='-1'"),
        ("memory://x?partitions=many", "partitions='many'"),
        ("memory://x?partitions=", "partitions=''"),
    ],
)
def test_a_memory_url_that_cannot_be_read_is_refused(url: str, words: str):
    with pytest.raises(ConfigurationError, match=words):
        open_log(url)


def test_one_name_is_one_log_and_another_name_another():
    assert open_log("memory://one").identity() == open_log("memory://one?partitions=2").identity()
    assert open_log("memory://one").identity() != open_log("memory://two").identity()
