"""Two consumer groups for the tests of retention: each leaves its effects in a table of its own."""

from sqlalchemy import text
from sqlalchemy.orm import Session

from inbox import Delivery, Inbox

SCHEMA = "create table effects_{} (place bigint generated always as identity, topic text, key text, payload bytea)"
GROUPS = ("billing", "mailing")

billing = Inbox("billing")
mailing = Inbox("mailing")


@billing.handler("orders", timeout_seconds=2)
@billing.handler("payments", timeout_seconds=2)
def bill(delivery: Delivery, session: Session) -> None:
    """Leave an effect."""
    _leave("billing", delivery, session)


@mailing.handler("orders", timeout_seconds=2)
@mailing.handler("payments", timeout_seconds=2)
def mail(delivery: Delivery, session: Session) -> None:
    """Leave an effect."""
    _leave("mailing", delivery, session)


def _leave(group: str, delivery: Delivery, session: Session) -> None:
    session.execute(
        text(f"insert into effects_{group} (topic, key, payload) values (:t, :k, :p)"),
        {"t": delivery.message.topic, "k": delivery.message.key, "p": delivery.message.payload},
    )
