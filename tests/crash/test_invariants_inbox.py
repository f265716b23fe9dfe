"""I4 on the whole road: writers, a relay and consumers as processes, killed and stopped in the middle of a batch."""

from collections.abc import Iterator
from pathlib import Path

import billing
import pytest
from checker import counts
from consumers import Consumers
from road import Road
from writers import Writers

from tests.databases import rows, wait_until


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
    consumers.end()


@pytest.mark.parametrize(
    ("inbox", "concurrencies"), [("inbox", (1, 1, 1)), ("inbox", (4, 1, 4)), ("by_offset", (1, 1, 1))]
)
def test_each_message_takes_effect_once_though_consumers_die_and_oversleep(
    road: Road, consumers: Consumers, inbox: str, concurrencies: tuple[int, int, int]
):
    """INVARIANT I4: the effects, the ids and the claim of a batch are one transaction, whoever is killed or stopped.

    Effects that were committed before their ids would come twice; a batch that was lost, with the one behind it
    handled, would be skipped for good, or come out of order. With --concurrency, a claim that ran ahead of a message
    in hand would skip it. By offset there are no ids: what keeps effects single is that the relay writes the log
    exactly once, and that the claim is a part of the batch's transaction, made by one consumer alone.
    """
    road.start_relay()
    writers = Writers(road.database, seed=4, transactions=120).start()
    first = consumers.start(inbox, concurrency=concurrencies[0])
    consumers.more()
    second = consumers.start(inbox, concurrency=concurrencies[1])
    first.kill()
    consumers.more()
    consumers.start(inbox, concurrency=concurrencies[2])
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
    ((ids,),) = rows(road.database, "select count(*) from inbox")
    assert ids == (0 if inbox == "by_offset" else committed)
