"""I1 to I3, I5, I6 and I8 with the log in another database: between servers, between files, and from one to the other.

Every run is bounded; OUTBOX_TEST_CHAOS_SECONDS makes the last one longer.
"""

import os
import time
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import sqlite_writers
import writers as workload
from postgresql_server import PostgresqlServer
from proxy import Direction, Proxy
from road import Road, Watch, under_faults
from sqlite_writers import SqliteWriters
from writers import Writers

from relay.failpoints import Failpoint
from tests.databases import drop_database, install, make_database, rows, wait_until

CHAOS_SECONDS = float(os.environ.get("OUTBOX_TEST_CHAOS_SECONDS", "8"))
SEED = int(os.environ.get("OUTBOX_TEST_SEED", "1"))
PAIRS = ["postgresql-postgresql", "postgresql-sqlite", "sqlite-postgresql", "sqlite-sqlite"]
REPEATED = set(Failpoint) - {Failpoint.TAKEN, Failpoint.OPENED, Failpoint.APPENDED}
PLACES = [f"{Failpoint.TAKEN}:1", f"{Failpoint.OPENED}:1", *(f"{point}:{n}" for point in REPEATED for n in (1, 3))]
"""Every moment of a relay with its log elsewhere; it appends to its own database in none of them."""


@pytest.fixture
def log(postgresql_server_url: str) -> Iterator[str]:
    """A log in another database of the same server."""
    url = install(make_database(postgresql_server_url))
    yield url
    drop_database(url)


@pytest.fixture
def road(database: str, log: str, tmp_path: Path) -> Iterator[Road]:
    road = Road(database, tmp_path, log=log, seed=SEED)
    yield road
    road.end()


@pytest.fixture
def proxy(database: str) -> Iterator[Proxy]:
    proxy = Proxy(urlsplit(database).port or 5432)
    yield proxy
    proxy.close()


@pytest.fixture
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Road]:
    """A road between two databases of the dialects that the parameter names."""
    outbox, log = str(request.param).split("-")
    if outbox == "sqlite":
        database = install(request.getfixturevalue("sqlite_url"))
        sqlite_writers.prepare_file(database.removeprefix("sqlite:///"))
    else:
        database = request.getfixturevalue("database")
    log_url = install(f"sqlite:///{tmp_path / 'log.db'}") if log == "sqlite" else request.getfixturevalue("log")
    road = Road(database, tmp_path, log=log_url, seed=SEED)
    yield road
    road.end()


def writing(road: Road, seed: int = SEED) -> Writers | SqliteWriters:
    if road.database.startswith("sqlite"):
        return SqliteWriters(road.database.removeprefix("sqlite:///"), seed=seed, seconds=40)
    return Writers(road.database, seed=seed, seconds=40)


@pytest.mark.parametrize("pair", PAIRS, indirect=True)
def test_nothing_is_lost_or_doubled_when_relays_are_killed_all_the_while(pair: Road):
    """INVARIANT I1: the outbox says which chunk is open before the log gets it, with its number, and the log knows.

    A step saved behind the chunk instead of before it doubles, a number that is not compared loses or doubles.
    """
    pair.start_relay()
    pair.start_relay()
    with Watch(pair) as watch:
        under_faults(writing(pair), 6, pair.moves_on, pair.kill_one)
        report = pair.report()
    assert watch.regressed == []
    assert pair.killed > 0
    assert report.committed > 50
    assert not report.wrong(), f"{report}\n{pair.words()}"


@pytest.mark.parametrize("place", sorted(PLACES))
def test_a_relay_killed_at_each_moment_leaves_nothing_out_and_sends_nothing_twice(road: Road, place: str):
    """INVARIANT I1: wherever a relay dies, the log's number tells the next one whether the open chunk is there."""
    killed = road.start_relay(failpoint=place)
    # Few of them: the relay has to find nothing to do now and then, or it saves no step of its own behind a chunk.
    writers = Writers(road.database, seed=SEED, seconds=60, writers=2).start()
    assert killed.ended() == -9, road.words()
    road.relays.remove(killed)
    road.start_relay()
    writers.stop()
    report = road.report()
    assert report.committed > 0
    assert not report.wrong(), f"{report}\n{road.words()}"


@pytest.mark.parametrize("place", [f"{Failpoint.BEGUN}:2", f"{Failpoint.PRODUCED}:2"])
@pytest.mark.parametrize("pair", PAIRS, indirect=True)
def test_a_chunk_that_was_open_is_taken_up_while_writers_go_on(pair: Road, place: str):
    """INVARIANT I1: an open chunk is read again by its saved bounds, and not what has come since with it."""
    killed = pair.start_relay(failpoint=place)
    writers = writing(pair).start()
    assert killed.ended() == -9, pair.words()
    pair.relays.remove(killed)
    before = pair.records()
    wait_until(lambda: rows(pair.database, "select count(*) from outbox")[0][0] > before + 50, "more is written")
    pair.start_relay()
    pair.moves_on()
    writers.stop()
    report = pair.report()
    assert not report.wrong(), f"{report}\n{pair.words()}"


def test_a_relay_stopped_past_its_lease_is_fenced_by_the_log_when_it_goes_on(road: Road):
    """INVARIANT I6: opening the log's producer fences the older epochs: what they had under way is never appended."""
    road.start_relay()
    road.start_relay()

    def stop_past_the_lease() -> None:
        wait_until(lambda: road.holder() is not None, "no relay took the lease")
        holder, (epoch, *_) = road.holder(), road.newest()
        if holder is None:
            return
        holder.stop()
        wait_until(lambda: road.newest()[0] > epoch, f"nobody took over\n{road.words()}")
        road.moves_on()
        holder.resume()
        road.moves_on()
        assert holder.is_running(), road.words()

    under_faults(Writers(road.database, seed=SEED + 4, seconds=30), 8, stop_past_the_lease)
    report = road.report()
    assert road.newest()[0] > 3
    assert not report.wrong(), report


def cut_at_every_range(proxy: Proxy, road: Road) -> None:
    """Cut once in each range of bytes, from a message's first to behind several, in each direction."""
    ranges = cycle([(1, 60), (60, 300), (300, 1_500), (1_500, 6_000), (6_000, 30_000)])
    for direction in Direction:
        for low, high in [next(ranges) for _ in range(5)]:
            cuts = proxy.cuts
            proxy.cut_after(road.choose.randint(low, high), direction)
            wait_until(lambda cuts=cuts: proxy.cuts > cuts, "no connection came so far")
            road.moves_on()


@pytest.mark.parametrize("side", ["outbox", "log"])
def test_connections_cut_at_every_range_of_bytes_lose_and_double_nothing(
    database: str, log: str, proxy: Proxy, tmp_path: Path, side: str
):
    """INVARIANT I1: the COPY breaks off on its way out, on its way in, or the append's answer is lost.

    A chunk that came in part were stored in part; an append whose answer is lost would be sent a second time.
    """
    road = Road(database, tmp_path, log=log, seed=SEED, **{"through" if side == "outbox" else "log_through": proxy})
    road.start_relay()
    try:
        writers = Writers(database, seed=SEED + 5, seconds=90).start()
        cut_at_every_range(proxy, road)
        writers.stop()
        report = road.report()
        assert not report.wrong(), f"{report}\n{road.words()}"
    finally:
        road.end()


def test_a_log_that_hangs_or_is_away_costs_time_and_nothing_else(database: str, log: str, proxy: Proxy, tmp_path: Path):
    """INVARIANT I8: while the log does not answer the relay says so and keeps trying; then it catches up by itself."""
    road = Road(database, tmp_path, log=log, seed=SEED, log_through=proxy)
    relay = road.start_relay()
    try:
        writers = Writers(database, seed=SEED, seconds=90).start()
        road.moves_on()
        for fault in (proxy.hang, lambda: (proxy.refuse(), proxy.cut())):
            said = road.words().count("waiting for")
            fault()
            wait_until(lambda said=said: road.words().count("waiting for") > said, "it says that the log is away")
            proxy.let_go()
            road.moves_on()
        writers.stop()
        report = road.report()
        assert "answers again" in road.words()
        assert relay.ended() == -9, "it ran until the test ended it"
        assert not report.wrong(), f"{report}\n{road.words()}"
    finally:
        road.end()


def test_two_services_relays_append_to_one_log_side_by_side(
    database: str, log: str, postgresql_server_url: str, sqlite_url: str, tmp_path: Path
):
    """INVARIANT I3: appends take turns by the log's lock; each service keeps its order, without a hole.

    A step that is not locked, or a lock that is missing, shows as a hole, a repeat, or relays that block each other.
    """
    sqlite_writers.prepare_file(install(sqlite_url).removeprefix("sqlite:///"))
    roads = [Road(url, tmp_path / name, log=log) for url, name in ((database, "one"), (sqlite_url, "two"))]
    try:
        for road, name in zip(roads, ("one", "two"), strict=True):
            (tmp_path / name).mkdir()
            road.start_relay()
        one = Writers(database, seed=SEED, transactions=100).start()
        two = SqliteWriters(sqlite_url.removeprefix("sqlite:///"), seed=SEED, transactions=100).start()
        roads[0].moves_on()
        roads[0].kill_one()
        roads[1].kill_one()
        one.finish()
        two.finish()
        wanted = sum(rows(url, "select count(*) from done")[0][0] for url in (database, sqlite_url))
        wait_until(lambda: roads[0].records() >= wanted, "both are through")
        found = rows(log, 'select topic_id, partition, "offset", source, sequence from log_record order by 1, 2, 3')
    finally:
        for road in roads:
            road.end()
    expected: dict[tuple[int, int], int] = {}
    for topic, partition, offset, *_ in found:
        assert offset == expected.get((topic, partition), 0)
        expected[topic, partition] = offset + 1
    assert len(found) == wanted
    assert len({(source, sequence) for *_, source, sequence in found}) == wanted


@pytest.fixture
def other_postgresql_server() -> Iterator[PostgresqlServer]:
    server = PostgresqlServer(settings={"fsync": "off"}).start()
    yield server
    server.delete()


def test_all_faults_at_random_on_either_side(
    own_postgresql_server: PostgresqlServer, other_postgresql_server: PostgresqlServer, tmp_path: Path
):
    """INVARIANT I1: and I2, I3, I5, I6, I8, whichever server crashes, connection is cut or relay is killed."""
    servers = own_postgresql_server, other_postgresql_server
    database, log = (install(server.url()) for server in servers)
    workload.prepare_database(database)
    proxies = [Proxy(server.port) for server in servers]
    road = Road(database, tmp_path, log=log, seed=SEED, through=proxies[0], log_through=proxies[1])
    for _ in range(2):
        road.start_relay()
    choose = road.choose

    def crash() -> None:
        server = choose.choice(servers)
        server.crash()
        server.start()

    def stop_and_go_on() -> None:
        relay = choose.choice(road.relays)
        relay.stop()
        until = time.monotonic() + choose.random() * 2.5
        wait_until(lambda: time.monotonic() > until, "time passes")
        relay.resume()

    def cut_later() -> None:
        choose.choice(proxies).cut_after(choose.randint(1, 20_000), choose.choice(list(Direction)))

    def cut() -> None:
        choose.choice(proxies).cut()

    try:
        with Watch(road) as watch:
            writers = Writers(database, seed=SEED + 6, seconds=CHAOS_SECONDS + 60, pause_seconds=0.05)
            faults = (road.kill_one, crash, stop_and_go_on, cut_later, cut_later, cut, road.moves_on)
            under_faults(writers, CHAOS_SECONDS, *faults)
            for proxy in proxies:
                proxy.let_go()
            report = road.report()
        assert watch.regressed == []
        assert not report.wrong(), f"{report}\n{road.words()}"
    finally:
        road.end()
        for proxy in proxies:
            proxy.close()
