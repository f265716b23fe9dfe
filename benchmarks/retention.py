"""What retention costs a relay that is at work: its rate with and without it, in one run on one server.

    python benchmarks/retention.py                       half a million entries to delete
    python benchmarks/retention.py --entries 5000000     more
    python benchmarks/retention.py --database URL        on a server of yours, in a database that may be thrown away

An outbox full of entries that were read two days ago; then rounds, by turns without and with retention: so many new
messages are written and drained by one relay into the built-in log of the same database. With retention a second
thread deletes what is old, at the pace that `relay run` has.
"""

import argparse
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import psycopg

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from postgresql_server import PostgresqlServer  # noqa: E402
from sqlalchemy import MetaData, create_engine  # noqa: E402

from outbox.process.pace import Pace  # noqa: E402
from outbox.process.urls import parse_url  # noqa: E402
from outbox.tables import Place, inbox_tables, log_tables, outbox_tables  # noqa: E402
from relay import Relay  # noqa: E402
from relay.logs.contract import LogOptions  # noqa: E402
from relay.logs.registry import open_log  # noqa: E402
from relay.retention.chores import Chores, Outbox  # noqa: E402

KEPT = timedelta(days=36_500)
RETAIN = timedelta(days=1)
WRITE = """
insert into outbox (topic, key, payload, created_at)
select 'orders', 'key-' || mod(n, 1000), convert_to(repeat('x', 200), 'UTF8'), now() - %s
from generate_series(1, %s) as n
"""


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--database", help="an empty database; without it, an embedded server is started")
    options.add_argument("--entries", type=int, default=500_000, help="how many there are to delete")
    options.add_argument("--messages", type=int, default=50_000, help="how many each round drains")
    options.add_argument("--rounds", type=int, default=6, help="half of them with retention")
    chosen = options.parse_args()
    with database(chosen.database) as url:
        install(url)
        fill(url, chosen.entries)
        run(url, chosen.rounds, chosen.messages)


@contextmanager
def database(named: str | None) -> Iterator[str]:
    if named:
        yield named
        return
    server = PostgresqlServer(settings={"fsync": "off", "max_wal_size": "4GB"}).start()
    try:
        yield server.url()
    finally:
        server.delete()


def install(url: str) -> None:
    engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    metadata = MetaData()
    for register in (outbox_tables, inbox_tables, log_tables):
        register(metadata)
    metadata.create_all(engine)
    engine.dispose()


def fill(url: str, entries: int) -> None:
    """Entries of two days ago, and a relay that is registered behind them."""
    write(url, entries, timedelta(days=2))
    Relay(url, url, start="latest", retain=KEPT).run(once=True)


def write(url: str, entries: int, age: timedelta = timedelta(0)) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(WRITE, (age, entries))


def entries_left(url: str) -> int:
    with psycopg.connect(url) as connection:
        row = connection.execute("select count(*) from outbox where created_at < now() - interval '1 day'").fetchone()
    return row[0] if row else 0


def run(url: str, rounds: int, messages: int) -> None:
    print(f"{'retention':>10} {'messages/s':>11} {'deleted':>9} {'deleted/s':>10}")
    rates: dict[bool, list[float]] = {False: [], True: []}
    for number in range(rounds):
        pruning = bool(number % 2)
        write(url, messages)
        before = entries_left(url)
        began = time.monotonic()
        with retention(url) if pruning else nothing():
            Relay(url, url, retain=KEPT).run(once=True)
            took = time.monotonic() - began
        deleted = before - entries_left(url)
        rates[pruning].append(messages / took)
        print(f"{'with' if pruning else 'without':>10} {messages / took:11.0f} {deleted:9} {deleted / took:10.0f}")
    without, with_it = (sorted(rates[one])[len(rates[one]) // 2] for one in (False, True))
    print(f"median rate with retention / without: {with_it / without:.2f}")


@contextmanager
def retention(url: str) -> Iterator[None]:
    over = threading.Event()
    chores = Chores(Outbox(parse_url(url), Place(None, ""), "benchmark", RETAIN), open_log(url, LogOptions()))
    thread = threading.Thread(target=lambda: chores.prune_outbox(Pace(over)))
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextmanager
def nothing() -> Iterator[None]:
    yield


if __name__ == "__main__":
    main()
