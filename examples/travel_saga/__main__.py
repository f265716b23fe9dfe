"""Runs the saga: starts the stage and the processes, orders trips, gets in their way, and checks what is left.

python -m examples.travel_saga
"""

import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable

from sqlalchemy import Engine, create_engine, select
from sqlalchemy.orm import Session

from examples.running import PROGRAMS, ROOT, Failed, Processes, folder, sigterm_as_ctrl_c
from examples.travel_saga import check, saga
from examples.travel_saga.stage import SERVICES, Stage, staged
from examples.travel_saga.trips import Step, Trip, TripState

CUSTOMERS = [f"customer {number}" for number in range(1, 16)]
TRIPS = int(os.environ.get("TRIPS", "90"))
TRIPS_A_TICK = 2
TICK_SECONDS = 0.5
CITIES = ("Lisbon", "Oslo", "Rome")
OFFERS = {
    "flights": dict.fromkeys(CITIES, TRIPS),
    "hotels": {"Lisbon": TRIPS, "Oslo": TRIPS, "Rome": 12},
    "cars": {"Lisbon": TRIPS, "Oslo": 15},  # and no cars in Rome at all
}
HELD_BACK = (0.0, 0.1, 0.1, 0.5)
"""Which share of the trips waits while so many troubles are to come: each is to find trips under way."""
STUCK_SECONDS = 60  # nothing has moved for so long: something is broken


class Demo:
    """The processes of the saga, and what happens to them."""

    def __init__(self, stage: Stage, processes: Processes) -> None:
        self.stage = stage
        self.processes = processes
        self.engine: Engine = create_engine(stage.databases["trips"])
        self.began = time.monotonic()
        self.requested = 0

    def prepare(self) -> None:
        """Make the tables of the services, and those of the log where it is a database."""
        if not self.stage.log.startswith("kafka:"):
            self._run("trips", "outbox", "init", "--log", self.stage.log)
        self._run("trips", "python", "-m", "examples.travel_saga.orchestrator", "init")
        for supplier, offers in OFFERS.items():
            self._run(supplier, "python", "-m", "examples.travel_saga.supplier", "init", json.dumps(offers))

    def _run(self, service: str, *command: str) -> None:
        arguments = [str(PROGRAMS / command[0]), *command[1:]]
        environment = self.stage.environment(service)
        done = subprocess.run(arguments, cwd=ROOT, env=environment, check=False, capture_output=True, text=True)
        if done.returncode:
            raise Failed(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")

    def start(self, service: str) -> None:
        """Start a service: for the suppliers just the command that you would type."""
        command = ["inbox", "run", "examples.travel_saga.supplier:inbox"]
        if service == "trips":
            command = ["python", "-m", "examples.travel_saga.orchestrator", "run"]
        self.processes.start(service, *command, environment=self.stage.environment(service))

    def start_all(self) -> None:
        for service in SERVICES:
            self.processes.start(f"{service} relay", "relay", "run", environment=self.stage.environment(service))
            self.start(service)

    def order_trips(self, ended: int, troubles: int) -> None:
        """Order trips, as an API would: in a transaction of the orchestrator's database.

        The first one alone: when it has ended, all processes are up. `ended` have, `troubles` are to come.
        """
        if self.requested == 1 and not ended:
            return
        held_back = 0 if ended == self.requested else int(TRIPS * HELD_BACK[troubles])
        wanted = TRIPS - held_back - self.requested
        for _ in range(min(TRIPS_A_TICK, wanted) if self.requested else 1):
            with Session(self.engine) as session, session.begin():
                saga.request(session, random.choice(CUSTOMERS), random.choice(CITIES))
            self.requested += 1

    def look(self) -> Counter[str]:
        """Count the trips by their states, and the steps in doubt, now and ever."""
        with Session(self.engine) as session:
            found = Counter(session.scalars(select(Trip.state)).all())
            found.update(f"step {state}" for state in session.scalars(select(Step.state)))
            found["late"] = len(session.scalars(select(Step.number).where(Step.late)).all())
        return found

    def say(self, words: str) -> None:
        print(f"{time.monotonic() - self.began:5.0f} s  {words}", flush=True)

    def run(self) -> None:
        """Let everything run until all trips have come to an end."""
        trouble = self.trouble()
        moved_at, before, shown = time.monotonic(), Counter[str](), 0.0
        while True:
            self.processes.complain_if_one_ended()
            self.order_trips(_ended(before), len(trouble))
            now = self.look()
            if time.monotonic() - shown >= 1:
                shown = time.monotonic()
                self.say(
                    "".join(f"{state} {now[state]:>3}   " for state in TripState)
                    + f"in doubt {now['step in doubt']:>2}"
                )
            if trouble and trouble[0](now):
                trouble.pop(0)
            if _ended(now) == TRIPS:
                self.say(f"all {TRIPS} trips have ended")
                return
            if now != before:
                moved_at, before = time.monotonic(), now
            elif time.monotonic() - moved_at > STUCK_SECONDS:
                self.say(f"nothing has moved for {STUCK_SECONDS} s: the accounts are closed as they are")
                return
            time.sleep(TICK_SECONDS)

    def trouble(self) -> list[Callable[[Counter[str]], bool]]:
        """Return what is to happen, one after the other; each looks whether it is time, and says whether it was."""

        def cars_go(now: Counter[str]) -> bool:
            if now[TripState.BOOKED] < 5:  # noqa: PLR2004 - it has begun well
                return False
            self.say(f"cars (pid {self.processes.end('cars')}) go away: their commands wait in the log")
            return True

        def cars_come_back(now: Counter[str]) -> bool:
            if now["step in doubt"] < 3:  # noqa: PLR2004 - some steps have passed their deadline
                return False
            self.say("cars come back: they book what was asked for, and then read that it was cancelled")
            self.start("cars")
            return True

        def orchestrator_dies(now: Counter[str]) -> bool:
            if not now["late"]:
                return False
            self.say(f"orchestrator (pid {self.processes.kill('trips')}) killed with SIGKILL; another one starts")
            self.start("trips")
            return True

        return [cars_go, cars_come_back, orchestrator_dies]


def _ended(counted: Counter[str]) -> int:
    return counted[TripState.BOOKED] + counted[TripState.CANCELLED]


def show_conversation(stage: Stage, trip: str) -> None:
    """Print what was said for a trip: found by its correlation id, each message under the one that caused it."""
    said = check.conversation(stage.databases, trip)
    children: dict[str | None, list[check.Said]] = {}
    for one in said:
        cause = one.cause if any(one.cause == other.id for other in said) else None
        children.setdefault(cause, []).append(one)
    print(f"\na trip with a booking that came late: what was sent with its correlation id, {trip}\n")

    def tell(cause: str | None, depth: int) -> None:
        for one in children.get(cause, []):
            print(f"  {one.at:%M:%S}.{one.at.microsecond // 1000:03}  {'  ' * depth}{one.by}: {one.words}")
            tell(one.id, depth + 1)

    tell(None, 0)


def main() -> int:
    stage_name = os.environ.get("STAGE") or "embedded"
    print(f"stage {stage_name}: {'PostgreSQL and Kafka' if stage_name == 'kafka' else 'PostgreSQL'}", flush=True)
    servers = {"postgresql_url": os.environ.get("POSTGRESQL", ""), "kafka_url": os.environ.get("KAFKA", "")}
    with staged(stage_name, **servers) as stage, folder() as logs:
        with Processes(logs) as processes:
            demo = Demo(stage, processes)
            demo.prepare()
            print(f"starting an orchestrator, {', '.join(saga.SUPPLIERS)}, and a relay for each\n", flush=True)
            demo.start_all()
            demo.run()
        demo.engine.dispose()
        late = check.late_trip(stage.databases)
        if late is not None:
            show_conversation(stage, late)
        verdict, ends = check.check(stage.databases), check.ends(stage.databases)
    print(f"\n  {'sagas':<56}{verdict.sagas:>6,}")
    for state, reason, count in ends:
        print(f"    {state + (f': {reason}' if reason else ''):<54}{count:>6,}")
    print(f"{verdict.table()}\n")
    print(
        f"NOT IN ORDER: {', '.join(verdict.wrong)}"
        if verdict.wrong
        else "every trip is booked as a whole, or not at all"
    )
    return 1 if verdict.wrong or verdict.sagas != TRIPS else 0


if __name__ == "__main__":
    try:
        with sigterm_as_ctrl_c():
            sys.exit(main())
    except Failed as failed:
        sys.exit(str(failed))
    except KeyboardInterrupt:
        sys.exit("stopped")
