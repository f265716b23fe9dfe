"""The relay into a real Kafka: what arrives under each delivery, what is at fault, and what is waited out."""

import threading
from pathlib import Path
from typing import Any, Self

import pytest
from databases import install, rows, wait_until, write
from kafka_plain import Broker, first_appearances, servers
from kafka_server import KafkaServer

from outbox.errors import ConfigurationError, MessageAtFault, Permanent, Unreachable
from relay import Relay
from relay.logs.kafka import topics
from relay.status import status

DELIVERIES = ["at-least-once", "exactly-once"]
WITHOUT_AUTO_CREATION = {"auto.create.topics.enable": "false"}


@pytest.fixture
def broker(kafka_url: str) -> Broker:
    return Broker(kafka_url)


@pytest.fixture
def url(database_url: str) -> str:
    return install(database_url)


@pytest.fixture
def served(postgresql_url: str) -> str:
    return install(postgresql_url)


def drain(database: str, log: str, **settings: Any) -> None:
    Relay(database, log, **settings).run(once=True)


class Running:
    """A relay in a thread, stopped at the end of a block."""

    def __init__(self, database: str, log: str, **settings: Any) -> None:
        self.stop = threading.Event()
        self.failures: list[BaseException] = []
        self.relay = Relay(database, log, **settings)
        self.thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            self.relay.run(stop=self.stop)
        except BaseException as error:
            self.failures.append(error)

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.thread.join(60)
        assert not self.thread.is_alive()


def lag(database: str) -> int:
    return status(database)[0].lag_messages


@pytest.mark.parametrize("delivery", [*DELIVERIES, "at-most-once"])
def test_messages_arrive_whole_and_in_order(url: str, broker: Broker, delivery: str):
    topic = broker.topic()
    for number in range(20):
        write(url, topic, str(number), key=f"k{number % 3}")
    rows(url, "insert into outbox (topic, key, payload, headers) values (?, 'ключ', null, ?)", topic, '{"tenant": "a"}')
    drain(url, broker.url, delivery=delivery)
    found = broker.by_key(topic)
    assert found.pop("ключ") == [""]
    assert found == {f"k{n}": [str(number) for number in range(n, 20, 3)] for n in range(3)}
    (tombstone,) = [one for one in broker.records(topic) if one.key == "ключ"]
    assert tombstone.value is None
    assert (
        tombstone.headers.items()
        >= {
            "tenant": "a",
            "ce_specversion": "1.0",
            "ce_type": topic,
            "ce_sequence": f"{21:019d}",
            "ce_relayepoch": "1",
            "ce_partitionkey": "ключ",
        }.items()
    )
    drain(url, broker.url, delivery=delivery)
    assert len(broker.records(topic)) == 21, "nothing is sent twice by a run that finds nothing"
    assert status(url)[0].maybe_lost == 0


def test_a_java_client_would_choose_the_same_partitions(served: str, broker: Broker):
    """Kafka's default partitioner: murmur2 of the key's bytes, without its sign, modulo the number of partitions.

    The hashes are those of the test in Kafka's own sources (UtilsTest.testMurmur2).
    """
    known = {"21": -973932308, "foobar": -790332482, "a-little-bit-long-string": -985981536}
    known |= {"a-little-bit-longer-string": -1486304829, "lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971}
    topic = broker.topic(partitions=7)
    for key in known:
        write(served, topic, "x", key=key)
    drain(served, broker.url)
    found = {one.key: one.partition for one in broker.records(topic)}
    assert found == {key: (hashed & 0x7FFFFFFF) % 7 for key, hashed in known.items()}


@pytest.mark.parametrize("compression", ["none", "lz4"], ids=["weighed by us", "refused by the broker"])
@pytest.mark.parametrize("delivery", DELIVERIES)
def test_a_message_too_large_is_named_and_nothing_passes_it(
    served: str, broker: Broker, delivery: str, compression: str
):
    """INVARIANT I3: a refused batch blames all its messages; the one at fault is found, and what is behind it waits.

    Without one request in flight, or going on behind a failure, later messages of the partition would be stored before
    it: "paid" would be read before "placed".
    """
    topic = broker.topic(partitions=1, max_message_bytes="20000")
    noise = "md5(random()::text)"
    rows(
        served,
        f"insert into outbox (topic, key, payload) select '{topic}', 'k' || mod(n, 3), n::text::bytea"
        " from generate_series(0, 199) n",
    )
    rows(
        served,
        f"insert into outbox (topic, key, payload) select '{topic}', 'k0', string_agg({noise}, '')::bytea"
        " from generate_series(1, 2000)",
    )
    rows(
        served,
        f"insert into outbox (topic, key, payload) select '{topic}', 'k' || mod(n, 3), n::text::bytea"
        " from generate_series(200, 399) n",
    )
    log = f"{broker.url}?compression.type={compression}"
    for _ in range(2):
        with pytest.raises(MessageAtFault, match=r"position 201\).*max\.message\.bytes.*delete its row"):
            drain(served, log, delivery=delivery)
    before = broker.values(topic)
    assert first_appearances(before) == [str(number) for number in range(200)]
    rows(served, "delete from outbox where position = 201")
    drain(served, log, delivery=delivery)
    after = broker.values(topic)
    assert first_appearances(after) == [str(number) for number in range(400)]
    if delivery == "exactly-once":
        assert len(after) == 400


@pytest.mark.parametrize("delivery", [*DELIVERIES, "at-most-once"])
def test_batches_are_no_larger_than_a_topic_takes(served: str, broker: Broker, delivery: str):
    topic = broker.topic(partitions=1, max_message_bytes="6000")
    rows(
        served,
        f"insert into outbox (topic, key, payload) select '{topic}', 'k', n::text::bytea"
        " from generate_series(0, 499) n",
    )
    drain(served, broker.url, delivery=delivery)
    assert broker.values(topic) == [str(number) for number in range(500)]


@pytest.mark.parametrize("delivery", DELIVERIES)
def test_what_the_brokers_cannot_take_now_is_waited_out_and_is_nobodys_fault(
    served: str, own_kafka_server: KafkaServer, delivery: str
):
    """INVARIANT I8: a broker that hangs for longer than a lease, and for longer than a transaction may last.

    A chunk is given up and formed anew meanwhile: without ending its transaction it would come twice.
    """
    broker = Broker(own_kafka_server.url())
    topic = broker.topic(partitions=1)
    write(served, topic, "0", key="k")
    with Running(served, broker.url, delivery=delivery, lease=1.0) as running:
        wait_until(lambda: broker.values(topic) == ["0"], "the first")
        own_kafka_server.pause()
        for number in range(1, 30):
            write(served, topic, str(number), key="k")
        wait_until(lambda: status(served)[0].owner is None, "the relay has waited for two leases, and let go")
        own_kafka_server.resume()
        wait_until(lambda: lag(served) == 0, "it goes on by itself")
    assert not running.failures
    assert first_appearances(broker.values(topic)) == [str(number) for number in range(30)]
    if delivery == "exactly-once":
        assert len(broker.values(topic)) == 30


@pytest.mark.parametrize("delivery", DELIVERIES)
def test_a_topic_that_is_missing_is_made_where_that_is_asked(
    served: str, tmp_path: Path, kafka_programs: Path, delivery: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(topics, "APPEAR_SECONDS", 0.5)
    server = KafkaServer(tmp_path, programs=kafka_programs, settings=WITHOUT_AUTO_CREATION)
    server.start()
    try:
        broker = Broker(server.url())
        known = broker.topic()
        write(served, known, "0", key="k")
        write(served, "orders", "1", key="k")
        with pytest.raises(MessageAtFault, match=r"'orders' \(position 2\).*does not exist.*\?partitions=8"):
            drain(served, server.url(), delivery=delivery)
        assert first_appearances(broker.values(known)) == ["0"]
        drain(served, f"{server.url()}?partitions=3&replication=1", delivery=delivery)
        assert broker.values("orders") == ["1"]
        assert len(broker.admin.list_topics("orders", timeout=10).topics["orders"].partitions) == 3
        write(served, "payments", "2")
        with pytest.raises(Permanent, match=r"(?s)making topic 'payments'.*mend \?partitions= and \?replication="):
            drain(served, f"{server.url()}?partitions=3&replication=2", delivery=delivery)
    finally:
        server.delete()


@pytest.mark.parametrize("delivery", DELIVERIES)
def test_a_topic_that_is_deleted_under_a_relay_is_made_anew(served: str, broker: Broker, delivery: str):
    topic = broker.topic()
    log = f"{broker.url}?partitions=2&replication=1"
    with Running(served, log, delivery=delivery, lease=2.0) as running:
        write(served, topic, "0", key="k")
        wait_until(lambda: broker.values(topic) == ["0"], "the first")
        broker.delete(topic)
        write(served, topic, "1", key="k")
        wait_until(lambda: lag(served) == 0, "the second")
    assert not running.failures
    assert broker.values(topic) == ["1"]


def test_topics_that_a_relay_names_are_looked_at_when_it_starts(
    served: str, tmp_path: Path, kafka_programs: Path, caplog: pytest.LogCaptureFixture
):
    server = KafkaServer(tmp_path, programs=kafka_programs, settings=WITHOUT_AUTO_CREATION)
    server.start()
    try:
        small = Broker(server.url()).topic(max_message_bytes="5000")
        drain(served, server.url(), topics=f"{small},missing,others.*")
    finally:
        server.delete()
    words = "\n".join(record.getMessage() for record in caplog.records)
    assert f"topic {small} takes 5000 bytes a record (max.message.bytes)" in words
    assert f"topic {small} lies on one broker" in words
    assert "topic missing: the topic does not exist" in words
    assert "?partitions=8" in words
    assert "others" not in words


def test_an_unreachable_broker_is_waited_for_and_once_gives_up(served: str):
    with pytest.raises(Unreachable, match=r"gave up after 1 s: .*no broker answers.*127\.0\.0\.1:1.*refused"):
        drain(served, "kafka://127.0.0.1:1", wait=1.0)


@pytest.mark.parametrize(
    ("settings", "words"),
    [("security.protocol=ssl", "SSL"), ("security.protocol=sasl_plaintext&sasl.mechanism=PLAIN", "SASL|sasl|dis")],
    ids=["TLS to a plain port", "a password where none is asked"],
)
def test_what_does_not_speak_our_protocol_is_unreachable_in_words_without_the_password(
    served: str, kafka_url: str, settings: str, words: str
):
    with pytest.raises(Unreachable, match=words) as caught:
        drain(served, f"kafka://app:hunter2@{servers(kafka_url)}?{settings}", wait=1.0)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("no.such=1", "No such configuration property"),
        ("acks=many", "acks"),
        ("transactional.id=x", "'transactional.id' is not yours to set"),
        ("enable.idempotence=false", "not yours to set"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_anything_is_done(served: str, query: str, words: str):
    with pytest.raises(ConfigurationError, match=words):
        drain(served, f"kafka://127.0.0.1:1?{query}")
