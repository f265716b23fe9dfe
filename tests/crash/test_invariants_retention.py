"""The whole road with retention at the scale of seconds, while everything on it is killed."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psycopg
import pytest
import two_groups
from checker import DONE, Arrival, Done, Report, compare
from processes import RELAY, ROOT, Process
from road import Road, Watch
from two_groups import GROUPS
from writers import Writers

from tests.databases import rows, wait_until

INBOX = "from inbox.cli import main; main()"
RETAIN = "1s"


class Town:
    """Relays and two groups, as processes that prune behind themselves; with those to be killed by name."""

    def __init__(self, database: str, folder: Path, seed: int) -> None:
        self.database = database
        self.running: dict[str, Process] = {}
        self.choose = random.Random(seed)
        self._folder = folder

    def start(self, name: str) -> None:
        log = f"{self.database}?retain={RETAIN}&partitions=4"
        options = ["--database", self.database, "--log", log, "--retain", RETAIN if name == "relay" else "2s"]
        said = self._folder / f"{name}.txt"
        if name == "relay":
            self.running[name] = Process(said, "-c", RELAY, "run", "--lease", "1", *options)
        else:
            here = Path(two_groups.__file__).parent
            arguments = ["run", f"two_groups:{name}", *options]
            self.running[name] = Process(said, "-c", INBOX, *arguments, PYTHONPATH=f"{ROOT}:{here}")

    def is_up(self, group: str) -> bool:
        """Return whether a group is known for both topics."""
        known = "select count(distinct topic_id) from log_group_offset where consumer_group = ?"
        return rows(self.database, known, group) == [(2,)]

    def kill(self, name: str) -> None:
        self.running.pop(name).kill()

    def count(self, table: str) -> int:
        return int(rows(self.database, f"select count(*) from {table}")[0][0])

    def more(self, table: str) -> None:
        """Wait until more is there."""
        before = self.count(table)
        wait_until(lambda: self.count(table) > before, f"nothing comes into {table}\n{self.words()}", 60)

    def shrinks(self, table: str) -> None:
        """Wait until the oldest of a table is gone; writers write meanwhile."""
        oldest = {"outbox": "position", "log_record": "sequence"}[table]

        def first() -> object:
            return rows(self.database, f"select min({oldest}) from {table}")[0][0]

        before = first()
        wait_until(lambda: first() != before, f"nothing is deleted from {table}\n{self.words()}", 60)

    def handled(self, group: str, messages: int) -> None:
        """Wait until a group has handled so many; what is missing is told better by the report."""
        with suppress(AssertionError):
            wait_until(lambda: self.count(f"effects_{group}") >= messages, "", 60)

    def report(self, group: str) -> Report:
        query = f"select topic, 0, place, key, payload from effects_{group} order by place"
        with psycopg.connect(self.database) as connection:
            effects = connection.execute(query).fetchall()
            return compare([Done(*row) for row in connection.execute(DONE)], [Arrival(*row) for row in effects])

    def words(self) -> str:
        return "\n".join(file.read_text(errors="replace")[-2000:] for file in sorted(self._folder.glob("*.txt")))

    def end(self) -> None:
        for process in self.running.values():
            process.kill()


@contextmanager
def writing(database: str) -> Iterator[Writers]:
    """Writers at a pace that the groups can keep up with, until the block ends."""
    writers = Writers(database, seed=9, writers=3, seconds=120, pause_seconds=0.1).start()
    try:
        yield writers
    finally:
        writers.stop()


@pytest.fixture
def town(database: str, tmp_path: Path) -> Iterator[Town]:
    for group in GROUPS:
        rows(database, two_groups.SCHEMA.format(group))
    # There from the beginning: a group of one second's retention may come to a new topic too late.
    for topic in ("orders", "payments"):
        rows(database, "insert into log_topic (name, partitions, retain_seconds) values (?, 4, 1)", topic)
    town = Town(database, tmp_path, seed=9)
    yield town
    town.end()


def test_nothing_that_somebody_needs_is_deleted_whoever_is_killed(town: Town, tmp_path: Path):
    """INVARIANT I1: under all three retentions each message takes effect once in both groups (I4), in order (I3).

    An entry deleted before the relay has read it, or a record before a group has, would be lost; ids forgotten too
    early would let a repeat through; records gone from under a reader would stop it with words.
    """
    watched = Road(town.database, tmp_path)
    for name in ("relay", *GROUPS):
        town.start(name)
    for group in GROUPS:
        wait_until(lambda group=group: town.is_up(group), f"{group} is up\n{town.words()}")

    def restart(name: str) -> Callable[[], None]:
        def fault() -> None:
            town.kill(name)
            town.start(name)
            town.more("effects_mailing" if name == "relay" else f"effects_{name}")

        return fault

    def standstill() -> None:
        """One group stands still for longer than the log retains, and the log keeps what it has not read."""
        town.kill("mailing")
        town.shrinks("outbox")
        town.more("effects_billing")
        unread = town.count("log_record")
        town.start("mailing")
        town.more("effects_mailing")
        assert unread > 0

    with writing(town.database) as writers, Watch(watched) as watch:
        town.shrinks("log_record")
        for fault in (restart("relay"), standstill, restart("billing")):
            fault()
            town.shrinks("outbox")
        writers.stop()
        committed = town.count("done")
        for group in GROUPS:
            town.handled(group, committed)
        wait_until(lambda: town.count("inbox") < 2 * committed, f"no id is forgotten\n{town.words()}")
    for group in GROUPS:
        assert not town.report(group).wrong(), (group, str(town.report(group)), town.words())
    assert committed > 300
    assert town.count("outbox") < committed
    assert town.count("log_record") < committed
    assert watch.looked > 20 and watch.regressed == []
    assert all(process.is_running() for process in town.running.values()), town.words()
    assert "has lost records" not in town.words()
