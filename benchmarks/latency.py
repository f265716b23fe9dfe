"""P5: from COMMIT to visible in the log, at a steady pace; and what an idle relay uses."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any

import psycopg

from benchmarks.ground import Ground, run, value
from benchmarks.measuring import Row
from benchmarks.moving import fresh_name
from benchmarks.processes import Process
from benchmarks.worker import PARTITIONS

A_SECOND = 1_000
SECONDS = 60
SHORTEST_SECONDS = 5
PATIENCE_SECONDS = 60
LOOK_SECONDS = 0.001
MOST_MIDDLE_MS, MOST_TAIL_MS = 10, 50
MOST_IDLE_PERCENT = 2


@dataclass(frozen=True, slots=True)
class Latency:
    """What one run gave: milliseconds, messages, and the relay's share of a core."""

    middle: float
    tail: float
    a_second: float
    lost: int
    cpu: float


def p5(ground: Ground, scale: float, rounds: int) -> Iterator[Row]:  # noqa: ARG001 - one long run each
    """Latency at 1,000 messages a second, beside that of a bare loop; then nothing to do."""
    seconds = max(SHORTEST_SECONDS, SECONDS * scale)
    database = ground.database()
    run(database, "create table bare_record (like log_record including all)")
    run(database, "insert into log_topic (name, partitions) values ('orders', %s)", PARTITIONS)
    bare = Process("bare_follow", database=database, wait_seconds=0.005)
    limit = _latency(database, "bare_record", bare, 1, seconds)
    bare.end()
    run(database, "truncate outbox")
    relay = Process("relay_follow", database=database, log=database, name=fresh_name())
    ours = _latency(database, "log_record", relay, value(database, "select topic_id from log_topic"), seconds)
    if ours.lost:
        raise AssertionError(f"{ours.lost} messages did not come into the log")
    notes = {
        "messages a second": f"{ours.a_second:,.0f}",
        "relay, of a core": f"{ours.cpu:.2f}",
        "bare loop, of a core": f"{limit.cpu:.2f}",
        "lost by the bare loop": f"{limit.lost}",
    }
    for name, figure, other, most in (
        ("p50", ours.middle, limit.middle, MOST_MIDDLE_MS),
        ("p99", ours.tail, limit.tail, MOST_TAIL_MS),
    ):
        bar, against = f"<= {most} ms", f"{other:.1f} ms (bare loop, a look each 5 ms)"
        what = f"COMMIT to visible in the log, {name}"
        yield Row("P5", what, f"{figure:.1f} ms", against, figure / other, None, bar, figure <= most, notes)
    yield _idle(ground, relay, seconds)
    relay.end()
    ground.drop(database)


def _latency(database: str, table: str, process: Process, topic_id: int, seconds: float) -> Latency:
    """Write at a steady pace while the process moves, and watch the table that it moves to."""
    _warmed_up(database, table)
    cpu, begun = process.cpu_seconds(), time.monotonic()
    writers = Process("write_steadily", database=database, a_second=A_SECOND, seconds=seconds)
    number = int(A_SECOND * seconds)
    seen = _watched(database, table, topic_id, number, begun + seconds + PATIENCE_SECONDS)
    used = process.cpu_seconds() - cpu
    committed: dict[str, float] = writers.end()["committed"]
    waited = [max(0.0, seen[name] - at) * 1000 for name, at in committed.items() if name in seen]
    took = max(committed.values()) - min(committed.values())
    return Latency(
        median(waited), quantiles(waited, n=100)[98], len(committed) / took, len(committed) - len(waited), used / took
    )


def _warmed_up(database: str, table: str) -> None:
    """Wait until a first message has come through: the process is there."""
    run(database, "insert into outbox (topic, key, payload) values ('orders', 'warm', 'warm')")
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not run(database, f"select 1 from {table} where key = 'warm'"):
        if time.monotonic() > deadline:
            raise AssertionError(f"nothing came into {table}")
        time.sleep(0.05)


def _watched(database: str, table: str, topic_id: int, number: int, deadline: float) -> dict[str, float]:
    """Return when each message was seen first."""
    reached = dict.fromkeys(range(PARTITIONS), -1)
    seen: dict[str, float] = {}
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("set enable_seqscan = off; set enable_bitmapscan = off")
        while len(seen) <= number and time.monotonic() < deadline:  # one more than written: the first, to warm up
            for partition, offset, payload in _new(connection, table, topic_id, reached):
                seen[bytes(payload).decode()] = time.monotonic()
                reached[partition] = max(reached[partition], offset)
            time.sleep(LOOK_SECONDS)
    return seen


def _new(connection: psycopg.Connection[Any], table: str, topic_id: int, reached: dict[int, int]) -> list[Any]:
    return connection.execute(
        'select p.partition, r."offset", r.payload from unnest(%s::int[], %s::bigint[]) as p (partition, reached)'
        f' cross join lateral (select "offset", payload from {table} as kept where kept.topic_id = %s'
        ' and kept.partition = p.partition and kept."offset" > p.reached) as r',
        (list(reached), list(reached.values()), topic_id),
    ).fetchall()


def _idle(ground: Ground, relay: Process, seconds: float) -> Row:
    time.sleep(1)  # it looks less often when nothing comes
    begun, cpu, server = time.monotonic(), relay.cpu_seconds(), ground.cpu_seconds()
    time.sleep(seconds)
    took = time.monotonic() - begun
    share = (relay.cpu_seconds() - cpu) / took * 100
    notes = {"the server beside it, with its own chores": f"{(ground.cpu_seconds() - server) / took * 100:.1f} %"}
    bar, reached = f"<= {MOST_IDLE_PERCENT} %", share <= MOST_IDLE_PERCENT
    return Row("P5", "idle relay, of a core", f"{share:.1f} %", "", None, None, bar, reached, notes)
