"""The command `relay`: runs a relay, shows how far relays are, prints a topic, forgets a registration."""

import logging
from dataclasses import asdict
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated

from outbox.process import options
from outbox.process.commands import run_program
from outbox.process.options import Argument, Database, Prefix, Schema, Version, option, seconds_option
from outbox.process.output import print_json, print_table, talk
from outbox.process.signals import stopping
from outbox.process.waiting import wait_for

app = options.program("relay", "Moves what applications wrote into their outbox to a log.")
logger = logging.getLogger("relay")

_STATUS = (
    "relay",
    "lag_messages",
    "lag_seconds",
    "position",
    "owner",
    "epoch",
    "dead_letters",
    "unclaimed",
    "maybe_lost",
)

Log = Annotated[
    str | None,
    option(
        "relay",
        "--log",
        "The log: kafka://host:9092, postgresql://..., sqlite:///file.db, memory://NAME, ...",
        metavar="URL",
    ),
]
Config = Annotated[Path | None, options.config_option("relay")]
Wait = Annotated[float, options.wait_option("relay")]
Debug = Annotated[bool, options.debug_option("relay")]
Json = Annotated[bool, option("relay", "--json", "Print JSON.")]


class Delivery(StrEnum):
    """How often the log gets a message."""

    AT_LEAST_ONCE = "at-least-once"
    EXACTLY_ONCE = "exactly-once"
    AT_MOST_ONCE = "at-most-once"


class OpenChunk(StrEnum):
    """Whether a chunk that was on its way has arrived."""

    SENT = "sent"
    UNSENT = "unsent"


class Start(StrEnum):
    """Where a relay begins when it is registered."""

    EARLIEST = "earliest"
    LATEST = "latest"


@app.command()
def run(
    *,
    database: Database = None,
    log: Log = None,
    name: Annotated[
        str, option("relay", "--name", "Of several of one name one works and the others stand by.", metavar="NAME")
    ] = "default",
    delivery: Annotated[
        Delivery, option("relay", "--delivery", "What is promised of the log; the built-in log is exactly-once always.")
    ] = Delivery.AT_LEAST_ONCE,
    topics: Annotated[
        str,
        option("relay", "--topics", "What to relay: names with commas between, each may end in *.", metavar="PATTERN"),
    ] = "*",
    start: Annotated[
        Start, option("relay", "--start", "Where to begin when this name is registered; later it is a notice only.")
    ] = Start.EARLIEST,
    once: Annotated[
        bool, option("relay", "--once", "End when what was committed before the start is in the log.")
    ] = False,
    lease: Annotated[
        float, seconds_option("relay", "--lease", "How long a relay that hangs keeps the others waiting.")
    ] = 10.0,
    retain: Annotated[
        timedelta,
        options.retain_option("relay", "1d", "How long entries stay in the outbox that every relay has read."),
    ] = timedelta(days=1),
    open_chunk: Annotated[
        OpenChunk | None,
        option(
            "relay",
            "--open-chunk",
            "Say whether a chunk arrived that the log has forgotten; a relay that asks says how.",
        ),
    ] = None,
    schema: Schema = None,
    prefix: Prefix = None,
    config: Config = None,
    wait: Wait = 10.0,
    debug: Debug = False,
    version: Version = False,
) -> None:
    """Relay committed messages to the log until SIGTERM, or with --once what is there now."""
    from relay.relay import Relay

    talk("relay", debug=debug, times=True)
    relay = Relay(
        options.required_database(database),
        options.required_log(log, "relay"),
        name=name,
        delivery=delivery.value,
        topics=topics,
        start=start.value,
        lease=lease,
        retain=retain,
        schema=schema,
        prefix=prefix or "",
        wait=wait,
        open_chunk=open_chunk and open_chunk.value,
    )
    with stopping() as stop:
        relay.run(once=once, stop=stop)


@app.command()
def status(
    *,
    database: Database = None,
    json: Json = False,
    schema: Schema = None,
    prefix: Prefix = None,
    config: Config = None,
    wait: Wait = 10.0,
    debug: Debug = False,
    version: Version = False,
) -> None:
    """Show how far each registered relay is; none need be running."""
    from relay.status import status as status_of

    relays = [
        asdict(one)
        for one in status_of(options.required_database(database), schema=schema, prefix=prefix or "", wait=wait)
    ]
    if json:
        print_json(relays)
        return
    print_table(_STATUS, relays)
    if not relays:
        logger.info("no relay is registered yet: `relay run` does so")


@app.command()
def tail(
    topic: Annotated[str, Argument(help="The topic to print.", metavar="TOPIC")],
    *,
    log: Log = None,
    once: Annotated[bool, option("relay", "--once", "Print what the log holds now, and end.")] = False,
    from_start: Annotated[bool, option("relay", "--from-start", "Begin with the oldest record.")] = False,
    json: Annotated[bool, option("relay", "--json", "Print a JSON object a line.")] = False,
    database: Database = None,
    schema: Schema = None,
    prefix: Prefix = None,
    config: Config = None,
    wait: Wait = 10.0,
    debug: Debug = False,
    version: Version = False,
) -> None:
    """Print the records of a topic as they come; order holds within a partition."""
    from relay.logs.contract import LogOptions
    from relay.logs.registry import open_log
    from relay.tail import print_records

    opened = open_log(options.required_log(log, "relay"), LogOptions(schema, prefix or ""))
    try:
        with stopping(quiet=True) as stop:
            wait_for(opened.check, seconds=wait, stop=stop)
            print_records(opened, topic, from_start=from_start or once, follow=not once, as_json=json, stop=stop)
    finally:
        opened.close()


@app.command()
def forget(
    name: Annotated[str, Argument(help="The relay's name.", metavar="NAME")],
    *,
    database: Database = None,
    schema: Schema = None,
    prefix: Prefix = None,
    config: Config = None,
    wait: Wait = 10.0,
    debug: Debug = False,
    version: Version = False,
) -> None:
    """Delete a relay's registration and position; refused while it is alive. What it had not read is not relayed."""
    from relay.registration import forget as forget_relay

    url = options.required_database(database)
    forget_relay(url, name, schema=schema, prefix=prefix or "", wait=wait)
    logger.info("relay %s is forgotten", name)


def main() -> None:
    """Run the command."""
    run_program(app, "relay")


if __name__ == "__main__":
    main()
