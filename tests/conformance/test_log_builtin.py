"""The built-in log in the outbox's own database: messages come in by their table and a relay."""

from collections.abc import Iterator, Sequence

import pytest
from log_contract import PARTITIONS, LogContract, Member, Road, numbered
from log_contract_forget import ForgetContract
from log_contract_groups import GroupContract
from log_contract_tail import TailContract
from sqlalchemy import Engine, MetaData, create_engine, insert

from outbox.message import Message
from outbox.process.urls import parse_url, with_driver
from outbox.tables import log_tables, outbox_tables
from relay import Relay
from relay.logs import Log, open_log, partition_of


class BuiltinRoad:
    dense = True

    def __init__(self, database: str, engine: Engine) -> None:
        self.url = f"{database}?partitions={PARTITIONS}"
        self.database = database
        self.engine = engine
        metadata = MetaData()
        self.outbox = outbox_tables(metadata).outbox
        log_tables(metadata)
        metadata.create_all(engine)

    def open(self) -> Log:
        return open_log(self.url)

    def put(self, messages: Sequence[Message]) -> None:
        rows = [
            {
                "id": message.id,
                "source": message.source,
                "topic": message.topic,
                "key": message.key,
                "type": message.type,
                "payload": message.payload,
                "content_type": message.content_type,
                "headers": dict(message.headers) or None,
            }
            for message in messages
        ]
        with self.engine.begin() as connection:
            connection.execute(insert(self.outbox), rows)
        Relay(self.database, self.url).run(once=True)


@pytest.fixture
def road(database_url: str) -> Iterator[Road]:
    engine = create_engine(with_driver(parse_url(database_url)))
    yield BuiltinRoad(database_url, engine)
    engine.dispose()


class TestLog(LogContract):
    pass


class TestGroups(GroupContract):
    pass


class TestForget(ForgetContract):
    pass


class TestTail(TailContract):
    pass


def test_the_partition_is_that_of_the_rule(road: Road):
    keys = ["a", "", "ключ", "\U0001f600", "42"]
    road.put([*numbered(50, key=None), *[message for key in keys for message in numbered(1, key=key)]])
    for record in Member(road.open(), "orders").read(55).records():
        assert record.partition.number == partition_of(record.message.key, record.message.id, PARTITIONS)
