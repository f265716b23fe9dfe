"""P4: what the inbox adds to a handler, against the same handler in equal batches with no memory of what it handled."""

import itertools
from collections.abc import Iterator
from typing import Any

from benchmarks.ground import KEYS, TOPIC, Ground, fill, refuse_wrong_log, run, value
from benchmarks.measuring import Row, Sample, in_turns, rate_row
from benchmarks.moving import fresh_name
from benchmarks.processes import measured

MESSAGES = 100_000
CASES = (
    ("one by one, Session", "session", "session", 0.85),
    ("one by one, Connection", "connection", "connection", 0.85),
    ("one by one, against UPDATEs in a pipeline", "connection", "pipeline", 0.5),
)

_groups = itertools.count(1)


def p4(ground: Ground, scale: float, rounds: int) -> Iterator[Row]:
    """One UPDATE a message, handled by the inbox and by a bare loop."""
    messages = max(5_000, int(MESSAGES * scale))
    database = ground.database()
    run(database, "create table account (id int primary key, balance bigint not null default 0)")
    run(database, f"insert into account select n, 0 from generate_series(0, {KEYS}) as n")
    # One partition: the inbox begins each with small batches, and few messages in many would never come to large ones.
    run(database, "insert into log_topic (name, partitions, retain_seconds) values (%s, 1, 604800)", TOPIC)
    fill(database, messages)
    measured(ground, messages, "relay", database=database, log=database, name=fresh_name())
    refuse_wrong_log(database, messages)
    for name, ours, theirs, bar in CASES:
        samples = in_turns(
            {
                "inbox": lambda kind=ours: _handled(
                    ground, database, messages, "inbox_handles", handler=kind, group=f"group_{next(_groups)}"
                ),
                "loop": lambda kind=theirs: _handled(ground, database, messages, "loop_handles", handler=kind),
            },
            rounds,
        )
        what = f"{messages:,} messages, an UPDATE each, {name}"
        yield rate_row("P4", what, samples["inbox"], samples["loop"], bar=bar, limit_is="same batches, no memory")
    ground.drop(database)


def _handled(ground: Ground, database: str, messages: int, task: str, **arguments: Any) -> Sample:
    run(database, "update account set balance = 0")
    run(database, "vacuum account")
    sample = measured(ground, messages, task, database=database, **arguments)
    effects = value(database, "select sum(balance) from account")
    if effects != messages:
        raise AssertionError(f"{effects} effects of {messages} messages")
    return sample
