"""Prints docs/commands.md: every command, option, environment variable, key and default, as they declare them."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

PROGRAMS = ("outbox", "relay", "inbox")
HEAD = """\
# Commands and settings

Generated from the commands by `scripts/cli_reference.py`; do not edit.

An option beats its environment variable, and that beats the TOML file that `--config FILE` names. `DATABASE_URL` counts
when nothing else names the database. One file can serve all three commands: what they share stands at its top
(`database`, `schema`, `prefix`, `log`, `wait`, `debug`), what is meant for one alone in its table. A key that nobody
knows is an error.

    database = "postgresql://app@db.example/app"
    log = "postgresql://app@db.example/app"

    [relay]
    topics = "orders,payments.*"
    lease = 10

A number of seconds may be written as a duration: `30s`, `15m`, `12h`, `7d`.

| exit code | |
|---|---|
| 0 | done |
| 1 | failed; `outbox check`: something differs |
| 2 | wrong usage or configuration: option, URL, tables missing, module that does not import |
| 3 | fenced under `--once`: another process took over |

Data is printed on stdout, everything else on stderr. The first SIGTERM or SIGINT finishes what is in hand, a second one
ends the process at once.
"""


def reference() -> str:
    """Return the text of docs/commands.md."""
    return "\n".join([HEAD, *(line for program in PROGRAMS for line in _program(program))])


def _program(name: str) -> Iterator[str]:
    app = importlib.import_module(f"{name}.cli").app
    yield f"## {name}\n\n{app.info.help}\n"
    for command in app.registered_commands:
        parameters = list(_parameters(command.callback))
        arguments = [str(one.info.metavar) for one in parameters if not one.typed]
        shown = " ".join([name, command.callback.__name__, *arguments, "[OPTIONS]"])
        yield f"### `{shown}`\n\n{_plain(command.callback.__doc__)}\n"
        yield "| option | environment | key | default | |\n|---|---|---|---|---|"
        yield from (_row(one) for one in parameters if one.typed)
        yield ""


@dataclass(frozen=True)
class Parameter:
    """An argument or option as a command's signature declares it."""

    name: str
    kind: Any
    info: Any
    default: Any

    @property
    def typed(self) -> str:
        """How an option is typed; empty for an argument. Typer takes the first word of `Option` for its default."""
        words = [self.info.default, *(self.info.param_decls or ())]
        return next((word for word in words if isinstance(word, str) and word.startswith("--")), "")


def _parameters(command: Callable[..., None]) -> Iterator[Parameter]:
    hints = get_type_hints(command, include_extras=True)
    for name, one in inspect.signature(command).parameters.items():
        if get_origin(hints[name]) is Annotated:
            kind, info = get_args(hints[name])
            yield Parameter(name, kind, info, one.default)


def _row(one: Parameter) -> str:
    value = "" if one.kind is bool else f" {'|'.join(_choices(one.kind)) or one.info.metavar}"
    variable = f"`{one.info.envvar}`" if one.info.envvar else ""
    key = f"`{one.name}`" if one.info.envvar and one.name != "config" else ""
    option = f"`{one.typed}{value}`".replace("|", "\\|")
    return f"| {' | '.join((option, variable, key, _default(one), _plain(one.info.help)))} |"


def _choices(kind: Any) -> list[str]:
    """Return the values of an enumeration, also where None is allowed beside it; of anything else nothing."""
    enums = [one for one in (kind, *get_args(kind)) if isinstance(one, type) and issubclass(one, Enum)]
    return [str(one.value) for enum in enums for one in enum]


def _default(one: Parameter) -> str:
    if one.default is None or one.kind is bool:
        return ""
    if isinstance(one.info.show_default, str):
        return f"`{one.info.show_default}`"
    value = one.default.value if isinstance(one.default, Enum) else one.default
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def _plain(words: str) -> str:
    return " ".join(words.split())


if __name__ == "__main__":
    sys.stdout.write(reference())
