"""Orders: customers place them, and may ask to cancel them. What becomes of an order is decided in shipping, not here.

python -m examples.order_saga.orders init           make the tables
python -m examples.order_saga.orders customers      customers come and go, until there are ORDERS orders
inbox run examples.order_saga.orders:inbox
"""

import random
import sys
import time
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import DateTime, create_engine, func, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from examples.order_saga.settings import Settings
from inbox import Delivery, Inbox
from outbox import Outbox

settings = Settings.from_environment()
ORDERS, SHIPPING = settings.topic("orders"), settings.topic("shipping")
PRICES = {"lamp": 4_990, "chair": 12_900, "cup": 850, "shelf": 7_450}  # in cents


class Base(DeclarativeBase):
    type_annotation_map = {datetime: DateTime(timezone=True)}  # noqa: RUF012 - SQLAlchemy's way to write it


class Order(Base):
    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(primary_key=True)
    customer: Mapped[int]
    item: Mapped[str]
    quantity: Mapped[int]
    amount: Mapped[int]
    state: Mapped[str] = mapped_column(default="placed")  # and in the end shipped or cancelled
    reason: Mapped[str | None]
    cancel_requested: Mapped[bool] = mapped_column(default=False)
    placed_at: Mapped[datetime] = mapped_column(server_default=func.now())
    ended_at: Mapped[datetime | None]


class SetAside(Base):
    """A message that this version of orders has no use for, kept whole, for a person or a later version."""

    __tablename__ = "set_aside"

    number: Mapped[int] = mapped_column(primary_key=True)
    id: Mapped[str]
    type: Mapped[str]
    key: Mapped[str | None]
    payload: Mapped[bytes | None]


outbox = Outbox(metadata=Base.metadata, source="/orders")
inbox = Inbox("orders", metadata=Base.metadata)


def place(session: Session, customer: int, item: str, quantity: int) -> Order:
    order = Order(customer=customer, item=item, quantity=quantity, amount=PRICES[item] * quantity)
    session.add(order)
    session.flush()  # the database gives it its id
    placed = {"order_id": order.id, "customer": customer, "item": item, "quantity": quantity, "amount": order.amount}
    outbox.write(session, topic=ORDERS, key=str(order.id), type="OrderPlaced", payload=placed)
    return order


def ask_to_cancel(session: Session, order: Order) -> None:
    """Ask, and no more: the parcel may be on its way. Shipping's answer comes as an event, and only one ever comes."""
    order.cancel_requested = True
    outbox.write(session, topic=ORDERS, key=str(order.id), type="CancelRequested", payload={"order_id": order.id})


@dataclass(frozen=True)
class Word:
    """What orders needs to know of shipping's last word on an order."""

    order_id: int
    reason: str | None = None  # shipping gives one when it cancels


@inbox.handler(SHIPPING, type="OrderShipped")
def shipped(delivery: Delivery[Word], session: Session) -> None:
    end(session, delivery.data, "shipped")


@inbox.handler(SHIPPING, type="OrderCancelled")
def cancelled(delivery: Delivery[Word], session: Session) -> None:
    end(session, delivery.data, "cancelled")


def end(session: Session, word: Word, state: str) -> None:
    order = session.get_one(Order, word.order_id, with_for_update=True)
    if order.state == "placed":  # the first word stands: whatever comes again, or late, changes nothing
        order.state, order.reason, order.ended_at = state, word.reason, func.now()


@inbox.handler(SHIPPING)
def set_aside(delivery: Delivery, session: Session) -> None:
    """Keep what a newer shipping has to say (without this handler it is counted as ignored, and passed by)."""
    message = delivery.message
    session.add(SetAside(id=str(message.id), type=message.type, key=message.key, payload=message.payload))


def visit(session: Session) -> None:
    """A customer places an order, and perhaps another one wants to cancel theirs."""
    place(session, random.randint(1, settings.cards), random.choice(list(PRICES)), random.randint(1, 3))
    if random.random() < settings.cancelling:
        under_way = select(Order).where(Order.state == "placed", ~Order.cancel_requested).order_by(func.random())
        order = session.scalar(under_way.limit(1).with_for_update(skip_locked=True))
        if order is not None:
            ask_to_cancel(session, order)


def customers() -> None:
    engine = create_engine(settings.database_url)
    while True:
        with Session(engine) as session, session.begin():
            if session.scalars(select(func.count(Order.id))).one() >= settings.orders:
                return
            visit(session)
        time.sleep(random.expovariate(settings.orders_per_second))


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["init"]:
            Base.metadata.create_all(create_engine(settings.database_url))
        case ["customers"]:
            customers()
        case _:
            sys.exit(__doc__)
