"""Payments: charges a customer's card when an order is placed, and pays back when shipping calls the order off.

python -m examples.order_saga.payments init         make the tables, and issue the cards
inbox run examples.order_saga.payments:inbox
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
ORDERS, PAYMENTS, SHIPPING = settings.topic("orders"), settings.topic("payments"), settings.topic("shipping")


class Base(DeclarativeBase):
    pass


class Card(Base):
    """What a customer can still spend, in cents."""

    __tablename__ = "cards"

    customer: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    issued_with: Mapped[int]
    balance: Mapped[int]


class Payment(Base):
    """How it stands with an order's money: asked, then captured or declined; refunded or void when called off."""

    __tablename__ = "payments"

    order_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    state: Mapped[str]
    customer: Mapped[int | None]
    amount: Mapped[int] = mapped_column(default=0)


class Booking(Base):
    """The ledger: each change of a card's balance."""

    __tablename__ = "bookings"

    number: Mapped[int] = mapped_column(primary_key=True)
    order_id: Mapped[int]
    customer: Mapped[int]
    amount: Mapped[int]


outbox = Outbox(metadata=Base.metadata, source="/payments")
inbox = Inbox("payments", metadata=Base.metadata)


@dataclass(frozen=True)
class OrderPlaced:
    """What payments needs to know of an order. Fields that it does not name are passed over."""

    order_id: int
    customer: int | None = None
    amount: int | None = None


@dataclass(frozen=True)
class OrderCancelled:
    order_id: int


def payment_of(session: Session, order_id: int) -> Payment:
    """Return an order's payment, locked: events of two topics meet in it, in any order, or even side by side."""
    session.execute(insert(Payment).values(order_id=order_id, state="asked").on_conflict_do_nothing())
    return session.get_one(Payment, order_id, with_for_update=True)


def book(session: Session, payment: Payment, card: Card, amount: int) -> None:
    card.balance += amount
    session.add(Booking(order_id=payment.order_id, customer=card.customer, amount=amount))


@inbox.handler(ORDERS, type="OrderPlaced")
def charge(delivery: Delivery[OrderPlaced], session: Session) -> None:
    """Charge the card. That this happens once an order is the inbox's work: nothing here looks for repeats."""
    order = delivery.data
    payment = payment_of(session, order.order_id)
    if payment.state == "void":
        return  # it was called off before we heard of it
    card = None
    if order.customer is not None and order.amount is not None:  # a version of orders that says less is turned down
        card = session.get(Card, order.customer, with_for_update=True)
    if card is None or order.amount is None or card.balance < order.amount:
        payment.state, event = "declined", "PaymentDeclined"
    else:
        book(session, payment, card, -order.amount)
        payment.customer, payment.amount = card.customer, order.amount
        payment.state, event = "captured", "PaymentCaptured"
    answer = {"order_id": payment.order_id, "amount": payment.amount}
    outbox.write(session, topic=PAYMENTS, key=str(payment.order_id), type=event, payload=answer)


@inbox.handler(SHIPPING, type="OrderCancelled")
def refund(delivery: Delivery[OrderCancelled], session: Session) -> None:
    """Give back what was taken, or see to it that nothing will be taken."""
    payment = payment_of(session, delivery.data.order_id)
    if payment.state == "asked":
        payment.state = "void"
    elif payment.state == "captured":
        book(session, payment, session.get_one(Card, payment.customer, with_for_update=True), payment.amount)
        payment.state = "refunded"
        answer = {"order_id": payment.order_id, "amount": payment.amount}
        outbox.write(session, topic=PAYMENTS, key=str(payment.order_id), type="PaymentRefunded", payload=answer)


def init() -> None:
    engine = create_engine(settings.database_url)
    Base.metadata.create_all(engine)
    with Session(engine) as session, session.begin():
        cards = [
            {"customer": customer, "issued_with": settings.card_cents, "balance": settings.card_cents}
            for customer in range(1, settings.cards + 1)
        ]
        session.execute(insert(Card).values(cards).on_conflict_do_nothing())


if __name__ == "__main__":
    if sys.argv[1:] != ["init"]:
        sys.exit(__doc__)
    init()
