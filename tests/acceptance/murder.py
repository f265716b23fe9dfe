"""Somebody who kills the processes of the order saga, and stops them past their leases, at random and seeded."""

import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import psycopg

from examples.order_saga.check import Verdict
from examples.order_saga.saga import INBOXES, RELAYS, WRITERS, Saga
from tests.databases import rows, wait_until

GONE_SECONDS = 3.0
"""How long a member of a group that is not heard of keeps its partitions; ten if nobody says anything."""
SESSION_SECONDS = 6.0
"""The same on Kafka, whose brokers allow no less."""
INBOX = (
    "from relay.logs.builtin import BuiltinLog; from relay.logs.builtin.group.store import Pulse;"
    f" BuiltinLog.pulse = Pulse(0.3, {GONE_SECONDS}); from inbox.cli import main; main()"
)
NAIVE_CONSUMER, NAIVE_RELAY = "tests.acceptance.naive_consumer", "tests.acceptance.naive_relay"
REST_SECONDS = 30.0
KINDS = ("relay", "inbox", "customers", "warehouse")
DECK = [*[("kill", kind) for kind in ("relay", "inbox") * 3 + KINDS], *[("stop", kind) for kind in KINDS]]
"""What is done, in random order; then again."""
STAND_STILL = 2
"""So many stand still at a time, at most."""
OWNER = "select owner from relay_checkpoint order by step desc limit 1"
MOVED = "select count(*), count(*) filter (where state <> 'placed') from orders"


class FastSaga(Saga):
    """The saga, with members of the built-in log's groups that are called gone sooner."""

    def command(self, service: str, does: str) -> list[str]:
        if does == "inbox":
            return [sys.executable, "-c", INBOX, "run", f"examples.order_saga.{service}:inbox"]
        return super().command(service, does)


class ForgetfulSaga(Saga):
    """The saga with consumers that remember no ids."""

    def command(self, service: str, does: str) -> list[str]:
        if does == "inbox":
            file = str(self.folder / f"{service}-offsets.json")
            return [sys.executable, "-m", NAIVE_CONSUMER, f"examples.order_saga.{service}:inbox", file]
        return super().command(service, does)


class CarelessSaga(FastSaga):
    """The saga with relays that read by position, and save where they are when they think of it."""

    def command(self, service: str, does: str) -> list[str]:
        if does == "relay":
            return [sys.executable, "-m", NAIVE_RELAY, str(self.folder / f"{service}-position")]
        return super().command(service, does)


@dataclass
class Still:
    """A process that stands still, and when it may go on: when it has lost what it held."""

    name: str
    process: subprocess.Popen[bytes]
    has_lost: Callable[[], bool]


class Murder:
    """Does it, one act at a time, each when the saga has moved on after the last.

    Args:
        saga: whose processes.
        seed: of everything random.
        victims: of which kinds.
    """

    def __init__(self, saga: Saga, seed: int, victims: tuple[str, ...] = KINDS) -> None:
        self.saga = saga
        self._victims = victims
        self.done: Counter[str] = Counter()
        self._choose = random.Random(f"{seed}/murder")
        self._planned: list[tuple[str, str]] = []
        self._still: list[Still] = []
        self._orders = psycopg.connect(plain(saga.stage.database("orders")), autocommit=True)

    def close(self) -> None:
        """End every process, whatever has come of it."""
        self.saga.stop()
        self._orders.close()

    def start(self) -> None:
        for name in (*RELAYS, *INBOXES, *WRITERS):
            self.saga.start(name)

    def moves_on(self) -> None:
        """Wait until an order more is placed, and another one comes to its end."""
        before = self._moved()
        wait_until(
            lambda: all(now > then for now, then in zip(self._moved(), before, strict=True)),
            f"the saga moves on\n{self.words()}",
        )

    def act(self) -> None:
        """Kill one, or let one stand still; wake those who have lost what they held."""
        for one in [one for one in self._still if one.has_lost()]:
            self._wake(one)
        if not self._planned:
            self._planned = [act for act in DECK if act[1] in self._victims]
            self._choose.shuffle(self._planned)
        what, kind = self._planned.pop()
        name = self._choose.choice(self._awake(kind))
        if what == "stop" and len(self._still) < STAND_STILL:
            self._stand_still(name)
        else:
            self._kill(name)
        self.moves_on()

    def end(self) -> None:
        """Wake all when it is time, close the shop, and wait until all orders have come to an end (I8)."""
        for one in list(self._still):
            wait_until(one.has_lost, f"{one.name} is passed by\n{self.words()}")
            self._wake(one)
        for name in [name for name in self.saga.running if "customers" in name]:
            self._end(name)

        def all_ended() -> bool:
            placed, ended = self._moved()
            return placed == ended

        wait_until(all_ended, f"all orders come to an end\n{self.words()}")

    def rest(self) -> Verdict:
        """Wait until all is at rest, let everybody look once more whether there is something left; return the check's.

        What a `--once` leaves, it ends with exit code 1 for.
        """
        with suppress(AssertionError):  # what is wrong is told better by the check
            wait_until(lambda: not self.saga.checked().wrong, "all is at rest", REST_SECONDS)
        self.saga.stop()
        for names in (RELAYS, INBOXES):
            processes = {name: self.saga.start(name, "--once") for name in names}
            for name, process in processes.items():
                assert process.wait(60) == 0, self.saga.words(name)
            self.saga.running.clear()
        return self.saga.checked()

    def words(self) -> str:
        """Return the end of what each process has said."""
        return "\n".join(f"{name}: {self.saga.words(name)[-600:]}" for name in self.saga.running)

    def _moved(self) -> tuple[int, int]:
        placed, ended = self._orders.execute(MOVED).fetchall()[0]
        return placed, ended

    def placed(self) -> int:
        return self._moved()[0]

    def _awake(self, kind: str) -> list[str]:
        still = {one.name for one in self._still}
        return [name for name in sorted(self.saga.running) if name not in still and name.split()[1] == kind]

    def _end(self, name: str) -> None:
        process = self.saga.running.pop(name)
        process.kill()
        process.wait()

    def _kill(self, name: str) -> None:
        """SIGKILL, and another one in its place; one that is more than there need be is not replaced."""
        self._end(name)
        service, does, *number = name.split()
        self.done[f"killed {does}"] += 1
        is_needed = not number or any(one.name.startswith(f"{service} {does}") for one in self._still)
        if is_needed:
            self.saga.start(name)

    def _stand_still(self, name: str) -> None:
        """SIGSTOP, and another one beside it."""
        service, does, *_ = name.split()
        process = self.saga.running[name]
        self._still.append(Still(name, process, self._loss_of(service, does, process)))
        process.send_signal(signal.SIGSTOP)
        self.done[f"stopped {does}"] += 1
        self.saga.start(f"{service} {does} {self.done.total()}")

    def _wake(self, one: Still) -> None:
        """SIGCONT: it goes on, knowing nothing of the time that passed."""
        self._still.remove(one)
        one.process.send_signal(signal.SIGCONT)

    def _loss_of(self, service: str, does: str, process: subprocess.Popen[bytes]) -> Callable[[], bool]:
        """Return what tells that others have taken over what a process holds now."""
        log = plain(self.saga.stage.log)
        if does == "relay" and not isinstance(self.saga, CarelessSaga):
            database, owner = plain(self.saga.stage.database(service)), f"-{process.pid}-"
            return lambda: not any(owner in (name or "") for (name,) in rows(database, OWNER))
        if does == "inbox" and isinstance(self.saga, ForgetfulSaga):
            return self._later(1.0)
        if does == "inbox" and log.startswith("kafka:"):
            return self._later(SESSION_SECONDS + 2)
        if does == "inbox":
            member = f"%-{process.pid}-%"
            return lambda: not rows(log, "select 1 from log_member where member like ?", member)
        return self._later(2.0)

    def _later(self, seconds: float) -> Callable[[], bool]:
        at = time.monotonic() + seconds
        return lambda: time.monotonic() > at


def plain(url: str) -> str:
    """Return the URL for a plain driver."""
    return url.partition("?")[0].replace("+psycopg", "")


def fast_log(log: str) -> str:
    """Return the log's URL with a short session time-out, where it is Kafka's."""
    return f"{log}&session.timeout.ms={SESSION_SECONDS * 1000:.0f}" if log.startswith("kafka:") else log
