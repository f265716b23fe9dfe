"""The orchestrator's tables: what a saga is while nobody works on it.

Trip.state:   waiting -> booking -> booked
                            |
                            +----> cancelling -> cancelled

Step.state:   asked -> booked -> cancelling -> cancelled        the trip fails later: what was booked is given back
                |
                +----> refused                                  the trip fails here
                |
                +----> in doubt -> cancelled                    no reply in time: a Cancel is sent behind the command
"""

from datetime import datetime
from enum import StrEnum
from uuid import UUID, uuid4

from sqlalchemy import DateTime, ForeignKey, Identity, Index, LargeBinary
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from examples.travel_saga.settings import Settings
from inbox import Inbox
from outbox import Outbox

settings = Settings.from_environment()


class Base(DeclarativeBase):
    type_annotation_map = {datetime: DateTime(timezone=True)}  # noqa: RUF012 - SQLAlchemy reads it from the class


class TripState(StrEnum):
    WAITING = "waiting"
    BOOKING = "booking"
    BOOKED = "booked"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"


class StepState(StrEnum):
    ASKED = "asked"
    BOOKED = "booked"
    REFUSED = "refused"
    IN_DOUBT = "in doubt"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"


class Customer(Base):
    """The semantic lock: which trip of a customer is on its way. Longer than any transaction; a second trip waits."""

    __tablename__ = "customers"

    name: Mapped[str] = mapped_column(primary_key=True)
    trip_id: Mapped[UUID | None]


class Trip(Base):
    """One saga. Its row is locked by whoever works on it; its id is the correlation id of all that is sent for it."""

    __tablename__ = "trips"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    number: Mapped[int] = mapped_column(Identity())  # in which order a customer's trips wait
    customer: Mapped[str]
    destination: Mapped[str]
    state: Mapped[str] = mapped_column(default=TripState.WAITING)
    reason: Mapped[str | None]
    began_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]

    steps: Mapped[list["Step"]] = relationship(order_by="Step.number")


class Step(Base):
    """A step that was asked for. Those that are booked are the compensation stack, the highest number on top."""

    __tablename__ = "steps"

    trip_id: Mapped[UUID] = mapped_column(ForeignKey(Trip.id), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    supplier: Mapped[str]
    state: Mapped[str] = mapped_column(default=StepState.ASKED)
    deadline: Mapped[datetime]
    late: Mapped[bool] = mapped_column(default=False)  # it was booked, after its deadline

    __table_args__ = (Index("steps_deadline", "deadline", postgresql_where="state = 'asked'"),)


class Stray(Base):
    """A reply that belongs to nothing: kept for somebody to look at, and in nobody's way."""

    __tablename__ = "strays"

    number: Mapped[int] = mapped_column(primary_key=True)
    message_id: Mapped[UUID]
    source: Mapped[str | None]
    type: Mapped[str]
    correlation_id: Mapped[str | None]
    payload: Mapped[bytes | None] = mapped_column(LargeBinary)
    why: Mapped[str]


outbox = Outbox(metadata=Base.metadata, source="/trips")
inbox = Inbox(settings.group, metadata=Base.metadata)
