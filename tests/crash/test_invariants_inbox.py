"""I4 on the whole road: writers, a relay and consumers as processes, killed and stopped in the middle of a batch."""

from collections.abc import Iterator
from pathlib import Path

import billing
import psycopg
import pytest
from checker import DONE, Arrival, Done, Report, compare, counts
from processes import ROOT, Process
from road import Road
from writers import Writers

from tests.databases import rows, wait_until

GROUP_LEASE_SECONDS = 10
INBOX = "from inbox.cli import main; main()"


class Consumers:
    """Members of one group, as processes."""

    def __init__(self, database: str, folder: Path) -> None:
        self.database = database
        self.running: list[Process] = []
        self._said = folder / "inboxes.txt"

    def start(self, concurrency: int = 1) -> Process:
        """Start one more member. While one handles, the others stand by."""
        here = Path(billing.__file__).parent
        options = ["run", "billing:inbox", "--database", self.database, "--log", self.database]
        options += ["--concurrency", str(concurrency)]
        self.running.append(Process(self._said, "-c", INBOX, *options, PYTHONPATH=f"{ROOT}:{here}"))
        return self.running[-1]

    def effects(self) -> int:
        ((count,),) = rows(self.database, "select count(*) from effects")
        return int(count)

    def more(self) -> None:
        """Wait until more is handled: for a lease to run out, at most, and some time for the work itself."""
        before = self.effects()
        wait_until(lambda: self.effects() > before, f"nothing is handled\n{self.words()}", 3 * GROUP_LEASE_SECONDS)

    def words(self) -> str:
        return self._said.read_text(errors="replace")[-3000:]

    def report(self) -> Report:
        with psycopg.connect(self.database) as connection:
            effects = connection.execute("select topic, 0, place, key, payload from effects order by place").fetchall()
            return compare([Done(*row) for row in connection.execute(DONE)], [Arrival(*row) for row in effects])


@pytest.fixture
def road(database: str, tmp_path: Path) -> Iterator[Road]:
    rows(database, billing.SCHEMA)
    road = Road(database, tmp_path)
    yield road
    road.end()


@pytest.fixture
def consumers(road: Road, tmp_path: Path) -> Iterator[Consumers]:
    consumers = Consumers(road.database, tmp_path)
    yield consumers
    for one in consumers.running:
        one.kill()


@pytest.mark.parametrize("concurrencies", [(1, 1, 1), (4, 1, 4)])
def test_each_message_takes_effect_once_though_consumers_die_and_oversleep(
    road: Road, consumers: Consumers, concurrencies: tuple[int, int, int]
):
    """INVARIANT I4: the effects, the ids and the claim of a batch are one transaction, whoever is killed or stopped.

    Effects that were committed before their ids would come twice; a batch that was lost, with the one behind it
    handled, would be skipped for good, or come out of order. With --concurrency, a claim that ran ahead of a message
    in hand would skip it.
    """
    road.start_relay()
    writers = Writers(road.database, seed=4, transactions=120).start()
    first = consumers.start(concurrencies[0])
    consumers.more()
    second = consumers.start(concurrencies[1])
    first.kill()
    consumers.more()
    consumers.start(concurrencies[2])
    second.stop()
    consumers.more()
    second.resume()
    road.kill_one()
    writers.finish()
    road.drained()
    committed = counts(road.database)[0]
    wait_until(lambda: consumers.effects() >= committed, f"everything is handled\n{consumers.words()}", 60)
    report = consumers.report()
    assert second.is_running(), consumers.words()
    assert report.committed > 500
    assert not report.wrong(), report
