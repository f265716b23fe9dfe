"""What the tests of retention share: entries and records of a chosen age, relays at a chosen place."""

import threading
from datetime import UTC, datetime, timedelta
from typing import Any

from databases import rows

from outbox.message import Position
from outbox.process.pace import Pace
from outbox.process.urls import parse_url
from outbox.tables import Place
from relay import Relay
from relay.logs.contract import LogOptions
from relay.logs.registry import open_log
from relay.retention import opened
from relay.retention.chores import Chores, Outbox
from relay.retention.contract import Batch

DAY = timedelta(days=1)


def ago(age: timedelta) -> Any:
    """The time so long ago, as a value that both dialects take."""
    return (datetime.now(UTC) - age).replace(tzinfo=None).isoformat(" ")


def write(url: str, payload: str, *, topic: str = "orders", age: timedelta = 2 * DAY, key: str | None = None) -> None:
    """Write one message of that age, by plain SQL."""
    rows(
        url,
        "insert into outbox (topic, key, payload, created_at) values (?, ?, ?, ?)",
        topic,
        key,
        payload.encode(),
        ago(age) + ("" if url.startswith("sqlite") else "+00"),
    )


def left(url: str) -> list[str]:
    """The payloads that are still in the outbox, in reading order."""
    return [bytes(row[0]).decode() for row in rows(url, "select payload from outbox order by position")]


def drain(url: str, **settings: object) -> None:
    """Run a relay to the end of what is there; it retains everything."""
    Relay(url, url, **{"retain": 36_500 * DAY, **settings}).run(once=True)


def prune(url: str, retain: timedelta = DAY) -> None:
    """Do one pass over the outbox."""
    outbox = Outbox(parse_url(url), Place(None, ""), "tests", retain)
    Chores(outbox, open_log(url, LogOptions())).prune_outbox(unhurried())


def prune_batch(url: str, after: int = 0, most: int = 100, retain: timedelta = DAY) -> Batch:
    with opened(parse_url(url), Place(None, ""), "tests") as entries:
        return entries.prune(Position(after), most, retain)


def prune_log(url: str) -> int:
    return open_log(url, LogOptions()).prune(unhurried())


def unhurried() -> Pace:
    return Pace(threading.Event(), share=1.0)
