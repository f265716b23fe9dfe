"""A supplier: of flights, hotels or cars, each with a database of its own. It knows nothing of trips but their ids.

SUPPLIER=hotels python -m examples.travel_saga.supplier init '{"Lisbon": 9}'     make the tables, and offer something
SUPPLIER=hotels inbox run examples.travel_saga.supplier:inbox
"""

import json
import sys
from enum import StrEnum

from pydantic import BaseModel, ValidationError
from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from examples.travel_saga.settings import Settings
from inbox import Delivery, Inbox
from outbox import Outbox, current_correlation

settings = Settings.from_environment()
COMMANDS, REPLIES = settings.topic(settings.supplier), settings.topic("trips")


class Base(DeclarativeBase):
    pass


class BookingState(StrEnum):
    BOOKED = "booked"
    REFUSED = "refused"
    CANCELLED = "cancelled"


class Offer(Base):
    __tablename__ = "offers"

    destination: Mapped[str] = mapped_column(primary_key=True)
    offered: Mapped[int]
    available: Mapped[int]


class Booking(Base):
    """One for each trip, whatever became of it: so that a command that comes twice finds what was answered."""

    __tablename__ = "bookings"

    trip_id: Mapped[str] = mapped_column(primary_key=True)
    state: Mapped[str]
    destination: Mapped[str | None]
    reason: Mapped[str]


class Book(BaseModel):
    """What we need to know of the command: pydantic passes by what a newer orchestrator adds."""

    destination: str


outbox = Outbox(metadata=Base.metadata, source=f"/{settings.supplier}")
inbox = Inbox(settings.supplier, metadata=Base.metadata)


@inbox.handler(COMMANDS, type="Book")
def book(delivery: Delivery, session: Session) -> None:
    booking = session.get(Booking, _trip())
    if booking is None:
        booking = _booked(session, delivery.message.payload or b"")
        session.add(booking)
    _reply(delivery, session, "Booked" if booking.state == BookingState.BOOKED else "Refused", booking.reason)


@inbox.handler(COMMANDS, type="Cancel")
def cancel(delivery: Delivery, session: Session) -> None:
    """Take a booking back. When there is none, the row that is left says so to a Book that comes later."""
    booking = session.get(Booking, _trip())
    if booking is None:
        session.add(Booking(trip_id=_trip(), state=BookingState.CANCELLED, reason="cancelled before it was booked"))
    elif booking.state == BookingState.BOOKED:
        session.get_one(Offer, booking.destination, with_for_update=True).available += 1
        booking.state = BookingState.CANCELLED
        booking.reason = "cancelled"
    _reply(delivery, session, "Cancelled")


@inbox.handler(COMMANDS)
def anything_else(delivery: Delivery, session: Session) -> None:
    """Answer what we do not know: the saga goes on at once, instead of waiting for its deadline."""
    _reply(delivery, session, "Refused", f"{settings.supplier} know no {delivery.message.type}")


def _booked(session: Session, payload: bytes) -> Booking:
    try:
        wanted = Book.model_validate_json(payload)
    except ValidationError:
        reason = f"{settings.supplier} cannot read the command"
        return Booking(trip_id=_trip(), state=BookingState.REFUSED, reason=reason)
    offer = session.get(Offer, wanted.destination, with_for_update=True)
    if offer is None or not offer.available:
        reason = f"no {settings.supplier} left"
        return Booking(trip_id=_trip(), state=BookingState.REFUSED, destination=wanted.destination, reason=reason)
    offer.available -= 1
    return Booking(trip_id=_trip(), state=BookingState.BOOKED, destination=wanted.destination, reason="")


def _trip() -> str:
    """Return which trip the command is for: its correlation id, which what we write here carries on by itself."""
    return current_correlation().correlation_id or ""


def _reply(delivery: Delivery, session: Session, answer: str, reason: str = "") -> None:
    payload = {"supplier": settings.supplier, "reason": reason}
    outbox.write(session, topic=REPLIES, key=delivery.message.key, type=answer, payload=payload)


def init(offers: dict[str, int]) -> None:
    engine = create_engine(settings.database_url)
    Base.metadata.create_all(engine)
    with Session(engine) as session, session.begin():
        for destination, pieces in offers.items():
            session.merge(Offer(destination=destination, offered=pieces, available=pieces))


if __name__ == "__main__":
    if sys.argv[1:2] != ["init"]:
        sys.exit(__doc__)
    init(json.loads(sys.argv[2]) if sys.argv[2:] else {})
