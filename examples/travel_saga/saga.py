"""The state machine: what becomes of a trip when it is requested, when a reply comes, and when none comes in time.

Each function works in the transaction that it is given, on a trip whose row is locked there. What it sends is in the
same transaction, so that the saga's state and what the others are told can never differ.
"""

from dataclasses import asdict, dataclass
from datetime import timedelta

from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from examples.travel_saga.trips import Customer, Step, StepState, Trip, TripState, outbox, settings
from outbox import correlate

SUPPLIERS = ("flights", "hotels", "cars")  # one after the other; compensation goes backwards


@dataclass(frozen=True)
class Book:
    customer: str
    destination: str


def request(session: Session, customer: str, destination: str) -> Trip:
    """Take an order for a trip; an API would call this in its request's transaction."""
    session.execute(insert(Customer).values(name=customer).on_conflict_do_nothing())
    locked = session.get_one(Customer, customer, with_for_update=True)
    trip = Trip(customer=customer, destination=destination)
    session.add(trip)
    session.flush()
    if locked.trip_id is None:
        _begin(session, locked, trip)
    return trip


def booked(session: Session, trip: Trip, step: Step) -> None:
    if step.state == StepState.ASKED:
        step.state = StepState.BOOKED
        _go_on(session, trip)
    elif step.state == StepState.IN_DOUBT:
        step.late = True  # the Cancel that takes it back was sent at the deadline, and is handled behind the Book
    elif step.state in (StepState.CANCELLED, StepState.REFUSED):
        # It cannot be: the supplier said that there is no booking. If it says now that there is one, take it back.
        step.late = True
        _send(session, trip, step, "Cancel", {})


def refused(session: Session, trip: Trip, step: Step, reason: str) -> None:
    if step.state == StepState.ASKED:
        step.state = StepState.REFUSED
        trip.reason = reason
        _compensate(session, trip)


def cancelled(session: Session, trip: Trip, step: Step) -> None:
    if step.state in (StepState.CANCELLING, StepState.IN_DOUBT):
        step.state = StepState.CANCELLED
        _compensate(session, trip)


def no_reply(session: Session, trip: Trip, step: Step) -> None:
    """Give a step up: its deadline has passed.

    Nobody knows whether it is booked, will be, or was refused. But a Cancel that is sent now is handled after the Book,
    because both have one topic and one key: whichever it is, there is no booking afterwards.
    """
    if step.state == StepState.ASKED:
        step.state = StepState.IN_DOUBT
        trip.reason = f"no reply from {step.supplier} in time"
        _send(session, trip, step, "Cancel", {})
        _compensate(session, trip)


def take_back(session: Session, supplier: str, key: str | None) -> None:
    """Cancel a booking that no trip knows of. The correlation id by which its supplier knows it is the reply's."""
    outbox.write(session, topic=settings.topic(supplier), key=key, type="Cancel", payload={})


def _begin(session: Session, customer: Customer, trip: Trip) -> None:
    customer.trip_id = trip.id
    trip.state = TripState.BOOKING
    trip.began_at = func.clock_timestamp()
    _go_on(session, trip)


def _go_on(session: Session, trip: Trip) -> None:
    """Ask for the next step; after the last one the trip is booked."""
    number = len(trip.steps)
    if number == len(SUPPLIERS):
        _end(session, trip, TripState.BOOKED)
        return
    step = Step(
        number=number,
        supplier=SUPPLIERS[number],
        state=StepState.ASKED,
        deadline=func.now() + timedelta(seconds=settings.reply_seconds),
    )
    trip.steps.append(step)
    _send(session, trip, step, "Book", asdict(Book(trip.customer, trip.destination)))


def _compensate(session: Session, trip: Trip) -> None:
    """Take back the booked step on top of the stack, one at a time; when nothing is left the trip is cancelled.

    A step in doubt holds nobody up: its supplier may be away for long. But the trip does not end before it is clear.
    """
    trip.state = TripState.CANCELLING
    states = [step.state for step in trip.steps]
    if StepState.CANCELLING in states:
        return
    if StepState.BOOKED in states:
        top = max((step for step in trip.steps if step.state == StepState.BOOKED), key=lambda step: step.number)
        top.state = StepState.CANCELLING
        _send(session, trip, top, "Cancel", {})
    elif StepState.IN_DOUBT not in states:
        _end(session, trip, TripState.CANCELLED)


def _end(session: Session, trip: Trip, state: TripState) -> None:
    """End a trip, and hand its customer's lock to the trip that has waited longest."""
    trip.state = state
    trip.ended_at = func.clock_timestamp()
    customer = session.get_one(Customer, trip.customer, with_for_update=True)
    customer.trip_id = None
    waiting = select(Trip).where(Trip.customer == trip.customer, Trip.state == TripState.WAITING)
    following = session.scalars(waiting.order_by(Trip.number).limit(1).with_for_update()).first()
    if following is not None:
        _begin(session, customer, following)


def _send(session: Session, trip: Trip, step: Step, command: str, payload: dict[str, str]) -> None:
    """Write a command, as part of its trip's conversation.

    In a handler the correlation id is set already: to that of the trip whose reply it handles, which need not be this
    trip. The cause is set there, too, and stays: the reply.
    """
    with correlate(correlation_id=trip.id):
        outbox.write(session, topic=settings.topic(step.supplier), key=str(trip.id), type=command, payload=payload)
