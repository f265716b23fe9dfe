"""The command `outbox`: makes the tables and checks them."""

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

from sqlalchemy import URL

from outbox.check import SETS, differences, present, refuse_unfit_server
from outbox.errors import ConfigurationError
from outbox.install import ddl, install
from outbox.process import options
from outbox.process.commands import run_program
from outbox.process.database import connected
from outbox.process.exits import Exit
from outbox.process.log_urls import parse_log_url
from outbox.process.options import Context, Database, Prefix, Schema, Version, option
from outbox.process.urls import dialect_of, parse_url, shown
from outbox.process.waiting import wait_for
from outbox.tables import Place

app = options.program("outbox", "Makes and checks the tables of outbox, inbox and built-in log.")
logger = logging.getLogger("outbox")

Config = Annotated[Path | None, options.config_option("outbox")]
Wait = Annotated[float, options.wait_option("outbox")]
Debug = Annotated[bool, options.debug_option("outbox")]


class DialectName(StrEnum):
    """Whose SQL is printed."""

    POSTGRESQL = "postgresql"
    SQLITE = "sqlite"


@dataclass(frozen=True, slots=True)
class Target:
    """Which tables, and where; without a URL only their SQL can be printed."""

    url: URL | None
    place: Place
    sets: Sequence[str] = SETS


@app.command()
def init(
    context: Context,
    *,
    database: Database = None,
    log: Annotated[
        str | None,
        option("outbox", "--log", "Make the built-in log's tables only, in the database of this URL.", metavar="URL"),
    ] = None,
    sql: Annotated[bool, option("outbox", "--sql", "Print the SQL and connect to nothing.")] = False,
    dialect: Annotated[
        DialectName | None,
        option("outbox", "--dialect", "Whose SQL to print; by default the database's, or PostgreSQL's."),
    ] = None,
    schema: Schema = None,
    prefix: Prefix = None,
    config: Config = None,
    wait: Wait = 10.0,
    debug: Debug = False,
    version: Version = False,
) -> None:
    """Make the tables that are missing; what is there is left alone, never altered."""
    database = options.named_database(database)
    place = Place(schema, prefix or "")
    if log and (options.typed(context, "log") or not database):
        if options.typed(context, "database"):
            raise ConfigurationError("--database makes all tables, --log the log's alone: give one of them")
        target = _log_target(log, place)
    else:
        target = Target(None if sql and not database else parse_url(options.required_database(database)), place)
    if sql:
        _print_sql(target, dialect)
    elif dialect:
        raise ConfigurationError("--dialect goes with --sql: otherwise the database's URL says it")
    elif target.url is not None:
        wait_for(lambda: _install(target), seconds=wait)


@app.command()
def check(
    *,
    database: Database = None,
    schema: Schema = None,
    prefix: Prefix = None,
    config: Config = None,
    wait: Wait = 10.0,
    debug: Debug = False,
    version: Version = False,
) -> None:
    """Compare a live database with the tables as we expect them, each set (outbox, inbox, log) whole or absent.

    Prints the sets that are there. A line on stderr for each difference, then exit code 1.
    """
    target = Target(parse_url(options.required_database(database)), Place(schema, prefix or ""))
    found, faults = wait_for(lambda: _compare(target), seconds=wait)
    for name in SETS:
        sys.stdout.write(f"{name}: {'there' if name in found else 'absent'}\n")
    for fault in faults:
        logger.error("%s", fault)
    if faults:
        raise SystemExit(Exit.FAILED)


def main() -> None:
    """Run the command."""
    run_program(app, "outbox")


def _log_target(log: str, place: Place) -> Target:
    return Target(*parse_log_url(options.known_url(log), place), ("log",))


def _print_sql(target: Target, dialect: DialectName | None) -> None:
    of_url = "postgresql" if target.url is None else dialect_of(target.url)
    sys.stdout.write(ddl(dialect or of_url, target.place, target.sets))


def _install(target: Target) -> None:
    url = _url(target)
    with connected(url, create=True) as connection:
        made = install(connection, target.place, target.sets)
        faults = differences(connection, target.place, target.sets)
    logger.info("%s: %s", shown(url), f"made {', '.join(made)}" if made else "all tables were there already")
    for fault in faults:
        logger.warning("%s", fault)


def _compare(target: Target) -> tuple[set[str], list[str]]:
    url = _url(target)
    with connected(url) as connection:
        refuse_unfit_server(connection)
        found = present(connection, target.place)
        if not found:
            raise ConfigurationError(f"{shown(url)} has none of our tables: run `outbox init`")
        faults = differences(connection, target.place, [name for name in target.sets if name in found])
    if dialect_of(url) == "postgresql":
        from outbox.process.postgresql import refuse_pooler  # its driver is an extra

        refuse_pooler(url)
    return found, faults


def _url(target: Target) -> URL:
    if target.url is None:
        raise ConfigurationError("no database is named: give --database URL")
    return target.url


if __name__ == "__main__":
    main()
