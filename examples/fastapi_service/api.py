"""The API. A request's transaction holds its data and its messages; it ends before the response is sent.

DATABASE_URL=postgresql+psycopg://... uvicorn examples.fastapi_service.api:app
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import Depends, FastAPI, Header, HTTPException, Request
from pydantic import BaseModel, Field
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from examples.fastapi_service.models import CustomerTotal, Order, outbox
from outbox import correlate

CARD_LIMIT = 500


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    engine = create_async_engine(os.environ["DATABASE_URL"])
    app.state.sessions = async_sessionmaker(engine, expire_on_commit=False)
    yield
    await engine.dispose()


app = FastAPI(title="orders", lifespan=lifespan)


async def transaction(
    request: Request, x_request_id: Annotated[str | None, Header()] = None
) -> AsyncIterator[AsyncSession]:
    """Begin the request's transaction. It is committed when the endpoint returns, and rolled back when it raises."""
    with correlate(correlation_id=x_request_id):  # every message of this request carries it, and what follows from them
        async with request.app.state.sessions.begin() as session:
            yield session


# scope="function": the transaction ends before the response is sent. FastAPI's default ends it afterwards, when the
# customer has been told 201 and the COMMIT may still fail.
Transaction = Annotated[AsyncSession, Depends(transaction, scope="function")]


class NewOrder(BaseModel):
    customer: str = Field(min_length=1, max_length=100, pattern=r"^[^\x00]*$")
    amount: int = Field(gt=0, le=1_000_000)


class Placed(BaseModel):
    id: int


class Total(BaseModel):
    orders: int
    amount: int


@app.post("/orders", status_code=201)
async def place_order(new: NewOrder, session: Transaction) -> Placed:
    order = Order(customer=new.customer, amount=new.amount)
    session.add(order)
    await session.flush()  # the database gives it its id
    # Nothing is sent here, and nothing awaited: the message is a row of the same transaction, and shares its fate.
    outbox.write(
        session,
        topic="orders",
        key=order.customer,
        type="OrderPlaced",
        payload={"id": order.id, "customer": order.customer, "amount": order.amount},
    )
    pay(order)
    return Placed(id=order.id)


def pay(order: Order) -> None:
    """Charge the customer's card. When it is declined, the request fails: order and message have never been."""
    if order.amount > CARD_LIMIT:
        raise HTTPException(402, "the card is declined")


@app.get("/customers/{customer}")
async def customer_total(customer: str, session: Transaction) -> Total:
    """What the consumer has added up so far: a moment behind the orders."""
    total = await session.get(CustomerTotal, customer)
    if total is None:
        raise HTTPException(404, "nothing is known of this customer")
    return Total(orders=total.orders, amount=total.amount)
