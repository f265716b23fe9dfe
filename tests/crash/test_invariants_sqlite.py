"""I1 to I3, I5 and I6 on one SQLite file, under kills and stops."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from road import Road, Watch, under_faults
from sqlite_writers import SqliteWriters, prepare_file

from relay.failpoints import Failpoint
from tests.databases import install, wait_until


@pytest.fixture
def path(sqlite_url: str) -> str:
    install(sqlite_url)
    path = sqlite_url.removeprefix("sqlite:///")
    prepare_file(path)
    return path


@pytest.fixture
def road(path: str, sqlite_url: str, tmp_path: Path) -> Iterator[Road]:
    road = Road(sqlite_url, tmp_path)
    yield road
    road.end()


def test_nothing_is_lost_doubled_or_disordered_when_relays_are_killed_all_the_while(road: Road, path: str):
    """INVARIANT I1: entries, records and step are one transaction of the file; a relay dies before it or behind it."""
    road.start_relay()
    road.start_relay()
    with Watch(road) as watch:
        under_faults(SqliteWriters(path, seconds=30), 8, road.moves_on, road.kill_one)
        report = road.report()
    assert watch.regressed == []
    assert road.killed > 0
    assert report.committed > 100
    assert not report.wrong(), report


@pytest.mark.parametrize("place", [f"{Failpoint.TAKEN}:1", f"{Failpoint.READ}:2", f"{Failpoint.APPENDED}:2"])
def test_a_relay_killed_at_each_moment_leaves_nothing_out(road: Road, path: str, place: str):
    """INVARIANT I1: at whatever moment a relay dies, the next one takes up where it was."""
    killed = road.start_relay(failpoint=place)
    writers = SqliteWriters(path, seconds=30).start()
    assert killed.ended() == -9, road.words()
    road.relays.remove(killed)
    writers.stop()
    road.start_relay()
    report = road.report()
    assert report.committed > 0
    assert not report.wrong(), report


def test_a_relay_stopped_past_its_lease_is_fenced_when_it_goes_on(road: Road, path: str):
    """INVARIANT I6: a relay that wakes behind its lease finds another step under its own, and moves nothing."""
    road.start_relay()
    road.start_relay()

    def stop_past_the_lease() -> None:
        wait_until(lambda: road.holder() is not None, "no relay took the lease")
        holder, (epoch, *_) = road.holder(), road.newest()
        if holder is None:
            return
        holder.stop()
        # Stopped inside a transaction it blocks every writer of the file: then nobody takes over, and we let it go on.
        patience = time.monotonic() + 4
        wait_until(lambda: road.newest()[0] > epoch or time.monotonic() > patience, "time passes")
        holder.resume()
        road.moves_on()
        assert holder.is_running(), road.words()

    under_faults(SqliteWriters(path, seconds=30), 6, stop_past_the_lease)
    report = road.report()
    assert road.newest()[0] > 1, "there were takeovers"
    assert not report.wrong(), report
