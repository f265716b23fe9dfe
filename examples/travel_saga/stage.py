"""The stages on which the saga runs: where its databases and its log are. The services do not know which it is.

embedded    one PostgreSQL, with a database for each service, and the built-in log in a database of its own
kafka       the same databases, and a Kafka broker for the log

The servers are started for one run and deleted after it; or they are there already, and what was made there is deleted.
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from uuid import uuid4

from confluent_kafka.admin import AdminClient

from examples.running import Failed, broker, postgresql
from examples.travel_saga.saga import SUPPLIERS

STAGES = ("embedded", "kafka")
SERVICES = ("trips", *SUPPLIERS)
PARTITIONS = 4
RELAY_LEASE_SECONDS = 2  # how long another relay waits for one that does not answer; 10 if you say nothing


@dataclass(frozen=True)
class Stage:
    """Where everything is.

    Attributes:
        databases: the URL of each service's database.
        log: the URL of the log.
        prefix: what the names of topics and groups begin with.
    """

    databases: dict[str, str]
    log: str
    prefix: str = ""

    def environment(self, service: str) -> dict[str, str]:
        """Return the settings of a service and of its relay."""
        return {
            **os.environ,
            "DATABASE_URL": self.databases[service],
            "SUPPLIER": service,
            "TOPIC_PREFIX": self.prefix,
            "INBOX_LOG": self.log,
            "INBOX_GROUP": f"{self.prefix}{service}",
            "RELAY_LOG": self.log,
            "RELAY_LEASE": str(RELAY_LEASE_SECONDS),
        }


@contextmanager
def staged(name: str, *, postgresql_url: str, kafka_url: str) -> Iterator[Stage]:
    """Make a stage, and leave nothing of it behind.

    Args:
        name: embedded or kafka.
        postgresql_url: a server that is there; without it, one is started.
        kafka_url: a broker that is there, likewise.
    """
    if name not in STAGES:
        raise Failed(f"STAGE={name}: it is one of {', '.join(STAGES)}")
    with ExitStack() as stack:
        databases = stack.enter_context(postgresql(*SERVICES, "log", url=postgresql_url))
        log, prefix = databases.pop("log"), ""
        if name == "kafka":
            log, prefix = stack.enter_context(_kafka(kafka_url))
        yield Stage(databases, f"{log}?partitions={PARTITIONS}", prefix)


@contextmanager
def _kafka(url: str) -> Iterator[tuple[str, str]]:
    """Start a broker, or take the one of the URL: with a prefix for the topics there, which are deleted at the end."""
    if url:
        prefix = f"travel-{uuid4().hex[:8]}-"
        try:
            yield url, prefix
        finally:
            _delete_topics(url, prefix)
        return
    with broker() as started:
        yield started, ""


def _delete_topics(url: str, prefix: str) -> None:
    admin = AdminClient({"bootstrap.servers": url.removeprefix("kafka://").partition("?")[0]})
    ours = [name for name in admin.list_topics(timeout=10).topics if name.startswith(prefix)]
    for deleted in admin.delete_topics(ours).values() if ours else ():
        deleted.result(10)
