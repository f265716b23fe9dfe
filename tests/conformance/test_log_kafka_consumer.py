"""A group member on Kafka, and what only Kafka does: holes in its logs, records of anybody's, sessions that end."""

import ctypes
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import confluent_kafka
import pytest
from confluent_kafka import Consumer as Client
from confluent_kafka import TopicPartition
from confluent_kafka.admin import NewPartitions
from kafka_road import KafkaRoad, NamedConsumer, until
from log_contract import OPENED, PARTITIONS, Member, numbered, numbers
from log_contract_groups import shared, together
from log_contract_tail import following, tail
from sqlalchemy import MetaData, create_engine
from sqlalchemy.orm import Session

from inbox import Delivery, Inbox
from outbox.errors import ConfigurationError, Permanent, Retryable
from outbox.message import Offset
from relay.logs.cloudevents import foreign_id
from relay.logs.contract import Bounds, Partition
from relay.logs.kafka.consumer import KafkaConsumer


@pytest.fixture
def road(kafka_url: str) -> KafkaRoad:
    return KafkaRoad(kafka_url)


@pytest.fixture
def transactional(kafka_url: str) -> KafkaRoad:
    return KafkaRoad(kafka_url, transactional=True)


@pytest.fixture(autouse=True)
def everything_closed(road: KafkaRoad) -> Iterator[None]:
    yield
    while OPENED:
        OPENED.pop().close()


def inner(member: Member) -> KafkaConsumer:
    """The consumer itself, which knows long names."""
    return cast("KafkaConsumer", cast("NamedConsumer", member.consumer).consumer)


def reached(member: Member, partition: Partition) -> int:
    return max((batch.end for batch in member.batches if batch.partition == partition), default=0)


def only_partition(road: KafkaRoad, topic: str = "orders") -> Partition:
    """Make a topic of one partition."""
    road.make(topic, partitions=1)
    (partition,) = road.open().partitions([topic])
    return partition


def unbroken(member: Member, partition: Partition) -> bool:
    batches = [batch for batch in member.batches if batch.partition == partition]
    return all(before.end == after.begin for before, after in pairwise(batches))


def test_behind_the_last_record_a_batch_without_records_reaches_the_end(transactional: KafkaRoad):
    partition = only_partition(transactional)
    transactional.put(numbered(3))
    client = transactional.client()
    client.begin_transaction()
    client.produce(transactional.prefix + "orders", b"never")
    client.flush(30)
    client.abort_transaction(30)
    end = transactional.open().partitions(["orders"])[partition].end
    assert end == 6, "three records, a mark, one that was aborted, a mark"
    member = Member(transactional.open(), "orders")
    member.until(lambda: reached(member, partition) == end, "the end")
    assert numbers(member.records()) == [0, 1, 2]
    assert unbroken(member, partition)
    transactional.put(numbered(1, begin=3))
    member.until(lambda: reached(member, partition) == 8, "the new end")
    assert numbers(member.records()) == [0, 1, 2, 3]
    assert unbroken(member, partition)
    assert member.batches[-1].records == [] or member.batches[-1].records[-1].offset == 6


def test_what_lies_behind_an_open_transaction_waits_for_it(road: KafkaRoad, transactional: KafkaRoad):
    partition = only_partition(road)
    topic = road.prefix + "orders"
    road.put(numbered(1))
    client = transactional.client()
    client.begin_transaction()
    client.produce(topic, b"1")
    client.flush(30)
    road.put(numbered(1, begin=2))
    assert road.open().partitions(["orders"])[partition] == Bounds(Offset(0), Offset(1))
    member = Member(road.open(), "orders").read(1)
    client.commit_transaction(30)
    assert numbers(member.read(3).records()) == [0, 1, 2]


def test_records_that_were_deleted_are_missed_in_words_until_somebody_seeks(road: KafkaRoad):
    partition = only_partition(road)
    road.put(numbered(10))
    place = TopicPartition(road.prefix + "orders", 0, 5)
    road.admin.delete_records([place])[place].result()
    member = Member(road.open(), "orders")
    words = "the log has lost records of topic 'orders', partition 0: offset 0 was to be read and 5 is the first"
    for _ in range(2):
        with pytest.raises(Permanent, match=words):
            member.until(lambda: bool(member.batches), "what it may not read")
    member.consumer.seek(partition, Offset(5))
    assert numbers(member.read(5).records()) == [5, 6, 7, 8, 9]


def test_a_claim_behind_the_logs_end_stops_with_words(road: KafkaRoad):
    partition = only_partition(road)
    road.put(numbered(3))
    member = Member(road.open(), "orders", begin={partition: 7})
    with pytest.raises(Permanent, match="offset 7 was to be read and it ends at 3"):
        member.until(lambda: bool(member.batches), "what it may not read")
    road.put(numbered(1, begin=3))
    assert member.told.revocations == []


def test_anybodys_records_are_read(road: KafkaRoad):
    partition = only_partition(road)
    topic = road.prefix + "orders"
    # Python has to have been there often: see records._headers.
    road.put(numbered(100, topic="payments"))
    Member(road.open(), "payments", group="h").read(100)
    with road.producing() as client:
        client.produce(topic, b"plain")
        client.produce(topic, None, b"\xff\xfe")
        client.produce(topic, b"csv", b"", headers=[("content-type", b"text/csv"), ("n", None), ("n", b"\xff")])
    produce_with_header(road.servers, topic, b"\xff\xfe", b"x")
    road.put(numbered(1))
    plain, tombstone, csv, unnameable, last = Member(road.open(), "orders").read(5).records()
    for offset, record in enumerate((plain, tombstone, csv, unnameable)):
        assert (record.message.source, record.message.id) == (
            partition.incarnation,
            foreign_id(0, Offset(offset)),
        )
    assert (plain.message.key, plain.message.type, plain.message.content_type) == (
        None,
        road.prefix + "orders",
        "application/octet-stream",
    )
    assert plain.message.time is not None
    assert abs(datetime.now(UTC) - plain.message.time).total_seconds() < 3600
    assert (tombstone.message.key, tombstone.message.payload) == ("\udcff\udcfe", None)
    assert (csv.message.key, csv.message.content_type, csv.headers["n"]) == ("", "text/csv", "\ufffd")
    assert (unnameable.message.payload, dict(unnameable.headers)) == (b"v", {})
    assert last.message.payload == b"0"


def produce_with_header(servers: str, topic: str, name: bytes, value: bytes) -> None:
    """Produce a record that Python's clients refuse to make, by librdkafka itself."""
    found = [*Path(confluent_kafka.__file__).parent.with_name("confluent_kafka.libs").glob("librdkafka*")]
    if not found:
        pytest.skip("librdkafka is not beside the Python package")
    library = ctypes.CDLL(str(found[0]))
    for function in (library.rd_kafka_conf_new, library.rd_kafka_new):
        function.restype = ctypes.c_void_p
    words = ctypes.create_string_buffer(512)
    size = ctypes.c_size_t(512)
    conf = ctypes.c_void_p(library.rd_kafka_conf_new())
    library.rd_kafka_conf_set(conf, b"bootstrap.servers", servers.encode(), words, size)
    client = ctypes.c_void_p(library.rd_kafka_new(0, conf, words, size))
    # RD_KAFKA_V_TOPIC, _VALUE and _HEADER with their arguments, then _END.
    arguments = (1, topic.encode(), 4, b"v", ctypes.c_size_t(1), 9, name, value, ctypes.c_ssize_t(len(value)), 0)
    assert library.rd_kafka_producev(client, *arguments) == 0
    assert library.rd_kafka_flush(client, 30_000) == 0
    library.rd_kafka_destroy(client)


def test_a_topic_made_anew_is_another_topic(road: KafkaRoad):
    road.put(numbered(40, key=None))
    member = Member(road.open(), "orders").read(40).joined()
    old = member.consumer.assignment()
    road.delete("orders")
    until(lambda: not road.open().partitions(["orders"]), "the topic is gone")
    road.put(numbered(3, begin=100))
    member.until(lambda: len(member.records()) == 43, "the records of the new topic")
    member.joined()
    new = member.consumer.assignment()
    assert new == set(road.open().partitions(["orders"]))
    assert old is not None and new is not None and not old & new
    assert {one for gone in member.told.revocations for one in gone} >= old
    assert numbers([record for record in member.records() if record.partition in new]) == [100, 101, 102]


def test_a_topic_made_anew_that_holds_more_than_was_read_is_read_from_its_first_record(road: KafkaRoad):
    road.put(numbered(10))
    member = Member(road.open(), "orders").read(10).joined()
    road.delete("orders")
    until(lambda: not road.open().partitions(["orders"]), "the topic is gone")
    road.put(numbered(50, begin=100))
    new = set(road.open().partitions(["orders"]))
    # Until it is noticed, records behind the old position may come under the old topic's name: they come again.
    member.until(lambda: sum(len(member.of(one)) for one in new) == 50, "the records of the new topic")
    assert numbers([record for record in member.records() if record.partition in new]) == list(range(100, 150))


def test_partitions_that_are_added_are_read_from_their_first_record(road: KafkaRoad):
    road.put(numbered(40, key=None))
    member = Member(road.open(), "orders").read(40).joined()
    topic = road.prefix + "orders"
    road.admin.create_partitions([NewPartitions(topic, PARTITIONS + 2)])[topic].result()
    with road.producing() as client:
        until(lambda: len(client.list_topics(topic).topics[topic].partitions) > PARTITIONS, "the producer sees them")
        for number in (PARTITIONS, PARTITIONS + 1):
            client.produce(topic, b"77", partition=number)
    member.read(42).joined(PARTITIONS + 2)
    assert numbers(member.records()[40:]) == [77, 77]
    assert member.told.revocations == []


def test_where_a_time_is(road: KafkaRoad):
    partition = only_partition(road)
    with road.producing() as client:
        for second in range(1_700_000_000, 1_700_000_010):
            client.produce(road.prefix + "orders", str(second).encode(), timestamp=second * 1000)
    member = Member(road.open(), "orders").read(10)
    consumer = inner(member)
    long = partition._replace(topic=road.prefix + "orders")
    for seconds, offset in ((1_700_000_004, 4), (1_700_000_003.5, 4), (0, 0), (1_800_000_000, 10)):
        assert consumer.offsets_at([long], datetime.fromtimestamp(seconds, UTC)) == {long: offset}
    member.batches.clear()
    member.consumer.seek(partition, consumer.offsets_at([long], datetime.fromtimestamp(1_700_000_007, UTC))[long])
    assert numbers(member.read(3).records()) == [1_700_000_007, 1_700_000_008, 1_700_000_009]


def test_what_is_read_while_a_partition_rests_is_bounded_and_kept_in_order(road: KafkaRoad):
    rests = only_partition(road)
    road.make("payments", partitions=1)
    road.put(numbered(1))
    member = Member(road.open(), "orders", "payments").read(1)
    member.consumer.pause(rests)
    road.put(numbered(20_000, begin=1))
    road.put(numbered(20_000, topic="payments"))
    member.until(lambda: len(member.records()) == 20_001, "the other partition")
    kept = sum(len(lane.ahead) for lane in inner(member)._reading._lanes.values())
    assert kept < 5_000
    member.consumer.resume(rests)
    member.read(40_001)
    assert numbers(member.of(rests)) == list(range(20_001))
    assert unbroken(member, rests)


def test_a_group_of_another_manner_is_refused_in_words(road: KafkaRoad):
    road.put(numbered(1))
    other = Client(
        {
            "bootstrap.servers": road.servers,
            "group.id": road.prefix + "g",
            "partition.assignment.strategy": "range",
        }
    )
    other.subscribe([road.prefix + "orders"])
    until(lambda: other.poll(0.1) is None and bool(other.assignment()), "the other program is in the group")
    member = Member(road.open(), "orders")
    with pytest.raises(ConfigurationError, match=r"the name of group 'g' is taken: its members divide .* by 'range'"):
        member.joined()
    other.close()
    assert numbers(member.read(1).records()) == [0]


def test_a_listener_that_fails_as_it_gives_up_is_heard_and_loses_nothing(road: KafkaRoad):
    road.put(numbered(40, key=None))
    first, second = Member(road.open(), "orders").joined(), Member(road.open(), "orders")
    revoked = first.told.revoked

    def fails(partitions: Any) -> None:
        first.told.revoked = revoked  # type: ignore[method-assign]
        revoked(partitions)
        raise Retryable("the database is away")

    first.told.revoked = fails  # type: ignore[method-assign]
    with pytest.raises(Retryable, match="the database is away"):
        shared(first, second)
    shared(first, second)
    assert len(second.consumer.assignment() or ()) == PARTITIONS // 2
    together([first, second], lambda: {*numbers(first.records()), *numbers(second.records())} == set(range(40)), "all")


def test_an_offset_that_was_noted_for_an_earlier_topic_says_nothing(road: KafkaRoad):
    partition = only_partition(road)
    road.put(numbered(3))
    group = {"bootstrap.servers": road.servers, "group.id": road.prefix + "g", "enable.auto.commit": False}
    client = Client(group)
    topic = road.prefix + "orders"
    client.commit(offsets=[TopicPartition(topic, 0, 900, "another topic's id")], asynchronous=False)
    assert road.open().committed("g") == {}
    member = Member(road.open(), "orders").read(3)
    member.consumer.commit({partition: Offset(3)})
    member.consumer.close()
    assert road.open().committed("g") == {partition: 3}
    client.commit(offsets=[TopicPartition(topic, 0, 2)], asynchronous=False)
    assert road.open().committed("g") == {partition: 2}, "of a program that notes nothing beside its offsets"
    client.close()


def test_a_tail_goes_on_through_partitions_that_are_added_and_a_topic_made_anew(road: KafkaRoad):
    road.make("orders", partitions=1)
    road.put(numbered(3))
    records = tail(road.open(), "orders", from_start=True, follow=True)
    assert numbers(following(records, 3)) == [0, 1, 2]
    topic = road.prefix + "orders"
    road.admin.create_partitions([NewPartitions(topic, 2)])[topic].result()
    until(lambda: len(road.client().list_topics(topic).topics[topic].partitions) == 2, "the producer sees them")
    with road.producing() as client:
        client.produce(topic, b"3", partition=1)
    assert numbers(following(records, 1)) == [3]
    road.delete("orders")
    until(lambda: not road.open().partitions(["orders"]), "the topic is gone")
    road.put(numbered(2, begin=4))
    assert numbers(following(records, 2)) == [4, 5]


def test_a_tail_of_a_topic_that_is_deleted_meanwhile_ends(road: KafkaRoad):
    road.put(numbered(2000))
    records = tail(road.open(), "orders", from_start=True, follow=False)
    assert next(records) is not None
    road.delete("orders")
    assert len([record for record in records if record]) < 2000


def test_an_inbox_reads_once_to_the_end_behind_a_transactions_mark(transactional: KafkaRoad, sqlite_url: str):
    transactional.put([*numbered(50, key=None), *numbered(50)])
    topic, handled = transactional.prefix + "orders", []
    metadata = MetaData()
    inbox = Inbox(transactional.prefix + "g", metadata=metadata)

    @inbox.handler(topic)
    def handle(delivery: Delivery[object], session: Session) -> None:
        handled.append(delivery.message.id)

    engine = create_engine(sqlite_url)
    metadata.create_all(engine)
    engine.dispose()
    for _ in range(2):
        inbox.run(sqlite_url, transactional.url, once=True)
    assert len(handled) == len(set(handled)) == 100
    log = transactional.open()
    ends = {partition: held.end for partition, held in log.partitions(["orders"]).items()}
    assert log.committed("g") == ends
    assert sum(ends.values()) > 100


def test_what_a_url_says_counts(road: KafkaRoad):
    with pytest.raises(ConfigurationError, match=r"session\.timeout\.ms"):
        Member(road.open("?session.timeout.ms=soon"), "orders").poll()
    with pytest.raises(ConfigurationError, match=r"auto\.offset\.reset"):
        road.open("?auto.offset.reset=earliest")
