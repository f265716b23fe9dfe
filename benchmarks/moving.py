"""P2 and P7: how fast the relay moves what waits, and what could slow it down."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import psycopg

from benchmarks.ground import Ground, fill, refuse_wrong_log, run, value
from benchmarks.journal import take_steps
from benchmarks.measuring import Row, Sample, in_turns, rate_row
from benchmarks.processes import measured

ENTRIES = 1_000_000
RETAINED = 10_000_000
STEPS = 100_000

_names = itertools.count(1)


def fresh_name() -> str:
    """Return a name that no relay had: it begins with the oldest entry, and nothing has to be filled in again."""
    return f"relay_{next(_names)}"


def relay_moves(ground: Ground, database: str, entries: int, *, log: str = "", name: str = "") -> Sample:
    """Let a relay move all entries into an empty log, and see that it did."""
    log = log or database
    run(log, "truncate log_record, log_chunk")
    sample = measured(ground, entries, "relay", database=database, log=log, name=name or fresh_name())
    refuse_wrong_log(log, entries)
    return sample


def bare_moves(ground: Ground, database: str, entries: int, *, binary: bool, log: str = "") -> Sample:
    """Let the bare loop do the same."""
    log = log or database
    run(log, "drop table if exists bare_record")
    run(log, "create table bare_record (like log_record including all)")
    sample = measured(ground, entries, "bare", database=database, log=log, binary=binary)
    moved = value(log, "select count(*) from bare_record")
    if moved != entries:
        raise AssertionError(f"the bare loop moved {moved} of {entries}")
    return sample


def p7(ground: Ground, scale: float, rounds: int) -> Iterator[Row]:
    """The built-in log against a bare fetch-and-COPY loop."""
    entries = int(ENTRIES * scale)
    database, log = ground.database(), ground.database()
    fill(database, entries)
    for where, bar, chosen in (("the outbox's own database", 1.3, ""), ("another database", 0.8, log)):
        samples = in_turns(
            {
                "relay": lambda chosen=chosen: relay_moves(ground, database, entries, log=chosen),
                "bare": lambda chosen=chosen: bare_moves(ground, database, entries, log=chosen, binary=False),
                "tuned": lambda chosen=chosen: bare_moves(ground, database, entries, log=chosen, binary=True),
            },
            rounds,
        )
        what = f"{entries:,} x 200 B into the built-in log, {where}"
        yield rate_row("P7", what, samples["relay"], samples["bare"], bar=bar, limit_is="fetch and COPY")
        yield rate_row("P7", what, samples["relay"], samples["tuned"], bar=None, limit_is="the same in binary")
    ground.drop(database, log)


def p2(ground: Ground, scale: float, rounds: int) -> Iterator[Row]:
    """The same drain while something is in the way of databases with much history or old transactions."""
    entries, retained, steps = int(ENTRIES * scale), int(RETAINED * scale), int(STEPS * scale)
    plain, elsewhere, crowded = ground.database(), ground.database(), ground.database()
    fill(plain, entries)
    stepped = ground.database(like=plain)
    behind = _relays_behind(ground, crowded, retained, rounds)
    fill(crowded, entries)
    with ExitStack() as until_the_end:
        until_the_end.enter_context(_held_snapshot(stepped))
        tired = [take_steps(stepped, fresh_name(), steps) for _ in range(rounds)]
        sides: dict[str, Callable[[], Sample]] = {
            "plain": lambda: relay_moves(ground, plain, entries),
            "an old write transaction open in the same database": lambda: _beside(ground, plain, plain, entries),
            "an old write transaction open in another database": lambda: _beside(ground, elsewhere, plain, entries),
            f"{retained:,} entries behind it that were read": lambda: relay_moves(
                ground, crowded, entries, name=behind.pop()
            ),
            f"after {steps:,} steps of its journal under a held snapshot": lambda: relay_moves(
                ground, stepped, entries, name=tired.pop()
            ),
        }
        samples = in_turns(sides, rounds)
    for name, taken in samples.items():
        if name != "plain":
            yield rate_row(
                "P2", f"{entries:,} x 200 B, {name}", taken, samples["plain"], bar=0.9, limit_is="without it"
            )
    ground.drop(plain, elsewhere, crowded, stepped)


def _relays_behind(ground: Ground, database: str, retained: int, relays: int) -> list[str]:
    """Fill in what was read long ago, and register relays that stand behind it."""
    fill(database, retained, in_one=True)
    names = [fresh_name() for _ in range(relays)]
    for name in names:
        measured(ground, 0, "relay", database=database, log=database, name=name, start="latest")
    return names


def _beside(ground: Ground, where: str, database: str, entries: int) -> Sample:
    run(where, "create table if not exists held (n int)")
    with psycopg.connect(where) as old:
        old.execute("insert into held values (1)")
        sample = relay_moves(ground, database, entries)
        old.rollback()
    return sample


@contextmanager
def _held_snapshot(database: str) -> Iterator[None]:
    """Hold a snapshot, as a long report or a forgotten session does."""
    with psycopg.connect(database) as old:
        old.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        old.execute("select count(*) from relay_checkpoint")
        yield
