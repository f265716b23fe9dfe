"""The settings of the example: one object, filled from the environment.

The relays and inboxes of the services have settings of their own: RELAY_LOG, INBOX_LOG, RELAY_DELIVERY and so on.
"""

import os
from dataclasses import asdict, dataclass, fields


@dataclass(frozen=True)
class Settings:
    """Each field is an environment variable, in capitals.

    Attributes:
        database_url: the service's own database.
        topic_prefix: what the names of the topics begin with, where others use the same log.
        orders: how many orders the customers place.
        orders_per_second: of each process of customers.
        cancelling: the share of customers who think better of it.
        packing_seconds: how long the warehouse needs for a parcel.
        cards: how many customers there are.
        card_cents: what is on each one's card at first.
        pieces: how many pieces of each item are in stock at first.
        stage: where the demo runs the saga: embedded or kafka.
        delivery: what the relays promise of the log: exactly-once or at-least-once.
        postgresql: a server that is there, for the demo; it starts one otherwise.
        kafka: a broker that is there, likewise.
    """

    database_url: str = ""
    topic_prefix: str = ""
    orders: int = 400
    orders_per_second: float = 15.0
    cancelling: float = 0.15
    packing_seconds: float = 0.5
    cards: int = 60
    card_cents: int = 90_000
    pieces: int = 145
    stage: str = "embedded"
    delivery: str = "exactly-once"
    postgresql: str = ""
    kafka: str = ""

    @classmethod
    def from_environment(cls) -> "Settings":
        given = {one.name: os.environ.get(one.name.upper()) for one in fields(cls)}
        defaults = asdict(cls())
        return cls(**{name: type(defaults[name])(text) for name, text in given.items() if text is not None})

    def environment(self) -> dict[str, str]:
        """Return the variables that would be read as these settings."""
        return {name.upper(): str(value) for name, value in asdict(self).items()}

    def topic(self, service: str) -> str:
        """Return the name of the topic with the events of a service."""
        return f"{self.topic_prefix}{service}"
