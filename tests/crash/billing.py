"""The consumer of the invariants' tests: each message is one row of `effects`, which allows a message twice."""

from sqlalchemy import text
from sqlalchemy.orm import Session

from inbox import Delivery, Inbox

SCHEMA = "create table effects (place bigint generated always as identity, topic text, key text, payload bytea)"

inbox = Inbox("billing")


# A short time-out: when a consumer is stopped inside its transaction, the server ends that a little after it.
@inbox.handler("orders", timeout_seconds=2)
@inbox.handler("payments", timeout_seconds=2)
def handle(delivery: Delivery, session: Session) -> None:
    """Leave an effect; slowly, so that a kill falls into the middle of a batch."""
    session.execute(
        text(
            "with slow as (select pg_sleep(0.003))"
            " insert into effects (topic, key, payload) select :t, :k, :p from slow"
        ),
        {"t": delivery.message.topic, "k": delivery.message.key, "p": delivery.message.payload},
    )
