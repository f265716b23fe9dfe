"""The road to Kafka under fault: relays as processes, topics of the test's own, and a report by plain consumers."""

import time
from contextlib import suppress
from pathlib import Path
from subprocess import TimeoutExpired

from checker import Report, check_elsewhere
from kafka_topics import Topics
from processes import RELAY, SMALL_CHUNKS, Process, start_relay
from road import DRAIN_SECONDS, Road
from writers import Writers

from relay.failpoints import Failpoint
from tests.databases import rows, wait_until

ON_KAFKA = [point for point in Failpoint if point is not Failpoint.APPENDED]
"""Every moment of a relay that produces to Kafka; it appends to its own database in none of them."""
NUMBERED = [Failpoint.OPENED, Failpoint.BEGUN]
"""Those that only exactly-once comes to: it says in the outbox that a chunk is open, and the log knows its number."""
LIFE_SECONDS = 0.5
"""How long a relay holds the lease, at most, before it is killed."""
ONCE_A_LEASE = [Failpoint.TAKEN, Failpoint.OPENED]


def moments(delivery: str) -> list[Failpoint]:
    """Return where a relay can be killed."""
    return [point for point in ON_KAFKA if delivery == "exactly-once" or point not in NUMBERED]


class KafkaRoad(Road):
    """Relays between an outbox and topics on Kafka.

    Args:
        database: where checker and writers connect.
        folder: for what the processes say.
        log: the URL of the brokers, for the relays.
        topics: what they produce to.
        delivery: the relays' guarantee.
        seed: of everything random.
        lease: the relays' lease in seconds.
    """

    def __init__(
        self, database: str, folder: Path, log: str, topics: Topics, delivery: str, *, seed: int = 1, lease: float = 1.0
    ) -> None:
        super().__init__(database, folder, log=log, seed=seed, lease=lease)
        self.topics = topics
        self.delivery = delivery
        self._follower = topics.follow()
        self._writers: list[Writers] = []

    def writers(self, seconds: float, **more: int) -> Writers:
        """Return writers that write to our topics: four, with pauses; the relays are to have room to run."""
        writers = Writers(
            self.database,
            seconds=seconds,
            suffix=self.topics.suffix,
            **{"seed": 1, "writers": 4, "pause_seconds": 0.05, **more},
        )
        self._writers.append(writers)
        return writers

    def start_relay(
        self, failpoint: str = "", *, delivery: str = "", log: str = "", once: bool = False, program: str = RELAY
    ) -> Process:
        relay = start_relay(
            self._folder / "relays.txt",
            self.database,
            log=log or self.log,
            lease=self._lease,
            failpoint=failpoint,
            once=once,
            delivery=delivery or self.delivery,
            program=program,
        )
        self.relays.append(relay)
        return relay

    def ended(self, relay: Process) -> int:
        """Wait until a relay ends by itself; return its exit code."""
        try:
            code = relay.ended()
        except TimeoutExpired:
            raise AssertionError(f"the relay does not end\n{self.words()}") from None
        self.relays.remove(relay)
        self.killed += code == -9
        return code

    def killed_at(self, place: str, **more: str) -> None:
        """Start a relay that kills itself at a failpoint, and wait until it has."""
        relay = self.start_relay(place, **more)
        assert self.ended(relay) == -9, self.words()

    def leave_a_repeat(self) -> None:
        """Let a relay die with a chunk in Kafka and no step that tells of it: at least once, it is sent again."""
        self.killed_at(f"{Failpoint.PRODUCED}:1")

    def start_doomed_relay(self) -> None:
        """Start a relay that ends at some failpoint, or that knows nothing of its end; some move few at a time."""
        program = self.choose.choice([RELAY, SMALL_CHUNKS])
        point = self.choose.choice([*moments(self.delivery), None, None, None])
        place = f"{point}:{1 if point in ONCE_A_LEASE else self.choose.randint(1, 8)}" if point else ""
        self.start_relay(place, program=program)

    def kill_holder(self) -> None:
        """Let the holder die, at its failpoint or whenever it may be, and start another that waits for its turn."""
        wait_until(lambda: self.holder() is not None, f"no relay took the lease\n{self.words()}")
        holder = self.holder()
        if holder is None:
            return
        until = time.monotonic() + self.choose.random() * LIFE_SECONDS
        wait_until(lambda: time.monotonic() > until or not holder.is_running(), "time passes")
        holder.kill()
        self.relays.remove(holder)
        self.killed += 1
        self.start_doomed_relay()

    def kill_any(self) -> None:
        """Kill a relay, the holder or one that stands by, and start one that is doomed in its place."""
        self.choose.choice(self.relays).kill()
        self.revive()

    def revive(self) -> None:
        """Start others in the places of relays that have ended."""
        for relay in [relay for relay in self.relays if not relay.is_running()]:
            self.relays.remove(relay)
            self.killed += 1
            self.start_doomed_relay()

    def goes_on(self) -> None:
        """Wait until the relays have moved something more, however many of them come to their end before."""
        before = self.records()

        def has_moved() -> bool:
            self.revive()
            return self.records() > before

        wait_until(has_moved, f"nothing came behind {before} records\n{self.words()}")

    def all_words(self) -> str:
        """Return all that the relays have said."""
        return (self._folder / "relays.txt").read_text(errors="replace")

    def records(self) -> int:
        """Return how many different messages have been seen in the topics."""
        return self._follower.look()

    def written(self) -> int:
        return int(rows(self.database, "select count(*) from done")[0][0])

    def drained(self) -> None:
        """Wait until all that was committed has arrived, and the relays know it (I8); as long as something arrives."""

        def is_through() -> bool:
            if self.records() < self.written():
                return False
            ((highest,),) = rows(self.database, "select coalesce(max(position), 0) from outbox")
            return self.newest()[2] >= highest and not self.is_open()

        before = -1
        while self.records() > before:  # a relay of small chunks may have much before it
            before = self.records()
            with suppress(AssertionError):  # what is missing is told better by the report
                wait_until(is_through, "", DRAIN_SECONDS)
                return

    def is_open(self) -> bool:
        """Return whether the newest step says that a chunk is on its way."""
        return rows(self.database, "select open_last from relay_checkpoint order by step desc limit 1") != [(None,)]

    def report(self) -> Report:
        self.drained()
        return self.so_far()

    def so_far(self) -> Report:
        """End the relays, and say what is wrong now."""
        self.end()
        arrivals = self.topics.read()
        assert set(self._follower.arrivals) <= set(arrivals), "what a reader has seen has gone away"
        return check_elsewhere(self.database, arrivals, fenced=self.delivery == "exactly-once")

    def close(self) -> None:
        """End everything, and delete the topics."""
        self.end()
        for writers in self._writers:
            with suppress(Exception):  # if it has not stopped them, the test has failed, and says why itself
                writers.stop()
        self._follower.close()
        self.topics.delete()


def only_repeats(report: Report) -> bool:
    """Return whether nothing is wrong but that messages came again: what at-least-once may do."""
    return not report.wrong().keys() - {"doubled"}
