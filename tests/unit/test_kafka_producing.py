"""What a relay does for Kafka before anything is sent: headers, weights, partitions, and which messages go first."""

import gc
import uuid
import weakref
from dataclasses import replace
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError

from outbox.errors import ConfigurationError, Fenced, Permanent, Retryable, TimedOut, Unreachable
from outbox.message import Entry, Epoch, Message, Position
from relay.logs import ProducerIdentity
from relay.logs.cloudevents import resolved, wire_headers
from relay.logs.kafka.address import Address
from relay.logs.kafka.errors import is_permanent, ours
from relay.logs.kafka.partitioner import murmur2, partitioner_of
from relay.logs.kafka.priming import Priming
from relay.logs.kafka.sending import FLUSH_SECONDS, Sender, _first
from relay.logs.kafka.topics import BATCH_BYTES
from relay.logs.kafka.wire import fault, header_writer, size_of
from relay.logs.rows import Rows, entry_of, rows_of

IDENTITY = ProducerIdentity("default", uuid.uuid4(), uuid.uuid4(), Epoch(7))
MESSAGE = Message(
    uuid.uuid4(),
    "orders",
    "42",
    "OrderPlaced",
    b"{}",
    "application/json",
    {"tenant": "a"},
    "/shop",
    datetime(2026, 1, 2, 3, 4, 5, 678, UTC),
    Position(12),
)


@pytest.mark.parametrize(
    "message",
    [
        MESSAGE,
        replace(MESSAGE, source=None, type="", key=None, headers={}),
        replace(MESSAGE, key="", headers={"ce_id": "another's", "traceparent": "00-1-2-01", "content-type": "x"}),
    ],
    ids=["whole", "bare", "with reserved headers"],
)
def test_the_headers_are_those_of_every_log(message: Message):
    (row,) = rows_of([Entry(Position(12), message)])
    written = header_writer(IDENTITY)(row)
    expected = wire_headers(resolved(message, IDENTITY.installation), Epoch(7))
    assert written | {"ce_time": expected["ce_time"]} == expected
    assert datetime.fromisoformat(written["ce_time"]) == message.time


def test_rows_are_the_entries_that_they_were_made_of():
    entries = [Entry(Position(12), MESSAGE), Entry(Position(13), replace(MESSAGE, sequence=Position(13), time=None))]
    chunk = Rows(rows_of(entries))
    assert list(chunk) == entries
    assert chunk[1] == entry_of(chunk.rows[1]) == entries[1]
    assert isinstance(chunk[:1], Rows) and list(chunk[:1]) == entries[:1]
    assert rows_of(chunk) is chunk.rows


def test_headers_that_are_no_texts_are_a_fault():
    (row,) = rows_of([Entry(Position(1), MESSAGE)])
    assert fault(row) is None
    assert fault(row._replace(headers=None)) is None
    assert fault(row._replace(headers={"a": 1})) is not None  # type: ignore[dict-item]


def test_a_record_weighs_at_least_what_it_holds():
    (row,) = rows_of([Entry(Position(1), replace(MESSAGE, key="ключ", payload=b"x" * 1000))])
    assert size_of(row, {"ä": "ö"}) > 1000 + 8 + 4
    assert size_of(row._replace(payload=None, key=None), {}) < 200


@pytest.mark.parametrize(
    ("key", "hashed"),
    [
        (b"21", -973932308),
        (b"foobar", -790332482),
        (b"a-little-bit-long-string", -985981536),
        (b"a-little-bit-longer-string", -1486304829),
        (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        (b"abc", 479470107),
    ],
)
def test_murmur2_is_that_of_kafkas_own_sources(key: bytes, hashed: int):
    assert murmur2(key) == hashed & 0xFFFFFFFF


def test_a_partitioner_that_cannot_be_computed_is_refused():
    with pytest.raises(ConfigurationError, match="partitioner='fnv1a': write murmur2_random"):
        partitioner_of("fnv1a")
    assert partitioner_of("consistent_random")(b"123456789", 2**32) == 0xCBF43926  # the check value of crc32
    assert {partitioner_of("murmur2_random")(None, 3) for _ in range(200)} == {0, 1, 2}
    assert {partitioner_of("consistent_random")(b"", 3) for _ in range(200)} == {0, 1, 2}


class Primed:
    """A priming whose confirmations are counted; a key is its partition."""

    def __init__(self, partitions: int = 3) -> None:
        self.confirmed = 0
        self.priming = Priming(lambda key, _: int(key or b"0"), lambda _: partitions, self._confirm)

    def _confirm(self) -> None:
        self.confirmed += 1

    def place(self, key: int, topic: str = "orders") -> int:
        return self.priming.place(topic, str(key))


def test_the_second_message_of_a_partition_waits_until_the_first_is_stored():
    """INVARIANT I3: of a fresh producer the brokers would take the second batch although the first was refused."""
    primed = Primed()
    assert [primed.place(key) for key in (0, 1)] == [0, 1]
    assert primed.confirmed == 0, "first messages go together"
    assert primed.place(0) == 0
    assert primed.confirmed == 1
    assert [primed.place(key) for key in (1, 0, 1)] == [1, 0, 1]
    assert primed.confirmed == 1, "both are stored"
    assert [primed.place(2), primed.place(2)] == [2, -1]
    assert primed.confirmed == 2
    assert primed.place(1) == -1, "all are stored: it is librdkafka's turn"


def test_topics_are_primed_one_by_one_and_anew_when_the_brokers_may_have_forgotten(monkeypatch: pytest.MonkeyPatch):
    primed = Primed(partitions=1)
    assert [primed.place(0), primed.place(0, "bills"), primed.place(0), primed.place(0, "bills")] == [0, 0, -1, -1]
    assert primed.confirmed == 1
    monkeypatch.setattr("relay.logs.kafka.priming.AGAIN_SECONDS", -1.0)
    primed.priming.begin()
    assert primed.place(0) == 0


def test_what_a_client_drops_when_it_gives_up_is_not_the_reason_even_if_it_is_told_first():
    """INVARIANT I7, I8: a relay that took it for the reason would send the same chunk again, for ever."""
    topics: Any = SimpleNamespace(look_again=lambda: None, batch_bytes=BATCH_BYTES, partitions=lambda _: 1)
    sender = Sender(Address("127.0.0.1:1", {}), topics, IDENTITY, {})
    (row,) = rows_of([Entry(Position(12), MESSAGE)])
    firsts = {"orders": row}
    assert sender.refusal(firsts) is None
    sender.producer.produce("orders", b"{}", on_delivery=sender._report)
    sender.producer.purge()
    assert sender.flush(1.0)
    with pytest.raises(TimedOut):
        sender.refusal(firsts)
    refused: Any = SimpleNamespace(topic=lambda: "orders")
    sender._report(KafkaError(KafkaError.MSG_SIZE_TOO_LARGE), refused)
    sender._report(KafkaError(KafkaError._PURGE_QUEUE), refused)
    failure = sender.refusal(firsts)
    assert failure is not None and failure.permanent
    sender.close()


def test_a_refusal_is_heard_though_others_of_the_transaction_still_wait():
    """They wait for as long as a chunk may take: to find the message at fault among 10,000 would take 13 times that."""
    topics: Any = SimpleNamespace(look_again=lambda: None, batch_bytes=BATCH_BYTES, partitions=lambda _: 1)
    sender = Sender(Address("127.0.0.1:1", {}), topics, IDENTITY, {})
    waits: list[float] = []

    def flush(seconds: float) -> int:
        waits.append(seconds)
        if len(waits) == 2:
            sender._report(KafkaError(KafkaError.MSG_SIZE_TOO_LARGE), None)
        return 9_999

    sender.producer.close()
    sender.producer = SimpleNamespace(flush=flush)  # type: ignore[assignment]
    assert sender.flush(3_600.0)
    assert len(waits) == 2 and max(waits) <= FLUSH_SECONDS


def test_a_sender_that_is_closed_lets_go_of_its_client_at_once():
    """A relay opens one after the other while brokers come and go: each has five descriptors and three threads."""
    topics: Any = SimpleNamespace(look_again=lambda: None, batch_bytes=BATCH_BYTES, partitions=lambda _: 1)
    sender = Sender(Address("127.0.0.1:1", {}), topics, IDENTITY, {})
    held = weakref.ref(sender)
    gc.disable()
    try:
        sender.close()
        sender.close()
        del sender
        assert held() is None
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("code", "kind", "permanent"),
    [
        (KafkaError.MSG_SIZE_TOO_LARGE, Permanent, True),
        (KafkaError.UNKNOWN_TOPIC_OR_PART, Permanent, True),
        (KafkaError.TOPIC_AUTHORIZATION_FAILED, Permanent, True),
        (KafkaError.INVALID_RECORD, Permanent, True),
        (KafkaError.NOT_ENOUGH_REPLICAS, Retryable, False),
        (KafkaError.NOT_LEADER_FOR_PARTITION, Retryable, False),
        (KafkaError.THROTTLING_QUOTA_EXCEEDED, Retryable, False),
        (KafkaError.REQUEST_TIMED_OUT, Retryable, False),
        (KafkaError._ALL_BROKERS_DOWN, Unreachable, False),
        (KafkaError.SASL_AUTHENTICATION_FAILED, Unreachable, False),
        (KafkaError.INVALID_PRODUCER_EPOCH, Fenced, False),
        (KafkaError._FENCED, Fenced, False),
    ],
)
def test_an_error_is_told_by_its_code(code: int, kind: type[Exception], permanent: bool):
    error = KafkaError(code)
    assert type(ours(error, "producing", "127.0.0.1 refused")) is kind
    assert is_permanent(error) is permanent
    assert "producing" in str(ours(error, "producing")) and error.name() in str(ours(error, "producing"))


def test_of_many_reports_the_message_at_fault_counts_and_not_those_that_were_dropped_because_of_it():
    """Or the relay would take a refusal for a passing fault, and send the same chunk again for ever."""
    dropped, too_large = KafkaError(KafkaError._PURGE_QUEUE), KafkaError(KafkaError.MSG_SIZE_TOO_LARGE)
    chain: Any = None
    for error, message in [(dropped, "first"), (too_large, "second"), (too_large, "third"), (dropped, "fourth")]:
        chain = error, message, chain
    assert _first(chain) == (too_large, "second")
    assert _first((dropped, "last", (dropped, "first", None))) == (dropped, "first")  # type: ignore[arg-type]
