"""Shipping: sends what is paid and reserved. It alone decides what becomes of an order, once, and the others follow.

Sending, a customer's wish to cancel, a declined card and missing stock meet in one row of one database: the first of
them is the decision, and it is announced in the same transaction.

python -m examples.order_saga.shipping init         make the tables
python -m examples.order_saga.shipping warehouse    send parcels, until it is told to end
inbox run examples.order_saga.shipping:inbox
"""

import sys
import time
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import DateTime, create_engine, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from examples.order_saga.settings import Settings
from inbox import Delivery, Inbox
from outbox import Outbox

settings = Settings.from_environment()
ORDERS, PAYMENTS, STOCK, SHIPPING = map(settings.topic, ("orders", "payments", "stock", "shipping"))
REASONS = {
    "CancelRequested": "the customer's wish",
    "PaymentDeclined": "card declined",
    "StockMissing": "out of stock",
}


class Base(DeclarativeBase):
    type_annotation_map = {datetime: DateTime(timezone=True)}  # noqa: RUF012 - SQLAlchemy's way to write it


class Shipment(Base):
    __tablename__ = "shipments"

    order_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    state: Mapped[str]  # waiting, then packing, then shipped; or cancelled, from either of the first two
    paid: Mapped[bool] = mapped_column(default=False)
    reserved: Mapped[bool] = mapped_column(default=False)
    packing_since: Mapped[datetime | None]


outbox = Outbox(metadata=Base.metadata, source="/shipping")
inbox = Inbox("shipping", metadata=Base.metadata)


@dataclass(frozen=True)
class OrderEvent:
    """What shipping needs to know of any event of the others."""

    order_id: int


def shipment_of(session: Session, order_id: int) -> Shipment:
    """Return an order's shipment, locked: events of three topics meet in it, in any order, or even side by side."""
    session.execute(insert(Shipment).values(order_id=order_id, state="waiting").on_conflict_do_nothing())
    return session.get_one(Shipment, order_id, with_for_update=True)


@inbox.handler(PAYMENTS, type="PaymentCaptured")
def paid(delivery: Delivery[OrderEvent], session: Session) -> None:
    shipment = shipment_of(session, delivery.data.order_id)
    shipment.paid = True
    pack_if_complete(shipment)


@inbox.handler(STOCK, type="StockReserved")
def reserved(delivery: Delivery[OrderEvent], session: Session) -> None:
    shipment = shipment_of(session, delivery.data.order_id)
    shipment.reserved = True
    pack_if_complete(shipment)


def pack_if_complete(shipment: Shipment) -> None:
    """Begin to pack. An order that is called off, or sent already, stays so: the answer came too late, or again."""
    if shipment.state == "waiting" and shipment.paid and shipment.reserved:
        shipment.state, shipment.packing_since = "packing", func.now()


@inbox.handler(ORDERS, type="CancelRequested")
@inbox.handler(PAYMENTS, type="PaymentDeclined")
@inbox.handler(STOCK, type="StockMissing")
def cancel(delivery: Delivery[OrderEvent], session: Session) -> None:
    """Call the order off, unless it is decided: a parcel that is on its way is not called back."""
    shipment = shipment_of(session, delivery.data.order_id)
    if shipment.state in ("waiting", "packing"):
        shipment.state = "cancelled"
        word = {"order_id": shipment.order_id, "reason": REASONS[delivery.message.type]}
        outbox.write(session, topic=SHIPPING, key=str(shipment.order_id), type="OrderCancelled", payload=word)


def send(session: Session) -> int:
    """Send what is packed; a parcel that is being cancelled at this moment is somebody else's, and passed by."""
    packed = func.now() - timedelta(seconds=settings.packing_seconds)
    ready = select(Shipment).where(Shipment.state == "packing", Shipment.packing_since <= packed)
    parcels = session.scalars(ready.limit(20).with_for_update(skip_locked=True)).all()
    for parcel in parcels:
        parcel.state = "shipped"
        word = {"order_id": parcel.order_id}
        outbox.write(session, topic=SHIPPING, key=str(parcel.order_id), type="OrderShipped", payload=word)
    return len(parcels)


def warehouse() -> None:
    engine = create_engine(settings.database_url)
    while True:
        with Session(engine) as session, session.begin():
            sent = send(session)
        if not sent:
            time.sleep(0.05)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["init"]:
            Base.metadata.create_all(create_engine(settings.database_url))
        case ["warehouse"]:
            warehouse()
        case _:
            sys.exit(__doc__)
