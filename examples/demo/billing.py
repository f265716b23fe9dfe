"""The billing service: it handles the events of the order service, each exactly once.

inbox run examples.demo.billing:inbox --database DATABASE_URL --log LOG_URL
"""

from dataclasses import dataclass

from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from inbox import Delivery, Inbox


class Base(DeclarativeBase):
    pass


class Invoice(Base):
    """What an order costs now."""

    __tablename__ = "invoices"

    order_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    amount: Mapped[int]


class InvoiceLine(Base):
    """Every event that was billed, in the order in which it was."""

    __tablename__ = "invoice_lines"

    number: Mapped[int] = mapped_column(primary_key=True)
    order_id: Mapped[int]
    version: Mapped[int]


@dataclass(frozen=True)
class OrderEvent:
    """What billing needs to know of an order."""

    order_id: int
    version: int
    amount: int


inbox = Inbox("billing", metadata=Base.metadata)


@inbox.handler("orders", type="OrderPlaced")
def open_invoice(delivery: Delivery[OrderEvent], session: Session) -> None:
    order = delivery.data
    session.add(Invoice(order_id=order.order_id, amount=order.amount))
    session.add(InvoiceLine(order_id=order.order_id, version=order.version))


@inbox.handler("orders", type="OrderChanged")
def change_invoice(delivery: Delivery[OrderEvent], session: Session) -> None:
    """The invoice is there: messages of one key come in the order in which their transactions committed."""
    order = delivery.data
    invoice = session.get_one(Invoice, order.order_id)
    invoice.amount = order.amount
    session.add(InvoiceLine(order_id=order.order_id, version=order.version))
