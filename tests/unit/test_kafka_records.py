"""A Kafka record as ours: whatever its bytes are."""

import uuid
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from confluent_kafka import TIMESTAMP_CREATE_TIME, TIMESTAMP_NOT_AVAILABLE
from confluent_kafka import Message as Raw

from outbox.message import Epoch, Message, Position
from relay.logs.cloudevents import NAMESPACE, wire_headers
from relay.logs.contract import Partition, Record
from relay.logs.kafka.records import MOST_SOURCE_BYTES, record_of

PARTITION = Partition("orders", "inc", 3)
STORED = datetime(2026, 5, 4, 3, 2, 1, 500_000, tzinfo=UTC)
ID = "0190a6c2-6f0e-7c3a-9d2b-1a2b3c4d5e6f"
EVENT = {"ce_specversion": b"1.0", "ce_id": ID.encode(), "ce_source": b"/shop", "ce_type": b"Placed"}
FOREIGN_ID = uuid.uuid5(NAMESPACE, "3/7")


def raw(
    headers: "dict[str, bytes | None] | Sequence[tuple[str, bytes | None]] | None" = None,
    *,
    key: bytes | None = None,
    value: bytes | None = b"{}",
    timestamp: tuple[int, int] = (TIMESTAMP_CREATE_TIME, round(STORED.timestamp() * 1000)),
) -> Raw:
    pairs: Any = list(headers.items()) if isinstance(headers, dict) else headers
    return Raw("orders", 3, 7, key, value, pairs, None, timestamp)


def read(headers: Any = None, **more: Any) -> Record:
    return record_of(PARTITION, raw(headers, **more))


def test_what_a_relay_writes_is_read_whole():
    sent = Message(
        uuid.UUID(ID),
        "orders",
        "42",
        "Placed",
        b"\0{}",
        "text/plain",
        {"tenant": "ä", "traceparent": "00-a-b-01", "ce_correlationid": "c", "ce_causationid": "d"},
        "/shop",
        STORED,
        Position(12),
    )
    wire = wire_headers(sent, Epoch(3))
    record = read([(name, value.encode()) for name, value in wire.items()], key=b"42", value=b"\0{}")
    assert record == Record(PARTITION, 7, sent, wire)


def test_a_record_without_headers_is_known_by_its_place():
    record = read(None)
    message = record.message
    assert (message.id, message.source, message.type) == (FOREIGN_ID, "inc", "orders")
    assert (message.content_type, message.time, message.sequence) == ("application/octet-stream", STORED, None)
    assert record.headers == message.headers == {}


def test_a_foreign_record_keeps_its_headers_and_content_type():
    record = read({"content-type": b"text/csv", "tenant": b"a", "ce_id": b"1"})
    assert (record.message.id, record.message.content_type) == (FOREIGN_ID, "text/csv")
    assert record.message.headers == {"tenant": "a"}
    assert record.headers == {"content-type": "text/csv", "tenant": "a", "ce_id": "1"}


@pytest.mark.parametrize("missing", ["ce_specversion", "ce_id", "ce_source"])
def test_without_one_of_the_headers_that_say_who_it_is_it_is_known_by_its_place(missing: str):
    message = read({name: value for name, value in EVENT.items() if name != missing}).message
    assert (message.id, message.source, message.type) == (FOREIGN_ID, "inc", "Placed")


@pytest.mark.parametrize(
    "broken",
    [
        {"ce_id": b""},
        {"ce_id": b"a\xff"},
        {"ce_id": "a\ufffd".encode()},
        {"ce_id": None},
        {"ce_source": b"/\xff"},
        {"ce_source": b"/\0"},
        {"ce_source": b"/" * (MOST_SOURCE_BYTES + 1)},
        {"ce_source": "/ä".encode() * MOST_SOURCE_BYTES},
    ],
    ids=str,
)
def test_an_id_or_source_that_could_be_another_ones_is_not_taken(broken: "dict[str, bytes | None]"):
    message = read({**EVENT, **broken}).message
    assert (message.id, message.source) == (FOREIGN_ID, "inc")


def test_ids_that_are_no_uuid_become_one_and_an_empty_source_is_one():
    assert read({**EVENT, "ce_id": b"order 1\0"}).message.id == uuid.uuid5(NAMESPACE, "order 1\0")
    assert read({**EVENT, "ce_source": b""}).message.source == ""
    longest = b"/" * MOST_SOURCE_BYTES
    assert read({**EVENT, "ce_source": longest}).message.source == longest.decode()


def test_without_a_type_it_is_the_topic():
    assert read({**EVENT, "ce_type": b""}).message.type == "orders"
    assert read({**EVENT, "ce_type": None}).message.type == "orders"


def test_of_several_headers_of_one_name_the_last_counts():
    record = read([*EVENT.items(), ("tenant", b"a"), ("ce_type", b"Paid"), ("tenant", b"b"), ("tenant", None)])
    assert (record.message.type, record.message.headers) == ("Paid", {"tenant": "b"})


def test_what_is_no_text_in_a_header_is_replaced_and_a_null_is_dropped():
    record = read({"name": b"a\xffb", "nothing": None, "empty": b""})
    assert record.headers == {"name": "a\ufffdb", "empty": ""}
    record.headers["name"].encode()


@pytest.mark.parametrize("key", [b"", b"42", "ключ".encode(), b"\xff\xfe", bytes(range(256))])
def test_a_key_loses_nothing(key: bytes):
    found = read(key=key).message.key
    assert found is not None
    assert found.encode("utf-8", "surrogateescape") == key


def test_no_key_and_no_payload_are_none():
    message = read(key=None, value=None).message
    assert (message.key, message.payload) == (None, None)


@pytest.mark.parametrize(
    ("text", "time"),
    [
        (b"2026-01-02T03:04:05Z", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)),
        (b"2026-01-02T03:04:05.678901+02:00", datetime(2026, 1, 2, 1, 4, 5, 678901, tzinfo=UTC)),
        (b"2026-01-02T03:04:05", STORED),
        (b"yesterday", STORED),
        (b"", STORED),
        (b"\xff", STORED),
        (b"0001-01-01T00:00:00+14:00", STORED),
        (b"9" * 5000, STORED),
    ],
)
def test_the_time_is_the_events_or_when_kafka_stored_it(text: bytes, time: datetime):
    assert read({**EVENT, "ce_time": text}).message.time == time


@pytest.mark.parametrize("timestamp", [(TIMESTAMP_NOT_AVAILABLE, 0), (TIMESTAMP_CREATE_TIME, 2**63 - 1)])
def test_a_time_that_is_none_is_none(timestamp: tuple[int, int]):
    assert read(timestamp=timestamp).message.time is None


def test_a_time_before_1970_is_one():
    assert read(timestamp=(TIMESTAMP_CREATE_TIME, -1500)).message.time == datetime(1970, 1, 1, tzinfo=UTC) - timedelta(
        milliseconds=1500
    )


def test_times_are_utc_whatever_the_zone():
    found = read({**EVENT, "ce_time": b"2026-01-02T03:04:05+02:00"}).message.time
    assert found is not None
    assert found.tzinfo == UTC
    assert found == datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone(timedelta(hours=2)))


@pytest.mark.parametrize(
    ("text", "sequence"),
    [
        (b"0000000000000000012", 12),
        (b"12", 12),
        (b"9223372036854775807", 2**63 - 1),
        (b"9223372036854775808", None),
        (b"00000000000000000001", None),
        (b"-1", None),
        (b"1_0", None),
        (b" 1", None),
        (b"", None),
        ("\u0661".encode(), None),
        ("²".encode(), None),
        (b"9" * 5000, None),
    ],
)
def test_a_sequence_is_a_number_or_nothing(text: bytes, sequence: int | None):
    assert read({**EVENT, "ce_sequence": text}).message.sequence == sequence


class Unnameable:
    """A record with a header whose name is not UTF-8, as the client has it."""

    def __init__(self, error: type[Exception]) -> None:
        self.error = error
        self.asked = 0

    def headers(self) -> object:
        self.asked += 1
        assert self.asked == 1, "what the client answers a second time ends the process"
        raise self.error("utf-8", b"\xff", 0, 1, "invalid") if self.error is UnicodeDecodeError else self.error

    def __getattr__(self, name: str) -> object:
        return getattr(raw(), name)


@pytest.mark.parametrize("error", [SystemError, UnicodeDecodeError])
def test_a_headers_name_that_is_not_utf8_leaves_a_record_without_headers(error: type[Exception]):
    hostile: Any = Unnameable(error)
    record = record_of(PARTITION, hostile)
    assert (record.message.id, record.headers, record.message.payload) == (FOREIGN_ID, {}, b"{}")
