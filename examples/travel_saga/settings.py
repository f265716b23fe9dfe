"""The settings of the services: one object, filled from the environment.

The relays, and the inboxes that `inbox run` runs, read the variables of the same names by themselves.
"""

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """Each field says which variable it comes from.

    Attributes:
        database_url: DATABASE_URL, the service's own database.
        log: INBOX_LOG, for the orchestrator, which runs its inbox itself.
        group: INBOX_GROUP, likewise.
        topic_prefix: TOPIC_PREFIX, what the names of topics begin with, where others use the same log.
        supplier: SUPPLIER, which of the suppliers a supplier's process is.
        reply_seconds: REPLY_SECONDS, how long the orchestrator waits for the reply to a step.
    """

    database_url: str = ""
    log: str = ""
    group: str = "trips"
    topic_prefix: str = ""
    supplier: str = "flights"
    reply_seconds: float = 5.0

    @classmethod
    def from_environment(cls) -> "Settings":
        return cls(
            database_url=os.environ.get("DATABASE_URL", ""),
            log=os.environ.get("INBOX_LOG", ""),
            group=os.environ.get("INBOX_GROUP", cls.group),
            topic_prefix=os.environ.get("TOPIC_PREFIX", ""),
            supplier=os.environ.get("SUPPLIER", cls.supplier),
            reply_seconds=float(os.environ.get("REPLY_SECONDS", cls.reply_seconds)),
        )

    def topic(self, name: str) -> str:
        """Return the name of a topic: the commands to a supplier, or the replies to the trips."""
        return f"{self.topic_prefix}{name}"
