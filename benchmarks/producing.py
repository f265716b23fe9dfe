"""P1 and P8: how fast the relay moves what waits to Kafka, against a bare loop; exactly once against at least once."""

from collections.abc import Iterator

from fetched import Missing

from benchmarks.brokers import Broker
from benchmarks.ground import Ground, fill
from benchmarks.measuring import Row, Sample, in_turns, rate_row
from benchmarks.moving import ENTRIES, fresh_name
from benchmarks.processes import measured
from relay.reader.contract import MOST_ENTRIES_PRODUCED

DELIVERIES = ("at-least-once", "exactly-once")
WARMING_ROUNDS = 4
"""Not counted: a broker's JVM compiles what it is used for while it is used, and those in use have run for days."""


def relay_produces(
    ground: Ground, broker: Broker, database: str, entries: int, delivery: str, *, memory: bool = False
) -> Sample:
    """Let a relay move all entries into an empty topic, and see that it did."""
    broker.empty_topic()
    sample = measured(
        ground,
        entries,
        "relay",
        memory=memory,
        database=database,
        log=broker.url,
        name=fresh_name(),
        delivery=delivery,
    )
    broker.refuse_wrong_topic(entries)
    return sample


def bare_loop_produces(ground: Ground, broker: Broker, database: str, entries: int) -> Sample:
    """Let the bare loop do the same."""
    broker.empty_topic()
    sample = measured(ground, entries, "bare_produces", database=database, servers=broker.servers)
    broker.refuse_wrong_topic(entries)
    return sample


def p1_and_p8(ground: Ground, scale: float, rounds: int) -> Iterator[Row]:
    """The relay to a real broker, at least and exactly once, and the bare loop; all in the same turns."""
    try:
        broker = ground.broker()
    except Missing as missing:
        yield not_measured("P1", "the relay to Kafka", missing)
        return
    entries = int(ENTRIES * scale)
    database = ground.database()
    fill(database, entries)
    sides = {
        "bare": lambda: bare_loop_produces(ground, broker, database, entries),
        "at-least-once": lambda: relay_produces(ground, broker, database, entries, "at-least-once"),
        "exactly-once": lambda: relay_produces(ground, broker, database, entries, "exactly-once"),
    }
    in_turns(sides, WARMING_ROUNDS)
    samples = in_turns(sides, rounds)
    what = f"{entries:,} x 200 B to Kafka {broker.version()} in chunks of {MOST_ENTRIES_PRODUCED:,}"
    for number, ours, limit, bar in (
        ("P1", "at-least-once", "bare", 0.8),
        ("P1", "exactly-once", "bare", None),
        ("P8", "exactly-once", "at-least-once", 0.9),
    ):
        limit_is = "fetch and produce" if limit == "bare" else limit
        yield rate_row(number, f"{what}, {ours}", samples[ours], samples[limit], bar=bar, limit_is=limit_is)
    ground.drop(database)


def not_measured(number: str, what: str, missing: Missing) -> Row:
    """Return the row of what cannot be measured on this machine."""
    return Row(number, what, "not measured", notes={"why": str(missing)})
