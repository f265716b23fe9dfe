"""A consumer for both dialects: each message is one row of `effects`, which allows a message twice."""

from sqlalchemy import text
from sqlalchemy.orm import Session

from inbox import Delivery, Inbox

SCHEMA = {
    "postgresql": "create table effects (place bigint generated always as identity, key text, payload bytea)",
    "sqlite": "create table effects (place integer primary key autoincrement, key text, payload blob)",
}

inbox = Inbox("billing")


@inbox.handler("orders")
def handle(delivery: Delivery, session: Session) -> None:
    """Leave an effect."""
    session.execute(
        text("insert into effects (key, payload) values (:k, :p)"),
        {"k": delivery.message.key, "p": delivery.message.payload},
    )
