"""The TOML file of settings: option beats environment beats file.

One file can serve all three commands. Keys are the options' names with `_` for `-`; what is meant for one command alone
stands in its table:

    database = "postgresql://app@db/app"

    [relay]
    log = "postgresql://app@db/app"
    lease = 10
"""

import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path

from outbox.errors import ConfigurationError

PROGRAMS = ("outbox", "relay", "inbox")
SHARED = frozenset({"database", "schema", "prefix", "log", "wait", "debug"})
"""Keys that may stand outside any table, whichever command reads the file."""


def read_settings(file: Path, program: str, keys: Collection[str]) -> dict[str, str | bool]:
    """Return what the file sets for a command; its own table beats what stands outside.

    Args:
        file: the TOML file.
        program: `outbox`, `relay` or `inbox`.
        keys: what this program knows, over all of its subcommands.

    Raises:
        ConfigurationError: the file cannot be read, is no TOML, or has a key that nobody knows; the words name it.
    """
    try:
        found = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"the settings file {file} cannot be read: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"the settings file {file} is no TOML: {error}") from error
    tables = {name: found.pop(name) for name in PROGRAMS if isinstance(found.get(name), dict)}
    own: Mapping[str, object] = tables.get(program, {})
    unknown = [name for name in found if _key(name) not in SHARED.union(keys)]
    unknown += [f"{program}.{name}" for name in own if _key(name) not in keys]
    if unknown:
        raise ConfigurationError(
            f"unknown key {', '.join(unknown)} in {file}: {program} knows {', '.join(sorted(keys))};"
            f" what is meant for one command alone stands under [{'], ['.join(PROGRAMS)}]"
        )
    return {_key(name): _value(file, name, value) for name, value in {**found, **own}.items()}


def _key(name: str) -> str:
    return name.replace("-", "_")


def _value(file: Path, name: str, value: object) -> str | bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, (str, int, float)):
        return str(value)
    raise ConfigurationError(f"{name} in {file} must be a text, a number, true or false")
