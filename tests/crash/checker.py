"""What really happened, by plain SQL over the tables: shares no code with the product.

The table `done` says what was committed. Nothing is asserted here; a report says how many were lost, ghostly, doubled
or out of order, with the first few of each.
"""

import json
import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import psycopg


class Done(NamedTuple):
    """One message of a committed transaction."""

    writer: int
    n: int
    topic: str
    key: str | None
    version: int | None


class Arrival(NamedTuple):
    """One record, in the order of its partition; a log without partitions has one."""

    topic: str
    partition: int
    offset: int
    key: str | None
    payload: bytes
    epoch: int = 0
    id: str = ""
    sequence: int = 0


@dataclass(slots=True)
class Report:
    """What is wrong, as descriptions; all empty when nothing is."""

    committed: int = 0
    arrived: int = 0
    lost: list[str] = field(default_factory=list)
    ghosts: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    disordered: list[str] = field(default_factory=list)
    holes: list[str] = field(default_factory=list)
    regressed: list[str] = field(default_factory=list)
    unfenced: list[str] = field(default_factory=list)

    def wrong(self) -> dict[str, int]:
        """Return how many of each there are, those that there are none of left out."""
        kinds = ("lost", "ghosts", "doubled", "disordered", "holes", "regressed", "unfenced")
        return {kind: len(getattr(self, kind)) for kind in kinds if getattr(self, kind)}

    def __str__(self) -> str:
        first = {kind: getattr(self, kind)[:3] for kind in self.wrong()}
        return f"{self.committed} committed, {self.arrived} arrived, wrong: {self.wrong() or 'nothing'} {first or ''}"


def compare(done: Iterable[Done], arrivals: Sequence[Arrival]) -> Report:
    """Compare what was committed with what arrived; I1, I2, I3 and how often."""
    expected = {(one.writer, one.n): one for one in done}
    report = Report(committed=len(expected), arrived=len(arrivals))
    seen: dict[tuple[int, int], int] = defaultdict(int)
    keys: dict[tuple[str, str], tuple[int, int]] = {}
    for arrival in arrivals:
        told: dict[str, Any] = json.loads(arrival.payload)
        who = (told["writer"], told["n"])
        one = expected.get(who)
        seen[who] += 1
        if one is None or (one.topic, one.key, one.version) != (arrival.topic, arrival.key, told["version"]):
            report.ghosts.append(f"{arrival.topic}/{arrival.partition}/{arrival.offset}: {who} {one}")
        elif seen[who] == 1:
            _place(report, one, arrival, keys)
    report.lost = [f"{one}" for who, one in expected.items() if who not in seen]
    report.doubled = [f"{who} {times} times" for who, times in seen.items() if times > 1]
    return report


def _place(report: Report, one: Done, arrival: Arrival, keys: dict[tuple[str, str], tuple[int, int]]) -> None:
    """Compare a first appearance with those of its key before it; `keys` has their partition and newest version."""
    if one.key is None or one.version is None:
        return
    partition, newest = keys.get((one.topic, one.key), (arrival.partition, 0))
    if one.version <= newest:
        report.disordered.append(f"{one} after version {newest}, at offset {arrival.offset}")
    elif arrival.partition != partition:
        report.disordered.append(f"{one}: in partition {arrival.partition}, those before it in {partition}")
    keys[one.topic, one.key] = (partition, max(newest, one.version))


class Step(NamedTuple):
    """One row of the relay's journal; `read` is how far its saved snapshot, or on SQLite its position, reaches."""

    incarnation: str
    step: int
    epoch: int
    read: int
    position: int


def check_steps(report: Report, steps: Sequence[Step]) -> None:
    """Look for a step missing, or an epoch, snapshot or position that went back (I5). Steps come in their order."""
    for before, after in pairwise(steps):
        if before.incarnation != after.incarnation:
            continue
        whole = after.step == before.step + 1
        if not whole or after.epoch < before.epoch or after.read < before.read or after.position < before.position:
            report.regressed.append(f"{before} -> {after}")


def check_offsets(report: Report, arrivals: Sequence[Arrival]) -> None:
    """Look for holes in the offsets of each partition."""
    following: dict[tuple[str, int], int] = defaultdict(int)
    for arrival in arrivals:
        place = (arrival.topic, arrival.partition)
        if arrival.offset != following[place]:
            report.holes.append(f"{place}: {arrival.offset} instead of {following[place]}")
        following[place] = arrival.offset + 1


def check_names(report: Report, entries: Iterable[Sequence[Any]], arrivals: Sequence[Arrival]) -> None:
    """Compare ids and sequences on the wire with the outbox's rows: (id, position, payload).

    A record that bears another message's name is a ghost; a sequence that does not grow over the first appearances of a
    key is disorder.
    """
    rows = {(told["writer"], told["n"]): row[:2] for row in entries for told in [json.loads(row[2])]}
    seen: set[str] = set()
    newest: dict[tuple[str, str], int] = {}
    for arrival in arrivals:
        told = json.loads(arrival.payload)
        row = rows.get((told["writer"], told["n"]))
        if row is not None and row != (arrival.id, arrival.sequence):
            report.ghosts.append(f"{arrival.id}, sequence {arrival.sequence}: in the outbox it is {row}")
        if arrival.key is not None and arrival.id not in seen:
            place = (arrival.topic, arrival.key)
            if arrival.sequence <= newest.get(place, 0):
                report.disordered.append(f"{place}: sequence {arrival.sequence} first seen behind {newest[place]}")
            newest[place] = arrival.sequence
        seen.add(arrival.id)


def check_epochs(report: Report, arrivals: Sequence[Arrival]) -> None:
    """Look for a record behind one of a newer epoch: the log let in a relay that was no longer the holder (I6)."""
    for before, after in pairwise(arrivals):
        if before[:2] == after[:2] and after.epoch < before.epoch:
            report.unfenced.append(f"{after[:4]} of epoch {after.epoch} behind epoch {before.epoch}")


RECORDS = """
select t.name, r.partition, r."offset", r.key, r.payload, r.epoch
from log_record as r join log_topic as t on t.topic_id = r.topic_id
order by t.name, r.partition, r."offset"
"""
STEPS_ON_POSTGRESQL = """
select incarnation::text, step, epoch, pg_snapshot_xmax(snapshot_from::pg_snapshot)::text::bigint, position
from relay_checkpoint order by incarnation, step
"""
STEPS_ON_SQLITE = "select incarnation, step, epoch, last, position from relay_checkpoint order by incarnation, step"
DONE = "select writer, n, topic, key, version from done"


def check(url: str, log: str = "") -> Report:
    """Return what is wrong with the journals in this database, and with the built-in log: there, or at another URL."""
    steps = STEPS_ON_SQLITE if url.startswith("sqlite") else STEPS_ON_POSTGRESQL
    return _checked(_all(url, DONE), _all(log or url, RECORDS), _all(url, steps))


def _all(url: str, text: str) -> list[Any]:
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"), timeout=30)) as file:
            return file.execute(text).fetchall()
    with psycopg.connect(url) as connection:
        return connection.execute(text.encode()).fetchall()


def _checked(done: Sequence[Any], records: Sequence[Any], steps: Sequence[Any]) -> Report:
    arrivals = [Arrival(*row) for row in records]
    report = compare([Done(*row) for row in done], arrivals)
    check_offsets(report, arrivals)
    check_epochs(report, arrivals)
    check_steps(report, [Step(*row) for row in steps])
    return report


ENTRIES = "select id::text, position, payload from outbox"


def check_elsewhere(url: str, arrivals: Sequence[Arrival], *, fenced: bool) -> Report:
    """Return what is wrong with the journals in this database, and with what was read from a log of another kind.

    Args:
        url: a PostgreSQL database; its entries are all kept.
        arrivals: all that the log's readers see.
        fenced: the log is to refuse what comes from an older epoch.
    """
    report = compare([Done(*row) for row in _all(url, DONE)], arrivals)
    check_names(report, _all(url, ENTRIES), arrivals)
    check_steps(report, [Step(*row) for row in _all(url, STEPS_ON_POSTGRESQL)])
    if fenced:
        check_epochs(report, arrivals)
    return report


NEWEST = """
select epoch, step, position, owner from relay_checkpoint order by step desc limit 1
"""


def counts(url: str, log: str = "") -> tuple[int, int]:
    """Return how many messages are committed, and how many records the log has."""
    ((committed,),) = _all(url, "select count(*) from done")
    ((records,),) = _all(log or url, "select count(*) from log_record")
    return committed, records
