"""What retention costs a relay that is at work: its rate beside the deleting of what was read two days ago."""

import itertools
import threading
import time
from collections.abc import Iterator
from datetime import timedelta

from benchmarks.ground import TOPIC, Ground, fill, refuse_wrong_log, run, value
from benchmarks.measuring import Row, Sample, in_turns, rate_row
from benchmarks.moving import fresh_name
from benchmarks.processes import measured
from outbox.process.pace import Pace
from outbox.process.urls import parse_url
from outbox.tables import Place
from relay.logs.contract import LogOptions
from relay.logs.registry import open_log
from relay.retention.chores import Chores, Outbox

OLD = 5_000_000
NEW = 500_000
RETAIN = timedelta(days=1)
AT_ONCE = 100_000


def retention(ground: Ground, scale: float, rounds: int) -> Iterator[Row]:
    """Drain new messages by one relay, by turns without and with retention at work at the pace of `relay run`."""
    database, relay = ground.database(), fresh_name()
    for _ in range(0, int(OLD * scale), AT_ONCE):
        run(
            database,
            "insert into outbox (topic, key, payload, created_at) select %s, n::text, convert_to(repeat('x', 200),"
            " 'UTF8'), now() - interval '2 days' from generate_series(1, %s) as n",
            TOPIC,
            AT_ONCE,
        )
    run(database, "vacuum (analyze) outbox")
    # It stands behind what is old, and has a retention that deletes nothing itself.
    measured(ground, 0, "relay", database=database, log=database, name=relay, start="latest", retain_days=36_500)
    messages, done, deleted = int(NEW * scale), itertools.count(1), list[float]()

    def drained(*, beside: bool) -> Sample:
        fill(database, messages)
        before = _old(database)
        pruning = _Pruning(database) if beside else None
        sample = measured(ground, messages, "relay", database=database, log=database, name=relay, retain_days=36_500)
        if pruning is not None:
            deleted.append((before - _old(database)) / pruning.end())
        refuse_wrong_log(database, next(done) * messages)
        return sample

    samples = in_turns({"with": lambda: drained(beside=True), "without": lambda: drained(beside=False)}, rounds)
    if not all(deleted):
        raise AssertionError("a round with retention deleted nothing: there was nothing left, use a larger scale")
    what = f"{messages:,} x 200 B moved with retention deleting {min(deleted):,.0f} entries/s or more beside it"
    yield rate_row("", what, samples["with"], samples["without"], bar=None, limit_is="without it")
    ground.drop(database)


def _old(database: str) -> int:
    found: int = value(database, "select count(*) from outbox where created_at < now() - interval '1 day'")
    return found


class _Pruning:
    """Deletes in a thread, at the pace that a relay has."""

    def __init__(self, database: str) -> None:
        self._over, self._begun = threading.Event(), time.monotonic()
        chores = Chores(
            Outbox(parse_url(database), Place(None, ""), "measured", RETAIN), open_log(database, LogOptions())
        )
        self._thread = threading.Thread(target=lambda: chores.prune_outbox(Pace(self._over)))
        self._thread.start()

    def end(self) -> float:
        """Stop, and return for how many seconds it ran."""
        self._over.set()
        self._thread.join()
        return time.monotonic() - self._begun
