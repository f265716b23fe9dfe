"""The command-line options that all three commands share, and how an option is declared."""

import os
import sys
from datetime import timedelta
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

from outbox.errors import ConfigurationError
from outbox.process.durations import parse_retention, parse_seconds
from outbox.process.output import talk
from outbox.process.passwords import remember
from outbox.process.settings import read_settings

try:
    import typer
except ModuleNotFoundError as missing:
    if missing.name != "typer":
        raise
    sys.stderr.write("the commands need Typer: pip install 'outbox-relay-inbox[relay,inbox]'\n")
    raise SystemExit(2) from None

DISTRIBUTION = "outbox-relay-inbox"
DATABASE_FALLBACK = "DATABASE_URL"

Argument = typer.Argument
Context = typer.Context


def program(name: str, words: str) -> typer.Typer:
    """Return the Typer app of one command: plain help, no rich tracebacks, `--version`.

    Args:
        name: `outbox`, `relay` or `inbox`.
        words: its help.
    """
    app = typer.Typer(
        name=name,
        help=words,
        add_completion=False,
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"max_content_width": 120},
    )

    # Typer takes the words from here; with a callback a program of one command keeps that command's name.
    @app.callback(help=words)
    def root(version: Version = False) -> None: ...  # noqa: FBT002 - a Typer signature

    return app


def option(program: str | None, name: str, words: str, **settings: Any) -> Any:
    """Declare an option; its environment variable is `PROGRAM_NAME`.

    Args:
        program: the command whose name begins the variable; None makes an option without one.
        name: as it is typed, `--from-start`.
        words: its help.
        settings: what Typer's `Option` takes.
    """
    variable = None if program is None else f"{program}_{name.removeprefix('--').replace('-', '_')}".upper()
    return typer.Option(name, envvar=variable, help=words, **settings)


def seconds_option(program: str, name: str, words: str) -> Any:
    """Declare an option that takes seconds, or a duration as in `30s` or `15m`."""
    return option(program, name, words, parser=_seconds, metavar="SECONDS")


def _seconds(text: str | float) -> float:
    try:
        return parse_seconds(str(text))
    except ConfigurationError as error:
        raise typer.BadParameter(str(error)) from None


def retain_option(program: str, kept: str, words: str) -> Any:
    """Declare `--retain`, which takes a duration as in `12h` or `7d`; by default, what `kept` says."""
    return option(program, "--retain", words, parser=_retention, metavar="DURATION", show_default=kept)


def _retention(text: str | timedelta) -> timedelta:
    # Typer hands a default through the parser, as text of its own making.
    if isinstance(text, timedelta):
        return text
    try:
        return parse_retention(text)
    except ConfigurationError as error:
        raise typer.BadParameter(str(error)) from None


def _show_version(wanted: bool) -> None:  # noqa: FBT001 - Typer's signature
    if not wanted:
        return
    try:
        number = version(DISTRIBUTION)
    except PackageNotFoundError:
        number = "unknown: not installed"
    typer.echo(f"{DISTRIBUTION} {number}")
    raise typer.Exit


def _read_config(context: typer.Context, file: Path | None) -> Path | None:
    if file is not None:
        name, keys = _program_of(context)
        context.default_map = {**read_settings(file, name, keys)}
    return file


def _program_of(context: typer.Context) -> tuple[str, set[str]]:
    """Return the program's name, and the keys that its subcommands know together."""
    root = context.find_root().command
    commands: dict[str, Any] = getattr(root, "commands", {})
    declared = {one for command in commands.values() for one in command.params if one.envvar}
    return str(root.name), {str(one.name) for one in declared} - {"config"}


def _start_to_talk(context: typer.Context, debug: bool) -> bool:  # noqa: FBT001 - Typer's signature
    talk(str(context.find_root().command.name), debug=debug)
    return debug


def config_option(program: str) -> Any:
    """Declare `--config`."""
    words = "A TOML file of settings; options and environment variables beat it."
    return option(program, "--config", words, metavar="FILE", is_eager=True, callback=_read_config)


def debug_option(program: str) -> Any:
    """Declare `--debug`."""
    return option(program, "--debug", "Say more, and show tracebacks.", callback=_start_to_talk)


def wait_option(program: str) -> Any:
    """Declare `--wait`."""
    words = "How long to wait for a database or log that does not answer, where the command does not wait for ever."
    return seconds_option(program, "--wait", words)


Version = Annotated[
    bool, option(None, "--version", "Show the version and exit.", is_eager=True, callback=_show_version)
]
Database = Annotated[
    str | None,
    option(
        "outbox",
        "--database",
        f"The application's database: postgresql://... or sqlite:///file.db. {DATABASE_FALLBACK} is the fall-back.",
        metavar="URL",
    ),
]
Schema = Annotated[
    str | None,
    option("outbox", "--schema", "The schema of our tables; none is the role's search path.", metavar="NAME"),
]
Prefix = Annotated[
    str | None,
    option("outbox", "--prefix", "What the names of our tables begin with; none by default.", metavar="TEXT"),
]


def typed(context: typer.Context, name: str) -> bool:
    """Return whether an option stands on the command line, and does not come from the environment or the file."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def named_database(given: str | None) -> str | None:
    """Return the database's URL, from wherever it was set."""
    return given or os.environ.get(DATABASE_FALLBACK) or None


def required_database(given: str | None) -> str:
    """Return the database's URL, from wherever it was set.

    Raises:
        ConfigurationError: it was not set.
    """
    found = named_database(given)
    if not found:
        raise ConfigurationError(
            f"no database is named: give --database URL, or set OUTBOX_DATABASE or {DATABASE_FALLBACK}"
        )
    return known_url(found)


def known_url(url: str) -> str:
    """Return the URL, after noting its password as one not to be shown."""
    remember(url)
    return url


def required_log(given: str | None, program: str) -> str:
    """Return the log's URL, from wherever it was set.

    Raises:
        ConfigurationError: it was not set.
    """
    if not given:
        raise ConfigurationError(f"no log is named: give --log URL, or set {program.upper()}_LOG")
    return known_url(given)
