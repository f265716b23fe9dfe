"""Members of one consumer group, as processes; and a watch over whose the partitions are, by plain SQL."""

import random
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import Self

import billing
import psycopg
from checker import DONE, Arrival, Done, Report, compare
from processes import ROOT, Process

from tests.databases import rows, wait_until

GONE_SECONDS = 3.0
BEAT_SECONDS = 0.3
INBOX = (
    "from relay.logs.builtin import BuiltinLog; from relay.logs.builtin.group.store import Pulse;"
    f" BuiltinLog.pulse = Pulse({BEAT_SECONDS}, {GONE_SECONDS}); from inbox.cli import main; main()"
)
MOST, LEAST = 5, 2


class Consumers:
    """Members of the group `billing`. Their heartbeats and time-outs are short.

    Args:
        database: the log's, the outbox's and the handlers'.
        folder: for what they say.
        seed: of everything random.
    """

    def __init__(self, database: str, folder: Path, seed: int = 1) -> None:
        self.database = database
        self.running: list[Process] = []
        self.happened: dict[str, int] = defaultdict(int)
        self._folder = folder
        self._said = folder / "inboxes.txt"
        self.mark = folder / "mark"
        self._choose = random.Random(f"{seed}/consumers")

    def start(
        self, inbox: str = "inbox", *, concurrency: int = 1, once: bool = False, said: str = "inboxes.txt"
    ) -> Process:
        """Start one more member, with one of the inboxes of `billing`."""
        options = ["run", f"billing:{inbox}", "--database", self.database, "--log", self.database]
        options += ["--concurrency", str(concurrency)]
        path = f"{ROOT}:{Path(billing.__file__).parent}"
        environment = {"PYTHONPATH": path, billing.MARK: str(self.mark)}
        arguments = ["-c", INBOX, *options, *(["--once"] if once else [])]
        self.running.append(Process(self._folder / said, *arguments, **environment))
        return self.running[-1]

    def join(self) -> None:
        """One more, unless there are many."""
        if len(self.running) < MOST:
            process = self._start_some()
            self._is_member(process)
            self.happened["joined"] += 1

    def leave(self) -> None:
        """One is told to end, unless there are few."""
        if len(self.running) > LEAST:
            process = self._one()
            # Before that it has not come to listen to signals, and the signal itself would end it.
            self._is_member(process)
            self.running.remove(process)
            process.terminate()
            code = process.ended()
            assert code == 0, f"exit code {code}\n{self.words()}"
            self._has_left(process)
            self.happened["left"] += 1

    def kill(self) -> None:
        """One is killed, and another started in its place."""
        process = self._one()
        self.running.remove(process)
        process.kill()
        self._start_some()
        self.happened["killed"] += 1

    def oversleep(self) -> None:
        """One stands still until the others have called it gone, then goes on."""
        process = self._one()
        self._is_member(process)
        known = self.member(process)
        process.stop()
        wait_until(lambda: self.member(process) != known, f"it is called gone\n{self.words()}")
        process.resume()
        self.happened["overslept"] += 1

    def member(self, process: Process) -> list[str]:
        """Return the names under which a process is in the group."""
        found = rows(self.database, "select member from log_member where member like ?", f"%-{process.pid}-%")
        return [name for (name,) in found]

    def _has_left(self, process: Process) -> None:
        assert not self.member(process), "a clean end leaves the group"

    def _is_member(self, process: Process) -> None:
        wait_until(lambda: bool(self.member(process)), f"it is in the group\n{self.words()}")

    def _start_some(self) -> Process:
        return self.start(concurrency=self._choose.choice((1, 1, 4)))

    def _one(self) -> Process:
        return self._choose.choice(self.running)

    def effects(self) -> int:
        ((count,),) = rows(self.database, "select count(*) from effects")
        return int(count)

    def more(self) -> None:
        """Wait until more is handled."""
        before = self.effects()
        wait_until(lambda: self.effects() > before, f"nothing is handled\n{self.words()}")

    def lag(self) -> int:
        """Return how many records the group has not reported as handled."""
        found = rows(
            self.database,
            'select (select count(*) from log_record) - coalesce(sum("offset"), 0) from log_group_offset'
            " where consumer_group = 'billing'",
        )
        return int(found[0][0])

    def caught_up(self) -> None:
        """Wait until all that the log holds is handled, and reported (I8)."""
        wait_until(lambda: self.lag() == 0, f"the lag is zero again\n{self.words()}")

    def words(self) -> str:
        return self._said.read_text(errors="replace")[-3000:] if self._said.exists() else ""

    def report(self) -> Report:
        with psycopg.connect(self.database) as connection:
            effects = connection.execute("select topic, 0, place, key, payload from effects order by place").fetchall()
            return compare([Done(*row) for row in connection.execute(DONE)], [Arrival(*row) for row in effects])

    def end(self) -> None:
        """Kill what runs. Again: no effect."""
        for process in self.running:
            process.resume()
            process.kill()


# For each partition of a topic that a member heard of in time states: how long ago its owner was heard of, or null.
OWNERS = """
select t.name, p.number, extract(epoch from clock_timestamp() - m.seen_at)::float, coalesce(o."offset", 0)
from log_topic as t
cross join generate_series(0, t.partitions - 1) as p (number)
left join log_group_offset as o on o.topic_id = t.topic_id and o.partition = p.number and o.consumer_group = 'billing'
left join log_member as m on m.consumer_group = 'billing' and m.member = o.member
where exists (
    select from log_member as a where a.consumer_group = 'billing' and jsonb_exists(a.topics::jsonb, t.name)
        and a.seen_at > clock_timestamp() - make_interval(secs => %s)
)
"""


class OwnersWatch:
    """Looks all the while at whose each partition is, and at the group's offsets.

    Attributes:
        longest: the longest time, in seconds, for which a partition had no owner that was heard of in time, while
            somebody was there to have it.
        regressed: offsets that went back.
        looked: how often it has looked.
    """

    def __init__(self, database: str) -> None:
        self.longest = 0.0
        self.regressed: list[str] = []
        self.looked = 0
        self._database = database
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(30)

    def _look(self) -> None:
        heard: dict[tuple[str, int], float] = {}
        reached: dict[tuple[str, int], int] = {}
        with psycopg.connect(self._database, autocommit=True) as connection:
            while not self._over.wait(0.05):
                now = time.monotonic()
                found = connection.execute(OWNERS, [GONE_SECONDS]).fetchall()
                seen = {(topic, number): ago for topic, number, ago, _ in found}
                heard = {
                    place: now if ago is not None and ago < GONE_SECONDS else heard.get(place, now)
                    for place, ago in seen.items()
                }
                self.longest = max([self.longest, *(now - at for at in heard.values())])
                for topic, number, _, offset in found:
                    if offset < reached.get((topic, number), 0):
                        self.regressed.append(f"{topic}/{number}: {reached[topic, number]} -> {offset}")
                    reached[topic, number] = offset
                self.looked += 1
