"""Reads everything that there is to check: the services' tables by plain SQL, the log by SQL or a plain consumer."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from uuid import uuid4

import psycopg
from confluent_kafka import Consumer, TopicPartition
from psycopg.rows import dict_row

SERVICES = ("orders", "payments", "stock", "shipping")
Rows = list[dict[str, Any]]

ORDERS = "select id, customer, item, quantity, amount, state, reason, cancel_requested from orders"
STATES = {
    "payments": "select order_id, state from payments",
    "stock": "select order_id, state from reservations",
    "shipping": "select order_id, state from shipments",
}
BOOKINGS = "select order_id, customer as place, amount as moved from bookings order by number"
MOVEMENTS = "select order_id, item as place, quantity as moved from movements order by number"
CARDS = "select customer as place, issued_with as at_first, balance as now from cards"
SHELVES = "select item as place, filled_with as at_first, pieces as now from shelves"
OUTBOX = """
    select id::text, topic, key, type, convert_from(payload, 'UTF8') as payload, headers ->> 'ce_causationid' as cause
    from outbox order by position
"""
LOG = """
    select id::text, name as topic, key, type, convert_from(payload, 'UTF8') as payload,
           headers ->> 'ce_causationid' as cause, source, "partition"
    from log_record join log_topic using (topic_id)
    where name = any(%s)
    order by topic_id, "partition", "offset"
"""
WAITED = """
    select percentile_cont(array[0.5, 0.99]) within group (order by extract(epoch from ended_at - placed_at))
    from orders where state = 'shipped'
"""
READ_SECONDS = 30.0


class Record(NamedTuple):
    """A message as it lies in an outbox or in the log; an outbox has no partitions."""

    id: str
    topic: str
    key: str
    type: str
    payload: str
    cause: str | None
    source: str
    partition: int = 0


@dataclass(frozen=True)
class Books:
    """All that is looked at, as it was read."""

    orders: Rows
    states: Mapping[str, Mapping[int, str]]  # by service and order
    cards: Rows
    bookings: Rows
    shelves: Rows
    movements: Rows
    written: Sequence[Record]  # in the outboxes, in the order of their positions
    log: Sequence[Record]  # in the order of offsets, partition by partition
    waited: tuple[float, float]  # p50 and p99 of the seconds from order to shipped


def read(databases: str, log: str, topic_prefix: str = "") -> Books:
    """Read everything; `databases` is a URL with {} for the name of a service."""
    topics = [f"{topic_prefix}{service}" for service in SERVICES]

    def rows(service: str, statement: str) -> Rows:
        return select(databases.format(service), statement)

    waited = rows("orders", WAITED)[0]["percentile_cont"] or (0.0, 0.0)
    return Books(
        orders=rows("orders", ORDERS),
        states={
            service: {row["order_id"]: row["state"] for row in rows(service, statement)}
            for service, statement in STATES.items()
        },
        cards=rows("payments", CARDS),
        bookings=rows("payments", BOOKINGS),
        shelves=rows("stock", SHELVES),
        movements=rows("stock", MOVEMENTS),
        written=[Record(**row, source=f"/{service}") for service in SERVICES for row in rows(service, OUTBOX)],
        log=list(consume(log, topics) if log.startswith("kafka:") else read_table(log, topics)),
        waited=(waited[0], waited[1]),
    )


def select(database: str, statement: str, *values: object) -> Rows:
    plain = database.replace("+psycopg", "").partition("?")[0]
    with psycopg.connect(plain, row_factory=dict_row) as connection:
        return connection.execute(statement.encode(), values or None).fetchall()


def read_table(log: str, topics: list[str]) -> Iterator[Record]:
    yield from (Record(**row) for row in select(log, LOG, topics))


def consume(log: str, topics: list[str]) -> Iterator[Record]:
    """Read what is committed in the topics, from the first record to the last."""
    brokers = log.removeprefix("kafka://").partition("?")[0]
    consumer = Consumer(
        {
            "bootstrap.servers": brokers,
            "group.id": f"check-{uuid4()}",
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
            "auto.offset.reset": "earliest",
            "enable.partition.eof": True,
        }
    )
    try:
        known = consumer.list_topics(timeout=READ_SECONDS).topics
        parts = {(topic, number) for topic in topics if topic in known for number in known[topic].partitions}
        consumer.assign([TopicPartition(topic, number, 0) for topic, number in parts])
        while parts:
            message: Any = consumer.poll(READ_SECONDS)
            if message is None:
                raise TimeoutError(f"the log is not read to its end within {READ_SECONDS:g} s: {sorted(parts)}")
            if message.error():
                parts.discard((message.topic(), message.partition()))
                continue
            said = {name: value.decode() for name, value in message.headers() or ()}
            yield Record(
                id=said["ce_id"],
                topic=message.topic(),
                key=message.key().decode(),
                type=said["ce_type"],
                payload=message.value().decode(),
                cause=said.get("ce_causationid"),
                source=said["ce_source"],
                partition=message.partition(),
            )
    finally:
        consumer.close()
