"""The service's tables. Those of outbox, inbox and built-in log stand in the same metadata: Alembic sees them."""

from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from inbox import Inbox
from outbox import Outbox, log_tables


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(primary_key=True)
    customer: Mapped[str]
    amount: Mapped[int]


class CustomerTotal(Base):
    """What a customer ordered so far; the consumer's, and never written by a request."""

    __tablename__ = "customer_totals"

    customer: Mapped[str] = mapped_column(primary_key=True)
    orders: Mapped[int]
    amount: Mapped[int]


outbox = Outbox(metadata=Base.metadata, source="/orders")
inbox = Inbox("customer-totals", metadata=Base.metadata)
log_tables(Base.metadata)  # only because the log lies in this database; for Kafka, or a log elsewhere, leave it out
