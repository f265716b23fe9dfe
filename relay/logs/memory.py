"""`memory://NAME?partitions=8`: a log inside one process, for tests. It lives as long as the process does.

All logs opened by one name are the same log. It is at-least-once: a relay that goes back to its checkpoint repeats
records. A group has one active member, the one that joined first; others stand by until it closes.
"""

import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from urllib.parse import parse_qs, unquote, urlsplit
from uuid import UUID, uuid4

from outbox.errors import ConfigurationError, Fenced, Permanent, Retryable
from outbox.message import Entry, Epoch, Offset
from relay.logs.cloudevents import are_texts, resolved, wire_headers
from relay.logs.contract import (
    Batch,
    Bounds,
    Capabilities,
    Failure,
    Listener,
    LogOptions,
    Partition,
    ProducerIdentity,
    Record,
    Settlement,
)
from relay.logs.partition import partition_of

PARTITIONS = 8
BATCH_RECORDS = 500
TAIL_WAIT_SECONDS = 0.1


@dataclass(slots=True)
class _Group:
    """A consumer group: who is in it, in the order of joining, and how far it has come."""

    members: list[str] = field(default_factory=list)
    committed: dict[Partition, Offset] = field(default_factory=dict)


class _Store:
    """What one log holds. Whoever touches it holds `changed`, which is notified of records and of members that left."""

    def __init__(self) -> None:
        self.id = uuid4()
        self.changed = threading.Condition()
        self.topics: dict[str, list[Partition]] = {}
        self.records: dict[Partition, list[Record]] = {}
        self.epochs: dict[tuple[UUID, UUID], Epoch] = {}
        self.groups: dict[str, _Group] = {}
        self.joined = count(1)

    def make_topic(self, topic: str, partitions: int) -> list[Partition]:
        incarnation = str(uuid4())
        self.topics[topic] = [Partition(topic, incarnation, number) for number in range(partitions)]
        self.records.update((partition, []) for partition in self.topics[topic])
        return self.topics[topic]

    def partitions(self, topics: Iterable[str]) -> list[Partition]:
        return [partition for topic in topics for partition in self.topics.get(topic, ())]

    def bounds(self, partitions: Iterable[Partition]) -> dict[Partition, Bounds]:
        return {
            partition: Bounds(Offset(0), Offset(len(self.records[partition])))
            for partition in partitions
            if partition in self.records
        }


_stores: dict[str, _Store] = {}
_stores_lock = threading.Lock()


def open(url: str, options: LogOptions) -> "MemoryLog":  # noqa: A001, ARG001 - the name and shape of every adapter's door
    """Open the log of that name; made by the first who names it.

    Raises:
        ConfigurationError: the URL has no name, or a setting that is unknown or no number.
    """
    parts = urlsplit(url)
    name = unquote(parts.netloc + parts.path)
    if not name:
        raise ConfigurationError("a log in memory needs a name: memory://NAME")
    partitions = _partitions(parts.query)
    with _stores_lock:
        return MemoryLog(_stores.setdefault(name, _Store()), partitions)


def _partitions(query: str) -> int:
    settings = parse_qs(query, keep_blank_values=True)
    unknown = sorted(settings.keys() - {"partitions"})
    if unknown:
        raise ConfigurationError(f"unknown setting {unknown[0]!r} of a log in memory: it has `partitions` alone")
    text = settings.get("partitions", [str(PARTITIONS)])[-1]
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise ConfigurationError(f"partitions={text!r} of a log in memory: write a whole number from 1 on")
    return int(text)


class MemoryLog:
    """A log in this process's memory; see the module. Safe to use from several threads."""

    def __init__(self, store: _Store, partitions: int) -> None:
        self._store = store
        self._partitions = partitions

    @property
    def capabilities(self) -> Capabilities:
        """Everything but exactly-once."""
        return Capabilities(fences=True)

    def check(self) -> None:
        """There is nothing that could be away."""

    def identity(self) -> str:
        """Return the log's uuid, made with it."""
        return str(self._store.id)

    def producer(self, identity: ProducerIdentity) -> "MemoryProducer":
        """Open a relay's hand; older epochs of the same registration are fenced from now on."""
        relay = (identity.installation, identity.incarnation)
        with self._store.changed:
            newest = self._store.epochs.get(relay, identity.epoch)
            self._store.epochs[relay] = max(newest, identity.epoch)
        return MemoryProducer(self._store, self._partitions, identity)

    def consumer(self, group: str, topics: Sequence[str], listener: Listener) -> "MemoryConsumer":
        """Open a group member's hand."""
        return MemoryConsumer(self._store, group, topics, listener)

    def committed(self, group: str) -> Mapping[Partition, Offset]:
        """Return the offsets that the group has reported."""
        with self._store.changed:
            found = self._store.groups.get(group)
            return dict(found.committed) if found else {}

    def forget(self, group: str) -> bool:
        """Let go of a group that has no member.

        Raises:
            Permanent: it has one.
        """
        with self._store.changed:
            found = self._store.groups.get(group)
            if found is not None and found.members:
                raise Permanent(f"group {group!r} is alive: {found.members[0]} is a member of it; stop it first")
            return self._store.groups.pop(group, None) is not None

    def partitions(self, topics: Sequence[str]) -> Mapping[Partition, Bounds]:
        """Return the partitions of those of the topics that exist, and what each holds."""
        with self._store.changed:
            return self._store.bounds(self._store.partitions(topics))

    def tail(self, topic: str, *, from_start: bool, follow: bool) -> Iterator[Record | None]:
        """Yield the topic's records without joining a group; with `follow`, None each tenth of a second without any."""
        # The bounds are those of the call, so they are taken here: a generator would take them when it is first asked.
        bounds = self.partitions([topic])
        begin = {partition: Offset(0) if from_start else held.end for partition, held in bounds.items()}
        if follow:
            return self._follow(topic, begin)
        return self._held({partition: (begin[partition], held.end) for partition, held in bounds.items()})

    def _held(self, ranges: Mapping[Partition, tuple[Offset, Offset]]) -> Iterator[Record | None]:
        for partition, (begin, end) in ranges.items():
            yield from self._store.records[partition][begin:end]

    def _follow(self, topic: str, positions: dict[Partition, Offset]) -> Iterator[Record | None]:
        while True:
            found: list[Record] = []
            with self._store.changed:
                for partition in self._store.partitions([topic]):
                    begin = positions.get(partition, Offset(0))
                    found += self._store.records[partition][begin:]
                    positions[partition] = Offset(len(self._store.records[partition]))
                if not found:
                    self._store.changed.wait(TAIL_WAIT_SECONDS)
            yield from found or (None,)

    def close(self) -> None:
        """Nothing is held by this hand; the log stays."""


class MemoryProducer:
    """A relay's hand on a log in memory."""

    def __init__(self, store: _Store, partitions: int, identity: ProducerIdentity) -> None:
        self._store = store
        self._partitions = partitions
        self._identity = identity
        self._settled: deque[Settlement] = deque()

    def produce(self, number: int, chunk: Sequence[Entry]) -> None:
        """Append the chunk up to its first entry at fault.

        Raises:
            Fenced: a newer epoch has opened its producer.
            Retryable: an earlier chunk has failed and its settlement was not fetched yet; nothing may pass it.
        """
        with self._store.changed:
            self._refuse_when_fenced()
            if any(settlement.failure for settlement in self._settled):
                raise Retryable(f"chunk {number} is not taken: a chunk before it failed")
            failure = None
            for entry in chunk:
                failure = _fault(entry)
                if failure is not None:
                    break
                self._append(entry)
            self._settled.append(Settlement(number, failure))
            self._store.changed.notify_all()

    def settle(self, timeout_seconds: float) -> Settlement | None:  # noqa: ARG002 - here the answer is there at once
        """Return the oldest answer, or None at once when there is none."""
        with self._store.changed:
            self._refuse_when_fenced()
            return self._settled.popleft() if self._settled else None

    def close(self) -> None:
        """Forget what was not settled."""
        self._settled.clear()

    def _refuse_when_fenced(self) -> None:
        newest = self._store.epochs[self._identity.installation, self._identity.incarnation]
        if newest > self._identity.epoch:
            name, own = self._identity.relay, self._identity.epoch
            raise Fenced(f"relay {name!r} produces with epoch {newest} by now; this one has {own}")

    def _append(self, entry: Entry) -> None:
        message = resolved(entry.message, self._identity.installation)
        partitions = self._store.topics.get(message.topic) or self._store.make_topic(message.topic, self._partitions)
        partition = partitions[partition_of(message.key, message.id, len(partitions))]
        records = self._store.records[partition]
        headers = wire_headers(message, self._identity.epoch)
        records.append(Record(partition, Offset(len(records)), message, headers))


def _fault(entry: Entry) -> Failure | None:
    """Return why an entry cannot be a record, if so. A plain-SQL writer may have stored any JSON as headers."""
    if not are_texts(entry.message.headers):
        return Failure(entry, "its headers are not an object of texts", permanent=True)
    return None


class MemoryConsumer:
    """A group member's hand on a log in memory."""

    def __init__(self, store: _Store, group: str, topics: Sequence[str], listener: Listener) -> None:
        self._store = store
        self._group = group
        self._topics = tuple(dict.fromkeys(topics))
        self._listener = listener
        self._member: str | None = None
        self._closed = False
        self._positions: dict[Partition, Offset] = {}
        self._turns: deque[Partition] = deque()
        self._paused: set[Partition] = set()
        # As of the last poll, all three: somebody who compares them must not find a topic or partition in none.
        self._missing: frozenset[str] = frozenset()
        self._waits_for: str | None = None
        self._settled = False

    def poll(self, timeout_seconds: float) -> Batch | None:
        """Return the next run of records of one partition; partitions take turns."""
        if self._closed:
            raise RuntimeError("this consumer is closed")
        deadline = time.monotonic() + timeout_seconds
        while True:
            with self._store.changed:
                new = self._join()
            if new:
                # Not under the lock: the listener may ask the log, or a database that does not answer.
                self._take(new)
            with self._store.changed:
                batch = self._next()
                if batch is not None:
                    return batch
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    return None
                if not self._unseen():
                    self._store.changed.wait(remaining)

    def assignment(self) -> frozenset[Partition] | None:
        """Return what is assigned; empty for a member that stands by; None before the listener was told."""
        return frozenset(self._positions) if self._settled else None

    def waits_for(self) -> str | None:
        """Return the member that was active at the last poll, when it was not this one."""
        return self._waits_for

    def missing(self) -> frozenset[str]:
        """Return the topics that did not exist at the last poll."""
        return self._missing

    def bounds(self, partitions: Sequence[Partition]) -> Mapping[Partition, Bounds]:
        """Return what each partition holds now."""
        with self._store.changed:
            return self._store.bounds(partitions)

    def seek(self, partition: Partition, offset: Offset) -> None:
        """Read this partition from `offset` on; no effect on one that is not assigned."""
        if partition in self._positions:
            self._positions[partition] = offset

    def pause(self, partition: Partition) -> None:
        """Return no records of this partition until `resume`; no effect on one that is not assigned."""
        if partition in self._positions:
            self._paused.add(partition)

    def resume(self, partition: Partition) -> None:
        """Return its records again."""
        self._paused.discard(partition)

    def commit(self, offsets: Mapping[Partition, Offset]) -> None:
        """Report how far the group has come; only the active member's word counts, and only forward."""
        with self._store.changed:
            if self._member is None or not self._is_active():
                return
            committed = self._store.groups[self._group].committed
            for partition, offset in offsets.items():
                committed[partition] = max(offset, committed.get(partition, Offset(0)))

    def close(self) -> None:
        """Leave the group; the next member takes over at once. Again: no effect."""
        self._closed = True
        with self._store.changed:
            if self._member is not None:
                self._members().remove(self._member)
                self._member = None
            self._positions.clear()
            self._turns.clear()
            self._store.changed.notify_all()

    def _members(self) -> list[str]:
        return self._store.groups.setdefault(self._group, _Group()).members

    def _is_active(self) -> bool:
        return self._members()[0] == self._member

    def _join(self) -> list[Partition]:
        """Be a member; return the partitions to take."""
        if self._member is None:
            self._member = f"{threading.current_thread().name} (member {next(self._store.joined)})"
            self._members().append(self._member)
        self._missing = frozenset(topic for topic in self._topics if topic not in self._store.topics)
        self._waits_for = None if self._is_active() else self._members()[0]
        new = self._unseen()
        self._settled = not new
        return new

    def _unseen(self) -> list[Partition]:
        """Return the partitions that this member should have and does not have yet."""
        if not self._is_active():
            return []
        return [partition for partition in self._store.partitions(self._topics) if partition not in self._positions]

    def _take(self, partitions: Sequence[Partition]) -> None:
        begins = self._listener.assigned(partitions)
        for partition in partitions:
            self._positions[partition] = begins[partition]
            self._turns.append(partition)
        self._settled = True

    def _next(self) -> Batch | None:
        for _ in range(len(self._turns)):
            partition = self._turns[0]
            self._turns.rotate(-1)
            begin = self._positions[partition]
            records = self._store.records[partition][begin : begin + BATCH_RECORDS]
            if records and partition not in self._paused:
                end = Offset(begin + len(records))
                self._positions[partition] = end
                return Batch(partition, begin, end, records)
        return None
