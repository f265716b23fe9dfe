"""The orchestrator: handles the replies, and gives up on steps whose reply does not come.

python -m examples.travel_saga.orchestrator init    make the tables
python -m examples.travel_saga.orchestrator run
"""

import logging
import signal
import sys
import threading
from collections.abc import Callable
from datetime import UTC
from uuid import UUID

from apscheduler.schedulers.background import BackgroundScheduler
from pydantic import BaseModel, ValidationError
from sqlalchemy import Engine, create_engine, func, select
from sqlalchemy.orm import Session

from examples.travel_saga import saga
from examples.travel_saga.trips import Base, Step, StepState, Stray, Trip, inbox, settings
from inbox import Delivery
from outbox import current_correlation

REPLIES = settings.topic("trips")
DEADLINES_SECONDS = 0.5


class Reply(BaseModel):
    """What we need to know of a reply: pydantic passes by what newer suppliers add."""

    supplier: str
    reason: str = ""


# batch=False: with one reply in a transaction, rows are locked in one order only: a trip, its customer, the next trip.


@inbox.handler(REPLIES, type="Booked", batch=False)
def booked(delivery: Delivery, session: Session) -> None:
    reply = _apply(delivery, session, lambda trip, step, _: saga.booked(session, trip, step))
    if reply is not None and reply.supplier in saga.SUPPLIERS:
        saga.take_back(session, reply.supplier, delivery.message.key)


@inbox.handler(REPLIES, type="Refused", batch=False)
def refused(delivery: Delivery, session: Session) -> None:
    _apply(delivery, session, lambda trip, step, reply: saga.refused(session, trip, step, reply.reason))


@inbox.handler(REPLIES, type="Cancelled", batch=False)
def cancelled(delivery: Delivery, session: Session) -> None:
    _apply(delivery, session, lambda trip, step, _: saga.cancelled(session, trip, step))


@inbox.handler(REPLIES, batch=False)
def anything_else(delivery: Delivery, session: Session) -> None:
    _keep(delivery, session, f"no reply that we know: {delivery.message.type}")


def _apply(delivery: Delivery, session: Session, act: Callable[[Trip, Step, Reply], None]) -> Reply | None:
    """Lock the trip that a reply belongs to, and act on it. Return the reply if it belongs to none.

    The toolkit carries the correlation id: from the trip's command to what its handler writes. So the reply need not
    say which trip it is about. What belongs to nothing is kept: an error here would hold up everybody else's replies.
    """
    try:
        reply = Reply.model_validate_json(delivery.message.payload or b"")
    except ValidationError as error:
        _keep(delivery, session, f"it cannot be read: {error.errors(include_url=False, include_input=False)}")
        return None
    identity = _uuid(current_correlation().correlation_id)
    trip = None if identity is None else session.get(Trip, identity, with_for_update=True)
    step = None if trip is None else next((step for step in trip.steps if step.supplier == reply.supplier), None)
    if trip is None or step is None:
        _keep(delivery, session, "nobody asked for it")
        return reply
    act(trip, step, reply)
    return None


def _uuid(text: str | None) -> UUID | None:
    try:
        return UUID(text)
    except (TypeError, ValueError):
        return None


def _keep(delivery: Delivery, session: Session, why: str) -> None:
    message = delivery.message
    logging.getLogger("trips").warning("%s %s from %s: %s", message.type, message.id, message.source, why)
    session.add(
        Stray(
            message_id=message.id,
            source=message.source,
            type=message.type,
            correlation_id=current_correlation().correlation_id,
            payload=message.payload,
            why=why,
        )
    )


def give_up_late_steps(engine: Engine) -> None:
    """Compensate every step whose deadline has passed: by the database's clock, one trip in a transaction.

    Trip and step are both locked: a reply that is handled at this moment has its trip locked, so it is left alone; and
    PostgreSQL looks again at rows that changed before we had their locks. Several orchestrators may do this at once.
    """
    late = select(Trip, Step).join(Step, Step.trip_id == Trip.id)
    late = late.where(Step.state == StepState.ASKED, Step.deadline < func.now()).order_by(Step.deadline).limit(1)
    late = late.with_for_update(of=[Trip.__table__, Step.__table__], skip_locked=True)
    while True:
        with Session(engine) as session, session.begin():
            found = session.execute(late).first()
            if found is None:
                return
            trip, step = found
            saga.no_reply(session, trip, step)


def run() -> None:
    """Handle replies until SIGTERM or SIGINT."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    logging.getLogger("apscheduler").setLevel(logging.ERROR)  # a pass may take longer than its interval
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    engine = create_engine(settings.database_url)
    scheduler = BackgroundScheduler(timezone=UTC)
    scheduler.add_job(give_up_late_steps, "interval", seconds=DEADLINES_SECONDS, args=[engine], coalesce=True)
    scheduler.start()
    try:
        inbox.run(settings.database_url, settings.log, stop=stop)
    finally:
        scheduler.shutdown()


if __name__ == "__main__":
    if sys.argv[1:] == ["init"]:
        Base.metadata.create_all(create_engine(settings.database_url))
    elif sys.argv[1:] == ["run"]:
        run()
    else:
        sys.exit(__doc__)
