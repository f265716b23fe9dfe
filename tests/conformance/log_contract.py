"""The suite that every log passes: what a consumer may rely on. One hook an adapter: a `Road` to put messages through.

Expectations are written by hand; nothing here asks the adapter what to expect, but for its declared capabilities.
"""

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import pytest

from outbox.message import Message, Offset
from relay.logs.contract import Batch, Bounds, Consumer, Log, Partition, Record

WAIT_SECONDS = 30.0
PARTITIONS = 4


class Closable(Protocol):
    def close(self) -> None: ...


OPENED: list[Closable] = []
"""Consumers and tails that the running test has opened; closed at its end."""


class Road(Protocol):
    """One empty log and a way into it; made by each adapter's fixture `road`, with topics of PARTITIONS partitions."""

    dense: bool
    """Whether offsets have no holes."""

    def open(self) -> Log:
        """Open the log once more, as another process would."""
        ...

    def put(self, messages: Sequence[Message]) -> None:
        """Bring these messages into the log, in this order; they are readable when it returns."""
        ...


class Told:
    """A listener that begins where it is told, and remembers what it was told."""

    def __init__(self, begin: Mapping[Partition, int] | None = None) -> None:
        self.begin = dict(begin or {})
        self.assignments: list[list[Partition]] = []
        self.revocations: list[list[Partition]] = []
        self.fails: list[Exception] = []

    def assigned(self, partitions: Sequence[Partition]) -> Mapping[Partition, Offset]:
        self.assignments.append(list(partitions))
        if self.fails:
            raise self.fails.pop()
        return {partition: Offset(self.begin.get(partition, 0)) for partition in partitions}

    def revoked(self, partitions: Sequence[Partition]) -> None:
        self.revocations.append(list(partitions))


class Member:
    """A group member for tests: polls until something is so, and keeps all batches."""

    def __init__(self, log: Log, *topics: str, group: str = "g", begin: Mapping[Partition, int] | None = None) -> None:
        self.told = Told(begin)
        self.consumer: Consumer = log.consumer(group, topics, self.told)
        self.batches: list[Batch] = []
        OPENED.append(self.consumer)

    def poll(self, timeout_seconds: float = 0.0) -> Batch | None:
        batch = self.consumer.poll(timeout_seconds)
        if batch is not None:
            self.batches.append(batch)
        return batch

    def until(self, holds: Callable[[], bool], what: str) -> "Member":
        deadline = time.monotonic() + WAIT_SECONDS
        while not holds():
            assert time.monotonic() < deadline, f"waited {WAIT_SECONDS} s: {what}"
            self.poll(0.05)
        return self

    def joined(self, partitions: int = PARTITIONS) -> "Member":
        return self.until(lambda: len(self.consumer.assignment() or ()) == partitions, f"{partitions} partitions")

    def read(self, records: int) -> "Member":
        """Poll until so many records have come in all, then once more: none may come unasked."""
        self.until(lambda: len(self.records()) >= records, f"{records} records")
        self.poll()
        assert len(self.records()) == records
        return self

    def records(self) -> list[Record]:
        return [record for batch in self.batches for record in batch.records]

    def of(self, partition: Partition) -> list[Record]:
        return [record for record in self.records() if record.partition == partition]

    def payloads(self) -> list[bytes | None]:
        return [record.message.payload for record in self.records()]


def a_message(topic: str = "orders", key: str | None = "k", payload: bytes | None = b"{}", **more: object) -> Message:
    return Message(
        uuid.uuid4(), topic, key, **{"type": "", "content_type": "application/json", **more}, payload=payload
    )


def numbered(count: int, topic: str = "orders", key: str | None = "k", begin: int = 0) -> list[Message]:
    return [a_message(topic, key, str(number).encode()) for number in range(begin, begin + count)]


def numbers(records: Sequence[Record]) -> list[int]:
    return [int(record.message.payload or b"-1") for record in records]


class LogContract:
    """What holds for every log: records, their order, and the hand that reads them."""

    @pytest.fixture
    def log(self, road: Road):
        log = road.open()
        yield log
        log.close()

    def test_it_answers_and_has_one_identity_however_often_it_is_opened(self, road: Road, log: Log):
        log.check()
        again = road.open()
        assert log.identity() == again.identity() != ""
        again.close()

    def test_a_message_arrives_whole(self, road: Road, log: Log):
        sent = a_message(
            key="42",
            payload=b'{"id":42}',
            type="OrderPlaced",
            content_type="text/plain; charset=utf-8",
            headers={"tenant": "a", "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"},
            source="/shop",
        )
        road.put([sent])
        (record,) = Member(log, "orders").read(1).records()
        got = record.message
        assert (got.id, got.topic, got.key, got.type, got.payload) == (
            sent.id,
            "orders",
            "42",
            "OrderPlaced",
            b'{"id":42}',
        )
        assert (got.content_type, got.source) == ("text/plain; charset=utf-8", "/shop")
        assert dict(got.headers) == dict(sent.headers)
        assert got.sequence is not None
        wire = dict(record.headers)
        assert wire.pop("ce_sequence") == f"{got.sequence:019d}"
        assert int(wire.pop("ce_relayepoch")) >= 1
        wire.pop("ce_time", None)
        assert wire == {
            "ce_specversion": "1.0",
            "ce_id": str(sent.id),
            "ce_source": "/shop",
            "ce_type": "OrderPlaced",
            "ce_partitionkey": "42",
            "content-type": "text/plain; charset=utf-8",
            **sent.headers,
        }

    def test_a_message_without_type_source_or_headers_gets_the_topic_and_the_outbox(self, road: Road, log: Log):
        road.put([a_message(key=None)])
        (record,) = Member(log, "orders").read(1).records()
        assert record.message.type == record.headers["ce_type"] == "orders"
        assert record.message.source == record.headers["ce_source"]
        assert uuid.UUID((record.message.source or "").removeprefix("/outbox/"))
        assert dict(record.message.headers) == {}
        assert "ce_partitionkey" not in record.headers

    @pytest.mark.parametrize(
        "payload",
        [None, b"", b"\0", bytes(range(256)), b"\\x41", b"x" * 900_000],
        ids=["tombstone", "empty", "NUL", "every byte", "backslash", "huge"],
    )
    def test_a_payload_keeps_its_bytes(self, road: Road, log: Log, payload: bytes | None):
        road.put([a_message(payload=payload)])
        assert Member(log, "orders").read(1).payloads() == [payload]

    @pytest.mark.parametrize(
        "key", [None, "", "ключ", "\U0001f600", "e\u0301", "\u00e9", "a'b\"c\\d%s\t\n", "k" * 2000]
    )
    def test_a_key_keeps_its_characters(self, road: Road, log: Log, key: str | None):
        road.put([a_message(key=key)])
        (record,) = Member(log, "orders").read(1).records()
        assert record.message.key == key

    def test_headers_and_type_keep_their_characters(self, road: Road, log: Log):
        odd = {"имя": "значение", "quote'\"": "\\ %s\n", "": "empty name", "empty": "", "emoji": "\U0001f600"}
        road.put([a_message(headers=odd, type="Тип'\\%s")])
        (record,) = Member(log, "orders").read(1).records()
        assert dict(record.message.headers) == odd
        assert odd.items() <= record.headers.items()
        assert record.message.type == record.headers["ce_type"] == "Тип'\\%s"

    def test_records_of_one_key_keep_their_order_through_many_batches(self, road: Road, log: Log):
        keys = ["a", "b", "c", "d", "e"]
        for begin in (0, 500):
            road.put([a_message("orders", keys[n % 5], str(n).encode()) for n in range(begin, begin + 500)])
        member = Member(log, "orders").read(1000)
        for place, key in enumerate(keys):
            of_key = [record for record in member.records() if record.message.key == key]
            assert numbers(of_key) == list(range(place, 1000, 5))
            assert len({record.partition for record in of_key}) == 1
            sequences = [record.message.sequence or 0 for record in of_key]
            assert sequences == sorted(set(sequences))

    def test_messages_without_a_key_spread_over_the_partitions(self, road: Road, log: Log):
        road.put(numbered(200, key=None))
        member = Member(log, "orders").read(200)
        assert len({record.partition for record in member.records()}) == PARTITIONS

    def test_batches_are_unbroken_runs(self, road: Road, log: Log):
        road.put(numbered(1200))
        member = Member(log, "orders").read(1200)
        assert len(member.batches) > 1
        expected = 0
        for batch in member.batches:
            assert batch.begin == expected
            offsets = [record.offset for record in batch.records]
            assert offsets == sorted(set(offsets))
            # One without records only moves the end, behind a transaction's marker.
            assert batch.end > batch.begin
            assert not offsets or (batch.begin <= offsets[0] and offsets[-1] < batch.end)
            assert {record.partition for record in batch.records} <= {batch.partition}
            expected = batch.end

    def test_offsets_have_no_holes(self, road: Road, log: Log):
        if not road.dense:
            pytest.skip("this log's offsets may have holes")
        road.put(numbered(20, key=None))
        road.put(numbered(20, key=None))
        member = Member(log, "orders").read(40)
        for partition in member.consumer.assignment() or ():
            assert [record.offset for record in member.of(partition)] == list(range(len(member.of(partition))))

    def test_a_topic_of_others_is_not_read(self, road: Road, log: Log):
        road.put([*numbered(3), *numbered(3, topic="payments"), *numbered(2, begin=3)])
        assert numbers(Member(log, "orders").read(5).records()) == [0, 1, 2, 3, 4]
        assert numbers(Member(log, "payments", group="h").read(3).records()) == [0, 1, 2]

    def test_one_member_reads_several_topics(self, road: Road, log: Log):
        road.put([*numbered(3), *numbered(3, topic="payments")])
        member = Member(log, "orders", "payments").read(6)
        assert {record.message.topic for record in member.records()} == {"orders", "payments"}
        assert all(record.message.topic == record.partition.topic for record in member.records())

    def test_bounds_say_what_is_held(self, road: Road, log: Log):
        road.put(numbered(5))
        bounds = log.partitions(["orders", "nothing"])
        assert sorted(partition.number for partition in bounds) == list(range(PARTITIONS))
        assert {partition.topic for partition in bounds} == {"orders"}
        assert len({partition.incarnation for partition in bounds}) == 1
        *others, held = sorted(bounds.values())
        assert others == [Bounds(Offset(0), Offset(0))] * (PARTITIONS - 1)
        assert held == Bounds(Offset(0), Offset(5)) or (not road.dense and held.first == 0 and held.end > 5)
        member = Member(log, "orders").joined()
        assert member.consumer.bounds(list(bounds)) == bounds
        road.put(numbered(2))
        end = max(held.end for held in member.consumer.bounds(list(bounds)).values())
        assert end == 7 or (not road.dense and end >= held.end + 2)

    def test_seeking_back_replays_and_forward_skips(self, road: Road, log: Log):
        if not log.capabilities.replayable:
            pytest.skip("this log is not replayable")
        road.put(numbered(10))
        member = Member(log, "orders").read(10)
        partition = member.records()[0].partition
        member.batches.clear()
        member.consumer.seek(partition, Offset(4))
        assert numbers(member.read(6).records()) == [4, 5, 6, 7, 8, 9]
        assert member.batches[0].begin == 4
        member.batches.clear()
        road.put(numbered(5, begin=10))
        # Where it stands after one hole, if there are holes.
        behind = Offset(12 if road.dense else 13)
        member.consumer.seek(partition, behind)
        assert numbers(member.read(3).records()) == [12, 13, 14]
        assert member.batches[0].begin == behind

    def test_what_was_read_ahead_is_dropped_by_a_seek(self, road: Road, log: Log):
        road.put(numbered(1500))
        member = Member(log, "orders")
        member.until(lambda: bool(member.batches), "a first batch")
        (first,) = member.batches
        assert first.end < 1500
        member.batches.clear()
        member.consumer.seek(first.partition, Offset(2))
        member.until(lambda: bool(member.batches), "a batch after the seek")
        assert member.batches[0].begin == 2
        assert numbers(member.read(1498).records()) == list(range(2, 1500))

    def test_a_seek_to_the_end_leaves_only_what_is_new(self, road: Road, log: Log):
        road.put(numbered(5))
        member = Member(log, "orders").read(5)
        partition = member.records()[0].partition
        member.batches.clear()
        member.consumer.seek(partition, Offset(5))
        road.put(numbered(1, begin=5))
        assert numbers(member.read(1).records()) == [5]

    def test_a_paused_partition_rests_while_the_others_go_on(self, road: Road, log: Log):
        road.put(numbered(3))
        member = Member(log, "orders").read(3)
        rests = member.records()[0].partition
        member.consumer.pause(rests)
        member.consumer.pause(rests)
        road.put([*numbered(600, begin=3), *numbered(100, key=None)])
        ends = {partition: held.end for partition, held in log.partitions(["orders"]).items() if partition != rests}
        # Each has one hole, if there are holes: all were put in one go.
        others = sum(ends.values()) - (0 if road.dense else len(ends))
        member.until(lambda: len(member.records()) - len(member.of(rests)) == others, "the other partitions")
        for _ in range(5):
            member.poll()
        assert numbers(member.of(rests)) == [0, 1, 2]
        assert rests in (member.consumer.assignment() or ())
        member.consumer.resume(rests)
        member.consumer.resume(rests)
        member.read(703)
        assert numbers([record for record in member.of(rests) if record.message.key]) == list(range(603))

    def test_a_seek_in_a_pause_counts_after_it(self, road: Road, log: Log):
        road.put(numbered(6))
        member = Member(log, "orders").read(6)
        partition = member.records()[0].partition
        member.batches.clear()
        member.consumer.pause(partition)
        member.consumer.seek(partition, Offset(3))
        assert member.poll() is None
        member.consumer.resume(partition)
        assert numbers(member.read(3).records()) == [3, 4, 5]

    def test_a_poll_that_waits_is_given_what_arrives(self, road: Road, log: Log):
        road.put(numbered(1))
        member = Member(log, "orders").read(1)
        assert member.poll() is None
        road.put(numbered(1, begin=1))
        member.until(lambda: len(member.records()) == 2, "the new record")
        assert numbers(member.records()) == [0, 1]

    def test_closing_twice_does_no_harm(self, road: Road, log: Log):
        road.put(numbered(1))
        never_polled = Member(log, "orders")
        never_polled.consumer.close()
        member = Member(log, "orders").read(1)
        member.consumer.close()
        member.consumer.close()
        other = road.open()
        other.close()
        other.close()
        assert numbers(Member(log, "orders").read(1).records()) == [0]
