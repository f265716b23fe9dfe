"""The accounts of the demo, in plain SQL: what the requests were answered, against what the database holds."""

from dataclasses import dataclass

from sqlalchemy import Connection, text

ORDERS = "select count(*), coalesce(sum(amount), 0) from orders"
MESSAGES = "select count(*) from outbox"
IN_THE_LOG = "select count(*) from log_record"
TOTALS = "select coalesce(sum(orders), 0), coalesce(sum(amount), 0) from customer_totals"
WITHOUT_REQUEST_ID = "select count(*) from log_record where headers ->> 'ce_correlationid' is null"


@dataclass(frozen=True)
class Accounts:
    """What the demo shows at its end."""

    accepted: int  # answered 201
    declined: int  # answered 402, after the message was written
    orders: int
    ordered: int
    messages: int
    in_the_log: int
    without_request_id: int
    added_up: int
    total: int

    @property
    def in_order(self) -> bool:
        """Whether everything adds up: one message and one effect for each 201, and none for a 402."""
        counts = {self.accepted, self.orders, self.messages, self.in_the_log, self.added_up}
        return len(counts) == 1 and self.ordered == self.total and not self.without_request_id

    def table(self) -> str:
        rows = {
            "requests answered 201": self.accepted,
            "requests answered 402, after their `write`": self.declined,
            "orders": self.orders,
            "messages in the outbox": self.messages,
            "messages in the log": self.in_the_log,
            "  without a request's correlation id": self.without_request_id,
            "orders that the consumer added up": self.added_up,
            "sum of all orders": self.ordered,
            "sum of all customers' totals": self.total,
        }
        return "\n".join(f"  {name:<44}{number:>8,}" for name, number in rows.items())


def added_up(connection: Connection) -> int:
    """Return how many orders the consumer has handled."""
    return int(connection.execute(text(TOTALS)).one()[0])


def close_accounts(connection: Connection, *, accepted: int, declined: int) -> Accounts:
    """Compare what the requests were answered with what the database holds."""
    orders, ordered = connection.execute(text(ORDERS)).one()
    added, total = connection.execute(text(TOTALS)).one()
    return Accounts(
        accepted=accepted,
        declined=declined,
        orders=orders,
        ordered=ordered,
        messages=connection.execute(text(MESSAGES)).scalar_one(),
        in_the_log=connection.execute(text(IN_THE_LOG)).scalar_one(),
        without_request_id=connection.execute(text(WITHOUT_REQUEST_ID)).scalar_one(),
        added_up=added,
        total=total,
    )
