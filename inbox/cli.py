"""The command `inbox`: runs an application's handlers, and shows how far their groups are."""

import logging
from dataclasses import asdict
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

from outbox.process import options
from outbox.process.commands import run_program
from outbox.process.options import Argument, Database, Prefix, Schema, Version, option
from outbox.process.output import print_json, print_table, talk
from outbox.process.signals import stopping

app = options.program("inbox", "Hands the records of a log to an application's handlers, each message once.")
logger = logging.getLogger("inbox")

_STATUS = ("group", "lag_messages", "handled", "duplicates", "ignored", "dead_letters")

Config = Annotated[Path | None, options.config_option("inbox")]
Wait = Annotated[float, options.wait_option("inbox")]
Debug = Annotated[bool, options.debug_option("inbox")]


class Start(StrEnum):
    """Where a group begins when it is registered."""

    EARLIEST = "earliest"
    LATEST = "latest"


@app.command()
def run(
    module: Annotated[
        str,
        Argument(
            help="The Inbox to run: app.handlers:inbox is `inbox` in the module app.handlers.", metavar="MODULE:ATTR"
        ),
    ],
    *,
    database: Database = None,
    log: Annotated[
        str | None,
        option("inbox", "--log", "The log: postgresql://..., sqlite:///file.db, ...", metavar="URL"),
    ] = None,
    once: Annotated[
        bool, option("inbox", "--once", "End when what the log held at the start is handled, or is a live member's.")
    ] = False,
    concurrency: Annotated[
        int,
        option(
            "inbox",
            "--concurrency",
            "How many messages are handled at a time, for slow handlers; the order of a key is kept. PostgreSQL only.",
            metavar="N",
        ),
    ] = 1,
    group: Annotated[
        str | None, option("inbox", "--group", "Instead of the group that the Inbox names.", metavar="NAME")
    ] = None,
    start: Annotated[
        Start, option("inbox", "--start", "Where to begin when the group is registered; later it is a notice only.")
    ] = Start.EARLIEST,
    retain: Annotated[
        timedelta,
        options.retain_option(
            "inbox", "8d", "How long a message is remembered as handled: longer than the log keeps it."
        ),
    ] = timedelta(days=8),
    schema: Schema = None,
    prefix: Prefix = None,
    config: Config = None,
    wait: Wait = 10.0,
    debug: Debug = False,
    version: Version = False,
) -> None:
    """Handle the records of the Inbox's topics until SIGTERM, or with --once those that are there now.

    The working directory comes first on Python's path. Schema and prefix are those of the Inbox.
    """
    from inbox.loading import load_inbox, refuse_other_place

    talk("inbox", debug=debug, times=True)
    database_url, log_url = options.required_database(database), options.required_log(log, "inbox")
    inbox = load_inbox(module)
    refuse_other_place(inbox.place, schema, prefix)
    with stopping() as stop:
        inbox.run(
            database_url,
            log_url,
            once=once,
            concurrency=concurrency,
            group=group,
            start=start.value,
            stop=stop,
            retain=retain,
            wait=wait,
        )


@app.command()
def status(
    *,
    database: Database = None,
    log: Annotated[
        str | None, option("inbox", "--log", "The log: needed to tell how many records wait.", metavar="URL")
    ] = None,
    json: Annotated[bool, option("inbox", "--json", "Print JSON.")] = False,
    schema: Schema = None,
    prefix: Prefix = None,
    config: Config = None,
    wait: Wait = 10.0,
    debug: Debug = False,
    version: Version = False,
) -> None:
    """Show how far each group is; no inbox need be running."""
    from inbox.retention.shown import unread
    from inbox.status import status as status_of

    url, log_url = options.required_database(database), options.known_url(log) if log else None
    groups = [asdict(one) for one in status_of(url, log=log_url, schema=schema, prefix=prefix or "", wait=wait)]
    for kept in unread(log_url, schema=schema, prefix=prefix or "") if log_url else ():
        logger.warning("%s", kept.words())
    if json:
        print_json(groups)
        return
    print_table(_STATUS, [{**one, "lag_messages": _total(one["lag_messages"])} for one in groups])
    if not groups:
        logger.info("no group is registered yet: `inbox run` does so")


@app.command()
def forget(
    group: Annotated[str, Argument(help="The group's name.", metavar="GROUP")],
    *,
    database: Database = None,
    log: Annotated[
        str | None, option("inbox", "--log", "The log: there the group's members are seen, if any.", metavar="URL")
    ] = None,
    schema: Schema = None,
    prefix: Prefix = None,
    config: Config = None,
    wait: Wait = 10.0,
    debug: Debug = False,
    version: Version = False,
) -> None:
    """Delete what a group remembers and how far it is; refused while a member is alive. Later it is a new group."""
    from inbox.forgetting import forget as forget_group

    database_url, log_url = options.required_database(database), options.required_log(log, "inbox")
    forget_group(database_url, log_url, group, schema=schema, prefix=prefix or "", wait=wait)
    logger.info("group %s is forgotten", group)


def main() -> None:
    """Run the command."""
    run_program(app, "inbox")


def _total(lag: dict[str, dict[int, Any]] | None) -> int | None:
    return None if lag is None else sum(sum(partitions.values()) for partitions in lag.values())


if __name__ == "__main__":
    main()
