"""The order service: it changes orders, and writes what happened in the same transaction.

python -m examples.demo.orders DATABASE_URL
"""

import random
import sys
import time

from sqlalchemy import Sequence, create_engine, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from outbox import Outbox


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(primary_key=True)
    amount: Mapped[int]
    version: Mapped[int] = mapped_column(default=1)


outbox = Outbox(metadata=Base.metadata, source="/orders")

# A sequence is not rolled back: the demo's accounts use it to know how many transactions were.
attempts = Sequence("order_attempts", metadata=Base.metadata)


NEW_ORDERS = 0.3  # the others change one that is there
WENT_AWAY = 0.1


class CustomerWentAway(Exception):
    """The customer closed the browser in the middle of it."""


def place_order(session: Session) -> None:
    order = Order(amount=random.randint(1, 500))
    session.add(order)
    session.flush()  # the database gives it its id
    write_event(session, "OrderPlaced", order)


def change_order(session: Session) -> None:
    """Change one of the newest orders. Other writers want the same ones, so it is locked first."""
    newest = session.scalars(select(Order.id).order_by(Order.id.desc()).limit(10)).all()
    if not newest:
        place_order(session)
        return
    order = session.get_one(Order, random.choice(newest), with_for_update=True)
    order.amount += random.randint(1, 50)
    order.version += 1
    write_event(session, "OrderChanged", order)


def write_event(session: Session, event: str, order: Order) -> None:
    """Nothing is sent here: the message is a row of the same transaction, and shares its fate."""
    payload = {"order_id": order.id, "version": order.version, "amount": order.amount}
    outbox.write(session, topic="orders", key=str(order.id), type=event, payload=payload)


def serve_a_customer(session: Session) -> None:
    session.scalar(attempts)
    if random.random() < NEW_ORDERS:
        place_order(session)
    else:
        change_order(session)
    if random.random() < WENT_AWAY:
        raise CustomerWentAway


def main(database: str) -> None:
    """Serve customers until the process is ended."""
    engine = create_engine(database)
    while True:
        try:
            with Session(engine) as session, session.begin():
                serve_a_customer(session)
        except CustomerWentAway:
            pass  # rolled back: neither the order nor its event has ever been
        time.sleep(random.uniform(0, 0.06))


if __name__ == "__main__":
    main(sys.argv[1])
