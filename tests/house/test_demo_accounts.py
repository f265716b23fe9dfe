"""The demo's accounts can be wrong: each fault that they look for is made here, and seen."""

import json
from collections.abc import Iterator

import pytest
from sqlalchemy import Connection, MetaData, create_engine, text

from examples.demo import accounts, orders
from outbox import log_tables

RECORD = """
    insert into log_record
        (topic_id, "partition", "offset", sequence, epoch, id, source, type, content_type, time, payload)
    values (1, 0, :offset, :offset, 1, gen_random_uuid(), '', '', '', now(), :payload)
"""


@pytest.fixture
def connection(postgresql_url: str) -> Iterator[Connection]:
    engine = create_engine(postgresql_url.replace("postgresql://", "postgresql+psycopg://"))
    log = MetaData()
    log_tables(log)
    with engine.begin() as connection:
        orders.Base.metadata.create_all(connection)
        log.create_all(connection)
        connection.execute(text("create table invoice_lines (number int, order_id int, version int)"))
        connection.execute(text("insert into orders (id, amount, version) values (7, 10, 3)"))
        yield connection
    engine.dispose()


def _arrive(connection: Connection, versions: list[int], *, order_id: int = 7) -> None:
    """Let events arrive, in the log and in billing, in this order."""
    for number, version in enumerate(versions):
        payload = json.dumps({"order_id": order_id, "version": version}).encode()
        connection.execute(text(RECORD), {"offset": number, "payload": payload})
        connection.execute(
            text("insert into invoice_lines values (:number, :order_id, :version)"),
            {"number": number, "order_id": order_id, "version": version},
        )


def test_what_arrives_once_and_in_order_is_in_order(connection: Connection):
    _arrive(connection, [1, 2, 3])
    closed = accounts.close_accounts(connection)
    assert closed.in_order
    assert (closed.committed, closed.in_the_log, closed.billed) == (3, 3, 3)


@pytest.mark.parametrize(
    ("versions", "fault"),
    [([1, 3], "lost"), ([1, 2, 2, 3], "doubled"), ([2, 1, 3], "out_of_order"), ([1, 2, 3, 4], "ghosts")],
)
def test_a_fault_is_seen_in_the_log_and_in_billing(connection: Connection, versions: list[int], fault: str):
    _arrive(connection, versions)
    closed = accounts.close_accounts(connection)
    assert not closed.in_order
    found = {name: getattr(closed, name) for name in ("lost", "doubled", "out_of_order", "ghosts")}
    assert found == {"lost": 0, "doubled": 0, "out_of_order": 0, "ghosts": 0, fault: 2}
