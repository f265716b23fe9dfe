"""Stock: sets goods apart when an order is placed, and puts them back on the shelf when shipping calls the order off.

python -m examples.order_saga.stock init            make the tables, and fill the shelves
inbox run examples.order_saga.stock:inbox
"""

import sys
from dataclasses import dataclass

from sqlalchemy import create_engine
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from examples.order_saga.settings import Settings
from inbox import Delivery, Inbox
from outbox import Outbox

settings = Settings.from_environment()
ORDERS, STOCK, SHIPPING = settings.topic("orders"), settings.topic("stock"), settings.topic("shipping")
ITEMS = ["lamp", "chair", "cup", "shelf"]


class Base(DeclarativeBase):
    pass


class Shelf(Base):
    """How many pieces of an item are there to be had."""

    __tablename__ = "shelves"

    item: Mapped[str] = mapped_column(primary_key=True)
    filled_with: Mapped[int]
    pieces: Mapped[int]


class Reservation(Base):
    """How it stands with an order's goods: asked, then reserved or missing; then handed over, released or void."""

    __tablename__ = "reservations"

    order_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    state: Mapped[str]
    item: Mapped[str | None]
    quantity: Mapped[int] = mapped_column(default=0)


class Movement(Base):
    """The ledger: each change of a shelf."""

    __tablename__ = "movements"

    number: Mapped[int] = mapped_column(primary_key=True)
    order_id: Mapped[int]
    item: Mapped[str]
    quantity: Mapped[int]


outbox = Outbox(metadata=Base.metadata, source="/stock")
inbox = Inbox("stock", metadata=Base.metadata)


@dataclass(frozen=True)
class OrderPlaced:
    """What stock needs to know of an order. Fields that it does not name are passed over."""

    order_id: int
    item: str
    quantity: int = 1  # the first version of orders sold single pieces, and did not say so


@dataclass(frozen=True)
class Word:
    """Shipping's last word on an order."""

    order_id: int


def reservation_of(session: Session, order_id: int) -> Reservation:
    """Return an order's reservation, locked: events of two topics meet in it, in any order, or even side by side."""
    session.execute(insert(Reservation).values(order_id=order_id, state="asked").on_conflict_do_nothing())
    return session.get_one(Reservation, order_id, with_for_update=True)


def move(session: Session, reservation: Reservation, shelf: Shelf, quantity: int) -> None:
    shelf.pieces += quantity
    session.add(Movement(order_id=reservation.order_id, item=shelf.item, quantity=quantity))


@inbox.handler(ORDERS, type="OrderPlaced")
def reserve(delivery: Delivery[OrderPlaced], session: Session) -> None:
    """Set the goods apart. That this happens once an order is the inbox's work: nothing here looks for repeats."""
    order = delivery.data
    reservation = reservation_of(session, order.order_id)
    if reservation.state == "void":
        return  # it was called off before we heard of it
    shelf = session.get(Shelf, order.item, with_for_update=True)
    if shelf is None or shelf.pieces < order.quantity:
        reservation.state, event = "missing", "StockMissing"
    else:
        move(session, reservation, shelf, -order.quantity)
        reservation.item, reservation.quantity = shelf.item, order.quantity
        reservation.state, event = "reserved", "StockReserved"
    answer = {"order_id": order.order_id, "item": order.item, "quantity": order.quantity}
    outbox.write(session, topic=STOCK, key=str(order.order_id), type=event, payload=answer)


@inbox.handler(SHIPPING, type="OrderShipped")
def hand_over(delivery: Delivery[Word], session: Session) -> None:
    reservation_of(session, delivery.data.order_id).state = "handed over"


@inbox.handler(SHIPPING, type="OrderCancelled")
def release(delivery: Delivery[Word], session: Session) -> None:
    """Put back what was set apart, or see to it that nothing will be."""
    reservation = reservation_of(session, delivery.data.order_id)
    if reservation.state == "asked":
        reservation.state = "void"
    elif reservation.state == "reserved":
        shelf = session.get_one(Shelf, reservation.item, with_for_update=True)
        move(session, reservation, shelf, reservation.quantity)
        reservation.state = "released"
        answer = {"order_id": reservation.order_id, "item": shelf.item, "quantity": reservation.quantity}
        outbox.write(session, topic=STOCK, key=str(reservation.order_id), type="StockReleased", payload=answer)


def init() -> None:
    engine = create_engine(settings.database_url)
    Base.metadata.create_all(engine)
    with Session(engine) as session, session.begin():
        shelves = [{"item": item, "filled_with": settings.pieces, "pieces": settings.pieces} for item in ITEMS]
        session.execute(insert(Shelf).values(shelves).on_conflict_do_nothing())


if __name__ == "__main__":
    if sys.argv[1:] != ["init"]:
        sys.exit(__doc__)
    init()
