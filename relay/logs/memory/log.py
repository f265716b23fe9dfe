"""The log in memory itself, and a relay's hand on it."""

import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from urllib.parse import parse_qs, unquote, urlsplit

from outbox.errors import ConfigurationError, Fenced, Permanent, Retryable
from outbox.message import Entry, Offset
from relay.logs.cloudevents import are_texts, resolved, wire_headers
from relay.logs.contract import (
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
from relay.logs.memory.consumer import MemoryConsumer
from relay.logs.memory.store import Store
from relay.logs.partition import partition_of

PARTITIONS = 8
TAIL_WAIT_SECONDS = 0.1

_stores: dict[str, Store] = {}
_stores_lock = threading.Lock()


def open_memory(url: str, options: LogOptions) -> "MemoryLog":  # noqa: ARG001 - the shape of every adapter's door
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
        return MemoryLog(_stores.setdefault(name, Store()), partitions)


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

    def __init__(self, store: Store, partitions: int) -> None:
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
                alive = next(iter(found.members))
                raise Permanent(f"group {group!r} is alive: {alive} is a member of it; stop it first")
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

    def __init__(self, store: Store, partitions: int, identity: ProducerIdentity) -> None:
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
