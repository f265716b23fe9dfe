"""The consumer: adds up what each customer ordered.

inbox run examples.fastapi_service.consumer:inbox --database DATABASE_URL --log LOG_URL
"""

from pydantic import BaseModel
from sqlalchemy.ext.asyncio import AsyncSession

from examples.fastapi_service.models import CustomerTotal, inbox
from inbox import Delivery

__all__ = ["inbox"]


class OrderPlaced(BaseModel):
    """What this consumer needs to know of an order.

    Pydantic passes by fields that are not named here, so a newer writer may add some. One that is missing, or is not
    what it should be, rejects the message: its partition stops and says so, and goes on when this model is mended and
    the consumer restarted. A field that older messages do not have needs a default.
    """

    customer: str
    amount: int


@inbox.handler("orders", type="OrderPlaced")
async def add_up(delivery: Delivery[OrderPlaced], session: AsyncSession) -> None:
    """Effectively once: the total, and the fact that this message is in it, are one transaction.

    A read and a write need no lock here: the key is the customer, and messages of one key are handled one by one.
    """
    order = delivery.data
    total = await session.get(CustomerTotal, order.customer)
    if total is None:
        total = CustomerTotal(customer=order.customer, orders=0, amount=0)
        session.add(total)
    total.orders += 1
    total.amount += order.amount
