"""The stages on which the saga runs: where its databases and its log are. The services do not know which it is.

embedded    one PostgreSQL, with a database for each service, and the built-in log in a database of its own
kafka       the same databases, and a Kafka broker for the log

The servers are started for one run and deleted after it; or they are there already, and what was made there is deleted.
"""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import psycopg
from confluent_kafka.admin import AdminClient
from psycopg import sql

from examples.order_saga.settings import Settings

sys.path.append(str(Path(__file__).resolve().parents[2] / "scripts"))

from fetched import Missing
from kafka_server import KafkaServer
from local_kafka import programs_of_kafka
from postgresql_server import PostgresqlServer

SERVICES = ("orders", "payments", "stock", "shipping")
PARTITIONS = 4


@dataclass(frozen=True)
class Stage:
    """Where everything is.

    Attributes:
        databases: the URL of a service's database, with {} for the service's name.
        log: the URL of the log.
        topic_prefix: what the names of topics and groups begin with.
    """

    databases: str
    log: str
    topic_prefix: str = ""

    def database(self, service: str) -> str:
        return self.databases.format(service)


@contextmanager
def made(settings: Settings) -> Iterator[Stage]:
    """Make the stage that the settings ask for, and leave nothing of it behind."""
    if settings.stage not in ("embedded", "kafka"):
        raise SystemExit(f"STAGE={settings.stage}: it is embedded or kafka")
    with ExitStack() as stack:
        databases = stack.enter_context(postgresql(settings.postgresql))
        if settings.stage == "kafka":
            log, prefix = stack.enter_context(kafka(settings.kafka))
        else:
            log, prefix = databases.format("log"), ""
        yield Stage(databases, f"{log}?partitions={PARTITIONS}", settings.topic_prefix or prefix)


@contextmanager
def postgresql(url: str) -> Iterator[str]:
    """Make the databases, on the server of the URL or on one of the demo's own."""
    server = None if url else PostgresqlServer(settings={"fsync": "off"}).start()
    server_url = server.url() if server else url.replace("+psycopg", "")
    run = f"saga_{uuid4().hex[:8]}"
    names = [f"{run}_{name}" for name in (*SERVICES, "log")]
    try:
        with psycopg.connect(server_url, autocommit=True) as connection:
            for name in names:
                connection.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
        yield f"{server_url.rpartition('/')[0]}/{run}_{{}}".replace("postgresql://", "postgresql+psycopg://")
    finally:
        if server:
            server.delete()
        else:
            with psycopg.connect(server_url, autocommit=True) as connection:
                for name in names:
                    connection.execute(sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(name)))


@contextmanager
def kafka(url: str) -> Iterator[tuple[str, str]]:
    """Start a broker, or take the one of the URL: with a prefix for the topics there, which are deleted at the end."""
    if not url:
        try:
            server = KafkaServer(programs=programs_of_kafka())
        except Missing as missing:
            raise SystemExit(str(missing)) from None
        try:
            yield server.start().url(), ""
        finally:
            server.delete()
        return
    prefix = f"saga-{uuid4().hex[:8]}-"
    yield url, prefix
    admin = AdminClient({"bootstrap.servers": url.removeprefix("kafka://").partition("?")[0]})
    ours = [name for name in admin.list_topics(timeout=10).topics if name.startswith(prefix)]
    for deleted in admin.delete_topics(ours).values() if ours else ():
        deleted.result(10)
