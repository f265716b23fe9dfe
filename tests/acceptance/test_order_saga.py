"""The order saga of the examples, on both stages: as it is shown, and while its processes are killed and stopped.

OUTBOX_TEST_SEED makes another run of it, OUTBOX_TEST_MURDERS a longer one.
"""

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

import pytest
from commands import OURS, ROOT
from murder import KINDS, CarelessSaga, FastSaga, ForgetfulSaga, Murder, fast_log

from examples.order_saga.saga import Saga
from examples.order_saga.settings import Settings
from examples.order_saga.stage import made
from tests.databases import rows

SEED = int(os.environ.get("OUTBOX_TEST_SEED", "1"))
ORDERS = 300
MURDERS = int(os.environ.get("OUTBOX_TEST_MURDERS", "24"))
NAIVE_MURDERS = 8
STAGES = ("embedded", "kafka")

logger = logging.getLogger(__name__)


@pytest.fixture
def settings(request: pytest.FixtureRequest, postgresql_server_url: str, postgresql_url: str) -> Settings:
    """The stage of the test's parameter, on the tests' own servers."""
    stage = getattr(request, "param", "embedded")
    kafka = request.getfixturevalue("kafka_url") if stage == "kafka" else ""
    return Settings(stage=stage, postgresql=postgresql_server_url, kafka=kafka)


on_both_stages = pytest.mark.parametrize("settings", STAGES, indirect=True)


def demo(settings: Settings) -> subprocess.Popen[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    return subprocess.Popen(
        [sys.executable, "-m", "examples.order_saga"],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**kept, **settings.environment()},
    )


@on_both_stages
def test_the_demo_ends_with_a_check_that_passes(settings: Settings):
    process = demo(replace(settings, orders=40, orders_per_second=25, card_cents=30_000, pieces=16, cards=20))
    try:
        said, _ = process.communicate(timeout=150)
    finally:
        process.kill()
    assert process.returncode == 0, said
    assert "the check passes" in said
    table = dict(line.strip().rsplit(maxsplit=1) for line in said.splitlines() if line.startswith("  "))
    assert int(table["orders"]) == int(table["shipped"]) + int(table["cancelled"]) == 40
    assert table["messages written"] == table["records in the log"]


def test_a_demo_that_is_interrupted_leaves_nothing_behind(settings: Settings):
    process = demo(settings)
    try:
        assert process.stdout is not None
        line = next(line for line in process.stdout if "placed" in line and "placed      0" not in line)
        assert "s  placed" in line
        mark = {name for (name,) in rows(settings.postgresql, SAGAS)}
        assert running_with(mark)
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 1
    assert "Traceback" not in said
    assert not mark & {name for (name,) in rows(settings.postgresql, SAGAS)}
    assert not running_with(mark)


SAGAS = "select datname from pg_database where starts_with(datname, 'saga_')"


def running_with(databases: set[str]) -> list[str]:
    """Return the processes that were started with one of the databases in their environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            environment = (process / "environ").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if any(name in environment for name in databases):
            found.append(process.name)
    return found


@pytest.fixture
def play(settings: Settings, tmp_path: Path) -> Iterator["Play"]:
    with ExitStack() as stack:
        yield Play(settings, tmp_path, stack)


class Play:
    """One performance of the saga, and what the check says of it."""

    def __init__(self, settings: Settings, folder: Path, stack: ExitStack) -> None:
        self.settings = replace(settings, orders=1_000_000, orders_per_second=8)
        made_stage = stack.enter_context(made(self.settings))
        self.stage = replace(made_stage, log=fast_log(made_stage.log))
        self.folder = folder
        self._stack = stack

    def of(self, kind: type[Saga], victims: tuple[str, ...] = KINDS) -> Murder:
        saga = kind(self.stage, self.settings, self.folder)
        saga.prepare()
        murder = Murder(saga, SEED, victims)
        self._stack.callback(murder.close)
        murder.start()
        murder.moves_on()
        return murder


@pytest.mark.timeout(600)
@on_both_stages
def test_the_saga_under_murder(play: Play, record_property):
    """INVARIANT I1, I2, I3, I4, I8: whoever dies or oversleeps its lease, all is right to the last unit."""
    murder = play.of(FastSaga)
    while murder.done.total() < MURDERS or murder.placed() < ORDERS:
        murder.act()
    murder.end()
    verdict = murder.rest()
    record_property("run", f"{dict(murder.done)}\n{verdict.table()}")
    logger.info("%s\n%s", dict(murder.done), verdict.table())
    assert not verdict.wrong, verdict.words()
    assert len(verdict.books.orders) >= ORDERS


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("kind", "victims", "finding"),
    [(ForgetfulSaga, "inbox", "has booked"), (CarelessSaga, "relay", "lies in the log")],
    ids=["consumers that remember nothing", "relays that read by position"],
)
def test_the_check_sees(play: Play, kind: type[Saga], victims: str, finding: str):
    """The same murders, with processes of the usual kind: the check has to fail."""
    murder = play.of(kind, (victims,))
    while murder.done.total() < NAIVE_MURDERS:
        murder.act()
    with suppress(AssertionError):  # what such processes lose may hold an order up for ever
        murder.end()
    wrong = murder.saga.checked().wrong
    logger.info("%s\n%s", dict(murder.done), "\n".join(wrong[:10]))
    assert any(finding in one for one in wrong), wrong
