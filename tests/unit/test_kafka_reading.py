"""What a Kafka consumer keeps of what it has read, without a broker."""

import struct
from collections.abc import Sequence
from typing import Any

import pytest
from confluent_kafka import KafkaError
from confluent_kafka import Message as Raw

from outbox.message import Offset
from relay.logs.contract import Batch, Partition
from relay.logs.kafka.asked import GroupMember, GroupState, places_in
from relay.logs.kafka.commits import Commits
from relay.logs.kafka.reading import BATCH_RECORDS, KEPT_RECORDS, Reading

A, B = Partition("a", "inc", 0), Partition("b", "inc", 3)


def raws(partition: Partition, offsets: Sequence[int], value: bytes = b"v") -> list[Raw]:
    return [Raw(partition.topic, partition.number, offset, None, value, None, None, (0, 0)) for offset in offsets]


def failed(partition: Partition, code: int, offset: int = 0) -> Raw:
    return Raw(partition.topic, partition.number, offset, None, None, None, KafkaError(code), (0, 0))


def end_at(partition: Partition, offset: int) -> Raw:
    return failed(partition, KafkaError._PARTITION_EOF, offset)


def reading(*partitions: Partition, begin: int = 0) -> Reading:
    made = Reading()
    for partition in partitions:
        made.begin(partition, Offset(begin))
    return made


def offsets(batch: Batch | None) -> list[int]:
    assert batch is not None
    return [record.offset for record in batch.records]


def test_batches_are_bounded_unbroken_runs_and_partitions_take_turns():
    read = reading(A, B)
    read.take([*raws(A, range(BATCH_RECORDS + 5)), *raws(B, [0, 7])])
    first, other, rest = read.next(), read.next(), read.next()
    assert first and other and rest
    assert (first.partition, first.begin, first.end) == (A, 0, BATCH_RECORDS)
    assert (other.partition, other.begin, other.end, offsets(other)) == (B, 0, 8, [0, 7])
    assert (rest.begin, rest.end) == (BATCH_RECORDS, BATCH_RECORDS + 5)
    assert read.next() is None


def test_a_batch_is_bounded_by_bytes_and_takes_at_least_one():
    read = reading(A)
    read.take(raws(A, range(3), value=b"x" * 5_000_000))
    assert [offsets(read.next()) for _ in range(3)] == [[0], [1], [2]]


def test_an_end_behind_the_last_record_belongs_to_the_batch_or_is_one_of_its_own():
    read = reading(A, begin=5)
    read.take([*raws(A, [6, 8]), end_at(A, 10)])
    batch = read.next()
    assert batch and (batch.begin, batch.end, offsets(batch)) == (5, 10, [6, 8])
    read.take([end_at(A, 10)])
    assert read.next() is None
    read.take([end_at(A, 12)])
    assert read.next() == Batch(A, Offset(10), Offset(12), [])


def test_what_was_read_of_others_or_before_is_dropped():
    read = reading(A, begin=5)
    assert read.take([*raws(B, [0]), *raws(A, [3, 4, 5]), end_at(B, 9)]) == []
    assert offsets(read.next()) == [5]
    read.end([A])
    read.take(raws(A, [6]))
    assert read.next() is None
    assert read.partitions == frozenset()


def test_errors_are_given_back():
    read = reading(A)
    error = failed(A, KafkaError.TOPIC_AUTHORIZATION_FAILED)
    assert read.take([*raws(A, [0]), error]) == [error]
    assert offsets(read.next()) == [0]


def test_an_earlier_incarnation_is_another_partition():
    read = reading(A)
    earlier = A._replace(incarnation="before")
    assert read.has(A)
    assert not read.has(earlier)
    read.end([earlier])
    read.pause(earlier)
    assert read.partitions == {A}
    assert not read.all_paused


def test_a_seek_forgets_what_was_read_and_why_it_could_not_be():
    read = reading(A)
    read.take(raws(A, range(10)))
    read.refuse(("a", 0), "lost")
    assert read.refusal == "lost"
    read.seek(A, Offset(4))
    assert (read.next(), read.refusal) == (None, None)
    read.take(raws(A, [4]))
    assert read.next() == Batch(A, Offset(4), Offset(5), read_records(A, [4]))


def read_records(partition: Partition, wanted: Sequence[int]) -> list[Any]:
    other = reading(partition, begin=wanted[0])
    other.take(raws(partition, wanted))
    batch = other.next()
    assert batch is not None
    return list(batch.records)


def test_a_paused_partition_is_kept_and_rests_only_when_much_is():
    read = reading(A, B)
    read.pause(A)
    read.take([*raws(A, range(10)), *raws(B, [0])])
    assert offsets(read.next()) == [0]
    assert (read.next(), read.to_rest(), read.to_go_on()) == (None, [], [])
    read.take(raws(A, range(10, KEPT_RECORDS)))
    assert (read.to_rest(), read.to_rest()) == ([("a", 0)], [])
    read.resume(A)
    assert read.to_go_on() == []
    found = []
    while (batch := read.next()) is not None:
        found += offsets(batch)
    assert found == list(range(KEPT_RECORDS))
    assert (read.to_go_on(), read.to_go_on()) == ([("a", 0)], [])


def test_much_is_by_bytes_too():
    read = reading(A)
    read.pause(A)
    assert read.all_paused
    read.take(raws(A, range(20), value=b"x" * 900_000))
    assert read.to_rest() == [("a", 0)]


def assignment(*topics: tuple[str, list[int]]) -> bytes:
    found = struct.pack(">hi", 0, len(topics))
    for name, numbers in topics:
        found += struct.pack(f">h{len(name)}si{len(numbers)}i", len(name), name.encode(), len(numbers), *numbers)
    return found + struct.pack(">i", 0)


def test_an_assignment_is_read_and_anything_else_is_nothing():
    written = assignment(("orders", [0, 3]), ("p", [1]))
    assert places_in(written) == {("orders", 0), ("orders", 3), ("p", 1)}
    assert places_in(assignment()) == frozenset()
    for length in range(len(written) - 4):
        places_in(written[:length])
    assert places_in(b"") == places_in(b"\xff" * 50) == frozenset()


def test_a_groups_shares():
    one = GroupMember("1", "c", "h", frozenset({("a", 0)}))
    two = GroupMember("2", "c", "h", frozenset({("a", 1)}))
    group = GroupState(is_stable=True, assignor="x", members=(one, two))
    assert group.places == {("a", 0), ("a", 1)}
    assert group.places_of("2") == {("a", 1)}
    assert group.places_of("3") is None
    assert GroupState().places == frozenset()


class Broker:
    """What commits need of a membership."""

    def __init__(self, committed: dict[Any, Any]) -> None:
        self.held = committed
        self.asked: list[Any] = []
        self.sent: list[Any] = []
        self.done: dict[Any, Any] = {}

    def committed(self, places: Any, timeout_seconds: float) -> Any:
        self.asked.append(list(places))
        return {place: self.held[place] for place in places if place in self.held}

    def commit(self, offsets: Any, *, wait: bool) -> None:
        self.sent.append(dict(offsets))
        if wait:
            self.done = {place: offset for place, (offset, _) in offsets.items()}

    def acknowledged(self) -> Any:
        done, self.done = self.done, {}
        return done


@pytest.mark.parametrize(
    ("held", "sent"),
    [({}, True), ({("a", 0): (4, "inc")}, True), ({("a", 0): (5, "")}, False), ({("a", 0): (9, "before")}, True)],
)
def test_a_commit_never_goes_behind_what_the_group_had(held: dict[Any, Any], sent: bool):
    broker: Any = Broker(held)
    commits = Commits()
    commits.report({A: Offset(5)})
    commits.flush(broker, [A, B], wait=False)
    assert broker.sent == ([{("a", 0): (5, "inc")}] if sent else [])


def test_what_is_not_acknowledged_is_sent_again_and_what_is_known_costs_nothing():
    broker: Any = Broker({})
    commits = Commits()
    commits.report({A: Offset(5)})
    for _ in range(2):
        commits.flush(broker, [A], wait=False)
    assert broker.sent == [{("a", 0): (5, "inc")}] * 2
    broker.done = {("a", 0): 5}
    for offset in (5, 3):
        commits.report({A: Offset(offset)})
        commits.flush(broker, [A], wait=True)
    assert (len(broker.sent), len(broker.asked)) == (2, 1)
    commits.report({A: Offset(6), B: Offset(1)})
    commits.forget([B])
    commits.flush(broker, [A, B], wait=True)
    assert broker.sent[2:] == [{("a", 0): (6, "inc")}]
