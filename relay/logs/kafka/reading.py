"""What a consumer has read and not handed out, partition by partition. No I/O in here.

librdkafka gives the records of all partitions by one queue, so those of a partition that is paused are kept here. What
it has read ahead of a partition that it pauses itself it throws away and reads again: that is asked of it only when
too much is kept.
"""

from collections import deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from confluent_kafka import KafkaError
from confluent_kafka import Message as Raw

from outbox.message import Offset
from relay.logs.contract import Batch, Partition, Record
from relay.logs.kafka.asked import Place
from relay.logs.kafka.records import record_of

BATCH_RECORDS = 500
BATCH_BYTES = 4_000_000
KEPT_RECORDS = 2_000
KEPT_BYTES = 16_000_000
"""So much is kept of partitions that are paused, of all of them together."""
RECORD_BYTES = 500
"""What a record takes in memory beside its payload."""


@dataclass(slots=True)
class _Lane:
    partition: Partition
    reached: Offset
    end: Offset
    ahead: deque[Raw] = field(default_factory=deque)
    bytes: int = 0
    paused: bool = False
    rests: bool = False
    refusal: str | None = None

    def clear(self, offset: Offset) -> None:
        self.ahead.clear()
        self.bytes, self.refusal, self.rests = 0, None, False
        self.reached = self.end = offset


class Reading:
    """The partitions that are read, each from where it was begun."""

    def __init__(self) -> None:
        self._lanes: dict[Place, _Lane] = {}
        self._turns: deque[_Lane] = deque()

    @property
    def partitions(self) -> frozenset[Partition]:
        """Which partitions are read."""
        return frozenset(lane.partition for lane in self._lanes.values())

    @property
    def all_paused(self) -> bool:
        """Whether no record that comes could be handed out."""
        return bool(self._lanes) and all(lane.paused for lane in self._lanes.values())

    @property
    def refusal(self) -> str | None:
        """Why a partition cannot be read on; None while all can."""
        return next((lane.refusal for lane in self._lanes.values() if lane.refusal), None)

    def find(self, place: Place) -> Partition | None:
        """Return the partition that is read there."""
        lane = self._lanes.get(place)
        return None if lane is None else lane.partition

    def has(self, partition: Partition) -> bool:
        """Return whether this partition is read; one of an earlier incarnation is not."""
        return self.find(place_of(partition)) == partition

    def end_of(self, place: Place) -> Offset:
        """Return up to where it was read."""
        return self._lanes[place].end

    def begin(self, partition: Partition, offset: Offset) -> None:
        """Read this partition, from there on."""
        lane = _Lane(partition, offset, offset)
        self._lanes[place_of(partition)] = lane
        self._turns.append(lane)

    def end(self, partitions: Iterable[Partition]) -> None:
        """Forget these partitions."""
        for partition in partitions:
            if self.has(partition):
                self._turns.remove(self._lanes.pop(place_of(partition)))

    def seek(self, partition: Partition, offset: Offset) -> None:
        """Go on from there; what was read is forgotten, and it does not rest."""
        self._lanes[place_of(partition)].clear(offset)

    def refuse(self, place: Place, words: str) -> None:
        """Note why this partition cannot be read on; until it is sought or ended."""
        self._lanes[place].refusal = words

    def pause(self, partition: Partition) -> None:
        """Hand nothing of it out."""
        if self.has(partition):
            self._lanes[place_of(partition)].paused = True

    def resume(self, partition: Partition) -> None:
        """Hand its records out again."""
        if self.has(partition):
            self._lanes[place_of(partition)].paused = False

    def take(self, raws: Iterable[Raw]) -> list[Raw]:
        """Keep what came; return the errors, but for the end of a partition, which is how far it was read."""
        errors = []
        lanes = self._lanes
        for raw in raws:
            error = raw.error()
            place = (raw.topic() or "", raw.partition() or 0)
            if error is None:
                lane = lanes.get(place)
                offset = raw.offset() or 0
                if lane is not None and offset >= lane.end:
                    lane.ahead.append(raw)
                    lane.bytes += len(raw) + RECORD_BYTES
                    lane.end = Offset(offset + 1)
            elif error.code() == KafkaError._PARTITION_EOF:  # noqa: SLF001 - librdkafka's own codes are named so
                lane = lanes.get(place)
                if lane is not None:
                    lane.end = max(lane.end, Offset(raw.offset() or 0))
            else:
                errors.append(raw)
        return errors

    def next(self) -> Batch | None:
        """Return the next batch; partitions take turns.

        An end without records moves whoever reads behind the holes that a log has: a transaction's own marks, and what
        was aborted or compacted.
        """
        for _ in range(len(self._turns)):
            lane = self._turns[0]
            self._turns.rotate(-1)
            if lane.end > lane.reached and not lane.paused:
                return _batch(lane)
        return None

    def to_rest(self) -> list[Place]:
        """Return the partitions that nothing is to be read ahead of, from now on."""
        most = max(BATCH_BYTES // 8, KEPT_BYTES // len(self._lanes)) if self._lanes else 0
        found = [
            place
            for place, lane in self._lanes.items()
            if lane.paused and not lane.rests and (len(lane.ahead) >= KEPT_RECORDS or lane.bytes >= most)
        ]
        self._set_rests(found, rests=True)
        return found

    def to_go_on(self) -> list[Place]:
        """Return the partitions that are to be read ahead again: what is kept of them is about to be used up."""
        found = [
            place
            for place, lane in self._lanes.items()
            if lane.rests and not lane.paused and len(lane.ahead) <= BATCH_RECORDS
        ]
        self._set_rests(found, rests=False)
        return found

    def _set_rests(self, places: Collection[Place], *, rests: bool) -> None:
        for place in places:
            self._lanes[place].rests = rests


def place_of(partition: Partition) -> Place:
    """Return how Kafka names a partition."""
    return partition.topic, partition.number


def _batch(lane: _Lane) -> Batch:
    begin, partition, ahead = lane.reached, lane.partition, lane.ahead
    records: list[Record] = []
    size = 0
    while ahead and len(records) < BATCH_RECORDS and size < BATCH_BYTES:
        # One by one: kept for the whole batch, their lists of headers would be the garbage collector's main work.
        raw = ahead.popleft()
        size += len(raw) + RECORD_BYTES
        records.append(record_of(partition, raw))
    lane.bytes -= size
    end = Offset(records[-1].offset + 1) if ahead else lane.end
    lane.reached = end
    return Batch(partition, begin, end, records)
