"""What adds up at the end, and what does not: plain SQL over the databases, and nothing of the services' code."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from itertools import groupby, pairwise
from typing import Any

import psycopg

ORDER = ("flights", "hotels", "cars")
ENDS = "select state, coalesce(reason, ''), count(*) from trips group by 1, 2 order by 1, 3 desc, 2"
LOCKS = "select count(*) from customers where trip_id is not null"
OVERLAPS = """
    select count(*) from trips a join trips b on a.customer = b.customer and a.number < b.number
    where a.began_at < b.ended_at and b.began_at < a.ended_at
"""
LATE = "select count(*) from steps where late"
CANCELS = "select key, topic from outbox where type = 'Cancel' order by key, position"
OFFERS = """
    select count(*) from offers o
    where offered - available <>
        (select count(*) from bookings b where b.destination = o.destination and state = 'booked')
"""
MESSAGES = """
    select id::text, type, topic, headers ->> 'ce_correlationid', headers ->> 'ce_causationid', created_at from outbox
"""


@dataclass(frozen=True)
class Verdict:
    """What the demo shows at its end. Everything after `late` is 0, or something is wrong."""

    sagas: int
    booked: int
    bookings_left: int
    late: int  # booked after the deadline of their step, and taken back
    unfinished: int
    missing: int  # of a trip that is booked
    orphaned: int  # of a trip that is not
    offers_wrong: int
    locks_left: int
    overlaps: int
    out_of_order: int
    strays: int
    without_cause: int

    @property
    def wrong(self) -> list[str]:
        names = [one.name for one in fields(self)]
        return [name for name in names[names.index("unfinished") :] if getattr(self, name)]

    def table(self) -> str:
        rows = {
            "bookings that must be left (3 for each booked trip)": 3 * self.booked,
            "bookings that are left": self.bookings_left,
            "  missing": self.missing,
            "  of a trip that is not booked": self.orphaned,
            "bookings after a deadline, taken back": self.late,
            "offers that do not add up": self.offers_wrong,
            "sagas that have not ended": self.unfinished,
            "locks left": self.locks_left,
            "two trips of a customer at a time": self.overlaps,
            "compensations out of order": self.out_of_order,
            "replies that belong to nothing": self.strays,
            "replies whose cause is no command of their saga": self.without_cause,
        }
        return "\n".join(f"  {name:<56}{number:>6,}" for name, number in rows.items())


def ends(databases: Mapping[str, str]) -> list[tuple[str, str, int]]:
    """Return how many trips ended how, and why."""
    return [(str(state), str(reason), int(count)) for state, reason, count in _rows(databases["trips"], ENDS)]


def check(databases: Mapping[str, str]) -> Verdict:
    """Compare what the trips say with what the suppliers have."""
    trips = dict(_rows(databases["trips"], "select id::text, state from trips"))
    wanted = {(trip, supplier) for trip, state in trips.items() if state == "booked" for supplier in ORDER}
    left = {
        (trip, supplier)
        for supplier in ORDER
        for (trip,) in _rows(databases[supplier], "select trip_id from bookings where state = 'booked'")
    }
    return Verdict(
        sagas=len(trips),
        booked=len(wanted) // len(ORDER),
        bookings_left=len(left),
        late=_number(databases["trips"], LATE),
        unfinished=sum(state not in ("booked", "cancelled") for state in trips.values()),
        missing=len(wanted - left),
        orphaned=len(left - wanted),
        offers_wrong=sum(_number(databases[supplier], OFFERS) for supplier in ORDER),
        locks_left=_number(databases["trips"], LOCKS),
        overlaps=_number(databases["trips"], OVERLAPS),
        out_of_order=out_of_order(_rows(databases["trips"], CANCELS)),
        strays=_number(databases["trips"], "select count(*) from strays"),
        without_cause=_without_cause(databases),
    )


def out_of_order(cancels: list[tuple[Any, ...]]) -> int:
    """Count the commands to cancel that were not sent backwards; they come by trip, in the order of writing."""
    stacks = [[_supplier(topic) for _, topic in stack] for _, stack in groupby(cancels, lambda row: row[0])]
    return sum(later >= earlier for stack in stacks for earlier, later in pairwise(stack))


@dataclass(frozen=True)
class Said:
    """One message of a trip's conversation."""

    id: str
    by: str
    words: str
    correlation: str | None
    cause: str | None
    at: Any


def conversation(databases: Mapping[str, str], trip: str | None = None) -> list[Said]:
    """Return what was sent for a trip, or for all, as it lies in the outboxes of the services."""
    found = [
        Said(identity, service, f"{kind} -> {topic}", correlation, cause, at)
        for service, database in databases.items()
        for identity, kind, topic, correlation, cause, at in _rows(database, MESSAGES)
        if trip in (None, correlation)
    ]
    return sorted(found, key=lambda said: said.at)


def late_trip(databases: Mapping[str, str]) -> str | None:
    """Return a trip with a booking that came after its deadline, and with as many others as there are."""
    late = "select trip_id::text from steps where late order by number desc, deadline limit 1"
    found = _rows(databases["trips"], late)
    return str(found[0][0]) if found else None


def _without_cause(databases: Mapping[str, str]) -> int:
    """Count the replies that do not name a command of the same correlation id as their cause."""
    said = conversation(databases)
    commands = {(one.id, one.correlation) for one in said if one.by == "trips" and one.correlation}
    return sum(one.by != "trips" and (one.cause, one.correlation) not in commands for one in said)


def _supplier(topic: str) -> int:
    return next(number for number, name in enumerate(ORDER) if topic.endswith(name))


def _rows(database: str, question: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(database.replace("+psycopg", ""), autocommit=True) as connection:
        return connection.execute(question.encode()).fetchall()


def _number(database: str, question: str) -> int:
    return int(_rows(database, question)[0][0])
