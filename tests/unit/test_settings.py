"""Option beats environment beats file; what nobody knows is refused by name."""

import importlib
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from outbox.cli import app
from outbox.errors import ConfigurationError
from outbox.process.settings import read_settings

KEYS = {"database", "log", "name", "topics", "once", "from_start"}


def settings(folder: Path, text: str) -> Path:
    file = folder / "settings.toml"
    file.write_text(text)
    return file


def test_the_table_of_a_command_beats_what_all_share(tmp_path: Path) -> None:
    file = settings(
        tmp_path, 'log = "sqlite:///all.db"\nname = "top"\n[relay]\nlog = "sqlite:///relay.db"\nonce = true\n'
    )
    assert read_settings(file, "relay", KEYS) == {"log": "sqlite:///relay.db", "name": "top", "once": True}


def test_the_tables_of_other_commands_are_theirs_to_judge(tmp_path: Path) -> None:
    file = settings(tmp_path, 'schema = "events"\n[inbox]\ngroup = "billing"\nnonsense = 1\n')
    assert read_settings(file, "relay", KEYS) == {"schema": "events"}


def test_a_dash_is_as_good_as_an_underscore(tmp_path: Path) -> None:
    assert read_settings(settings(tmp_path, "[relay]\nfrom-start = true\n"), "relay", KEYS) == {"from_start": True}


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("databse = 'x'", "unknown key databse in"),
        ("[relay]\nleese = 10\nfoo = 1", "unknown key relay.leese, relay.foo in"),
        ("group = 'x'", "unknown key group in"),
        ("[replay]\nx = 1", "unknown key replay in"),
        ("relay = 3", "unknown key relay in"),
        ("database = ['a']", "database in .* must be a text, a number, true or false"),
        ("[relay]\ntopics = 2024-01-01", "topics in .* must be a text"),
        ("database = ", "is no TOML"),
        ("a = 1\na = 2", "is no TOML"),
    ],
)
def test_what_nobody_knows_in_the_file_is_refused_by_name(tmp_path: Path, text: str, named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        read_settings(settings(tmp_path, text), "relay", KEYS)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"absent.toml cannot be read"):
        read_settings(tmp_path / "absent.toml", "relay", KEYS)


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_settings(file, "relay", KEYS)


def made_by(arguments: list[str], environment: dict[str, str]) -> str:
    """Return which prefix `outbox init --sql` uses: a setting seen from outside."""
    result = CliRunner().invoke(app, ["init", "--sql", "--dialect", "sqlite", *arguments], env=environment)
    assert result.exception is None, result.exception
    found = re.search(r"CREATE TABLE (\w*)log_identity", result.stdout)
    assert found is not None
    return found[1]


def test_option_beats_environment_beats_file(tmp_path: Path) -> None:
    file = ["--config", str(settings(tmp_path, 'prefix = "file"\n'))]
    assert made_by(file, {}) == "file"
    assert made_by(file, {"OUTBOX_PREFIX": "env"}) == "env"
    assert made_by([*file, "--prefix", "option"], {"OUTBOX_PREFIX": "env"}) == "option"


def test_the_file_itself_may_be_named_by_the_environment(tmp_path: Path) -> None:
    assert made_by([], {"OUTBOX_CONFIG": str(settings(tmp_path, 'prefix = "file"\n'))}) == "file"


def test_a_number_in_the_file_is_read_as_the_option_reads_it(tmp_path: Path) -> None:
    file = settings(tmp_path, "wait = 'soon'\n")
    result = CliRunner().invoke(app, ["check", "--config", str(file)], env={"COLUMNS": "200"})
    assert result.exit_code == 2
    assert "'soon' is no number of seconds" in result.output


def test_database_url_is_the_last_to_be_asked(tmp_path: Path) -> None:
    named, fallback = tmp_path / "named.db", tmp_path / "fallback.db"
    file = settings(tmp_path, f'database = "sqlite:///{named}"\n')
    environment = {"DATABASE_URL": f"sqlite:///{fallback}"}
    assert CliRunner().invoke(app, ["init", "--config", str(file)], env=environment).exit_code == 0
    assert named.exists() and not fallback.exists()
    assert CliRunner().invoke(app, ["init"], env=environment).exit_code == 0
    assert fallback.exists()


COMMANDS = [
    *(("outbox", command) for command in ("init", "check")),
    *(("relay", command) for command in ("run", "status", "tail", "forget")),
    *(("inbox", command) for command in ("run", "status")),
]


@pytest.mark.parametrize(("program", "command"), COMMANDS)
def test_help_names_the_environment_variable_of_every_option(program: str, command: str) -> None:
    app = importlib.import_module(f"{program}.cli").app
    said = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"}).stdout
    words = said[said.index("Options:") :].split("\n  --")[1:]
    named = {f"--{word.split()[0]}": " ".join(word.split()) for word in words}
    assert {"--schema", "--prefix", "--config", "--wait", "--debug", "--version"} <= named.keys()
    without = {name for name, word in named.items() if "[env var:" not in word}
    assert without == {"--version", "--help"}
    for name in ("--database", "--schema", "--prefix"):
        assert f"OUTBOX_{name[2:].upper()}" in named[name]
