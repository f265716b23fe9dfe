"""I1 to I3, I5 and I6 under kills, stops, crashes and cut connections, with the built-in log in the outbox's database.

Every run is bounded; OUTBOX_TEST_CHAOS_SECONDS makes the last one longer.
"""

import os
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest
import writers as workload
from postgresql_server import PostgresqlServer
from processes import relay_status
from proxy import Direction, Proxy
from road import Road, Watch, under_faults
from writers import Writers, hold_open

from relay.failpoints import Failpoint
from tests.databases import install, wait_until

CHAOS_SECONDS = float(os.environ.get("OUTBOX_TEST_CHAOS_SECONDS", "10"))
SEED = int(os.environ.get("OUTBOX_TEST_SEED", "1"))


@pytest.fixture
def road(database: str, tmp_path: Path) -> Iterator[Road]:
    road = Road(database, tmp_path, seed=SEED)
    yield road
    road.end()


@pytest.fixture
def proxy(database: str) -> Iterator[Proxy]:
    proxy = Proxy(urlsplit(database).port or 5432)
    yield proxy
    proxy.close()


def test_nothing_is_lost_or_doubled_when_relays_are_killed_all_the_while(road: Road):
    """INVARIANT I1: every committed message arrives, once, whenever a relay dies.

    A step saved before its records, or records before their step, would lose or double what lay between them.
    """
    road.start_relay()
    road.start_relay()
    with closing(hold_open(road.database)):
        under_faults(Writers(road.database, seed=SEED, seconds=30), 10, road.moves_on, road.kill_one)
        report = road.report()
    assert road.killed > 0
    assert report.committed > 200
    assert not report.wrong(), report


LARGE = """
insert into outbox (topic, payload)
select 'orders', convert_to(json_build_object('writer', %s::int, 'n', n, 'version', null)::text, 'UTF8')
from generate_series(1, %s) n
"""


def a_large_window(database: str, entries: int) -> None:
    """Commit many messages at once, by two transactions that are open side by side."""
    with psycopg.connect(database) as one, psycopg.connect(database) as two:
        for writer, connection in ((101, one), (102, two)):
            connection.execute(
                "insert into done select %s, n, 'orders', null, null from generate_series(1, %s) n", [writer, entries]
            )
            connection.execute(LARGE, [writer, entries])
        two.commit()
        one.commit()


@pytest.mark.parametrize(
    "place", [f"{Failpoint.TAKEN}:1", f"{Failpoint.READ}:2", f"{Failpoint.APPENDED}:1", f"{Failpoint.APPENDED}:3"]
)
def test_a_relay_killed_at_each_moment_of_a_large_window_leaves_nothing_out(road: Road, place: str):
    """INVARIANT I1: a window of many chunks is taken up where it was left, at whatever moment the relay dies.

    A checkpoint that were saved by window instead of by chunk would double, one saved ahead of the append would lose.
    """
    a_large_window(road.database, 7_000)
    Writers(road.database, seed=SEED, transactions=20).start().finish()
    killed = road.start_relay(failpoint=place)
    assert killed.ended() == -9, road.words()
    road.relays.remove(killed)
    road.start_relay()
    report = road.report()
    assert report.committed > 14_000
    assert not report.wrong(), report


def test_what_was_rolled_back_never_arrives_and_what_was_committed_does(road: Road):
    """INVARIANT I2: what rolled back, whole or to a savepoint or after it was prepared, leaves no record.

    A reader that looked at rows before their COMMIT, or took a prepared transaction for committed, would show here.
    """
    road.start_relay()
    writers = Writers(road.database, seed=SEED + 1, transactions=120)
    writers.start().finish()
    report = road.report()
    with psycopg.connect(road.database) as connection:
        (drawn,) = connection.execute("select max(position) from outbox").fetchone() or (0,)
    assert drawn > report.committed > 300, "positions were drawn by transactions that rolled back"
    assert not report.wrong(), report


def test_each_keys_order_is_its_commit_order_while_relays_take_over_from_each_other(road: Road):
    """INVARIANT I3: versions counted up under a row lock arrive ascending, though the lease goes from relay to relay.

    The naive readers fail this very check (test_naive_readers); so would two holders at one time.
    """
    for _ in range(3):
        road.start_relay()

    def take_over() -> None:
        wait_until(lambda: road.holder() is not None, "no relay took the lease")
        holder = road.holder()
        if holder is not None:
            road.relays.remove(holder)
            holder.kill()
            road.start_relay()
            road.moves_on()

    under_faults(Writers(road.database, seed=SEED + 2, seconds=30), 10, take_over)
    report = road.report()
    assert road.newest()[0] > 3, "there were takeovers"
    assert not report.wrong(), report


def test_positions_never_go_back_over_crashes_of_the_server(own_postgresql_server: PostgresqlServer, tmp_path: Path):
    """INVARIANT I5: a step, an epoch or a position that was seen once is never followed by a lower one.

    A snapshot kept in memory over a crash calls the ids that are handed out again old, and loses what uses them.
    """
    database = install(own_postgresql_server.url())
    workload.prepare_database(database)
    road = Road(database, tmp_path, seed=SEED)
    road.start_relay()

    def crash() -> None:
        road.moves_on()
        own_postgresql_server.crash()
        own_postgresql_server.start()

    try:
        with Watch(road) as watch:
            under_faults(Writers(database, seed=SEED + 3, seconds=40), 8, crash)
            report = road.report()
        assert watch.looked > 10
        assert watch.regressed == []
        assert report.committed > 100
        assert not report.wrong(), report
    finally:
        road.end()


def test_a_relay_stopped_past_its_lease_is_fenced_when_it_goes_on(road: Road):
    """INVARIANT I6: a relay that sleeps through its lease moves nothing when it wakes, and goes back to standing by.

    Without the look at step and epoch under a lock it would append its chunk a second time, behind its successor's.
    """
    road.start_relay()
    road.start_relay()

    def stop_past_the_lease() -> None:
        wait_until(lambda: road.holder() is not None, "no relay took the lease")
        holder, (epoch, *_) = road.holder(), road.newest()
        if holder is None:
            return
        holder.stop()
        wait_until(lambda: road.newest()[0] > epoch, f"nobody took over\n{road.words()}")
        holder.resume()
        road.moves_on()
        assert holder.is_running(), road.words()

    under_faults(Writers(road.database, seed=SEED + 4, seconds=30), 8, stop_past_the_lease)
    report = road.report()
    assert road.newest()[0] > 3
    assert not report.wrong(), report


def test_cut_connections_lose_and_double_nothing(database: str, proxy: Proxy, tmp_path: Path):
    """INVARIANT I1: a COMMIT whose answer is lost happened or did not; the takeover finds out which.

    A relay that went on from what it believed would send a chunk again, or leave it out.
    """
    road = Road(database, tmp_path, seed=SEED, through=proxy)
    road.start_relay()
    choose = road.choose

    def cut() -> None:
        proxy.cut()
        road.moves_on()

    def cut_in_the_middle() -> None:
        cuts = proxy.cuts
        proxy.cut_after(choose.randint(1, 5_000), choose.choice(list(Direction)))
        wait_until(lambda: proxy.cuts > cuts, "no connection came so far")
        road.moves_on()

    def hang() -> None:
        proxy.hang()
        hangs_until = time.monotonic() + choose.random() * 3
        wait_until(lambda: time.monotonic() > hangs_until, "time passes")
        proxy.let_go()
        road.moves_on()

    def refuse() -> None:
        proxy.refuse()
        proxy.cut()
        accepted = proxy.accepted
        proxy.let_go()
        wait_until(lambda: proxy.accepted > accepted, "the relay connects again")
        road.moves_on()

    try:
        under_faults(
            Writers(database, seed=SEED + 5, seconds=40), 10, cut, cut_in_the_middle, cut_in_the_middle, hang, refuse
        )
        report = road.report()
        assert proxy.cuts > 0
        assert not report.wrong(), report
    finally:
        road.end()


def test_after_an_outage_the_lag_returns_to_zero_by_itself(own_postgresql_server: PostgresqlServer, tmp_path: Path):
    """INVARIANT I8: a relay outlives a server that is away, and catches up with nobody's help.

    One that ended, or went on with a broken connection, would leave a lag for a person to find.
    """
    database = install(own_postgresql_server.url())
    workload.prepare_database(database)
    road = Road(database, tmp_path, seed=SEED)
    relay = road.start_relay()
    try:
        writers = Writers(database, seed=SEED + 7, seconds=20).start()
        road.moves_on()
        said = len(road.words())
        own_postgresql_server.crash()
        wait_until(lambda: len(road.words()) > said, "the relay says that the database is away")
        own_postgresql_server.start()
        road.moves_on()
        writers.stop()
        road.drained()
        wait_until(lambda: relay_status(database)[0]["lag_messages"] == 0, "lag of zero")
        (status,) = relay_status(database)
        assert (status["lag_messages"], status["lag_seconds"], status["dead_letters"]) == (0, 0, 0)
        assert status["owner"]
        assert relay.is_running()
        report = road.report()
        assert not report.wrong(), report
    finally:
        road.end()


def test_all_faults_at_random(own_postgresql_server: PostgresqlServer, tmp_path: Path):
    """INVARIANT I1: and I2, I3, I5, I6, I8, under every fault there is, one after another and on top of each other."""
    database = install(own_postgresql_server.url())
    workload.prepare_database(database)
    proxy = Proxy(own_postgresql_server.port)
    road = Road(database, tmp_path, seed=SEED, through=proxy, lease=1.0)
    for _ in range(2):
        road.start_relay()
    choose = road.choose

    def crash() -> None:
        own_postgresql_server.crash()
        own_postgresql_server.start()

    def stop_and_go_on() -> None:
        relay = choose.choice(road.relays)
        relay.stop()
        road_until = time.monotonic() + choose.random() * 2.5
        wait_until(lambda: time.monotonic() > road_until, "time passes")
        relay.resume()

    def cut_later() -> None:
        proxy.cut_after(choose.randint(1, 20_000), choose.choice(list(Direction)))

    faults = (road.kill_one, crash, stop_and_go_on, cut_later, cut_later, proxy.cut, road.moves_on)
    try:
        with Watch(road) as watch:
            under_faults(
                Writers(database, seed=SEED + 6, seconds=CHAOS_SECONDS + 60, pause_seconds=0.05),
                CHAOS_SECONDS,
                *faults,
            )
            proxy.let_go()
            report = road.report()
        assert watch.regressed == []
        assert not report.wrong(), f"{report}\n{road.words()}"
    finally:
        road.end()
        proxy.close()
