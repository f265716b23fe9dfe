"""A group member's hand on the built-in log: one member is active at a time, by the lease in the group's journal."""

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from uuid import uuid4

from outbox.errors import Fenced, OutboxError, Permanent, Retryable
from outbox.journal import Lease, boot_seconds
from outbox.message import Offset
from relay.logs.builtin.store import Store, Topic
from relay.logs.contract import Batch, Bounds, Listener, Partition, Record

LEASE_SECONDS = 10.0
RENEW_SECONDS = 1.0
TAKE_SECONDS = 1.0
TOPICS_SECONDS = 1.0
COMMIT_SECONDS = 1.0
PRUNE_STEPS = 1_000
SHORTEST_WAIT_SECONDS = 0.002
LONGEST_WAIT_SECONDS = 0.05
BATCH_RECORDS = 500
BATCH_BYTES = 4_000_000


class BuiltinConsumer:
    """Polls the tables; see `Consumer` for what each method promises."""

    def __init__(self, store: Callable[[], Store], group: str, topics: Sequence[str], listener: Listener) -> None:
        self._open = store
        self._group = group
        self._names = sorted(set(topics))
        self._listener = listener
        self._owner = f"{group}-{uuid4()}"
        self._store: Store | None = None
        self._lease: Lease | None = None
        self._active = False
        self._holder: str | None = None
        self._looked = False
        self._topics: dict[Partition, Topic] = {}
        self._missing: frozenset[str] = frozenset(topics)
        self._reached: dict[Partition, Offset] = {}
        self._ready: deque[Batch] = deque()
        self._paused: set[Partition] = set()
        self._reported: dict[Partition, Offset] = {}
        self._due = {"lease": 0.0, "topics": 0.0, "commit": 0.0}
        self._pruned = 0
        self._wait = SHORTEST_WAIT_SECONDS

    def poll(self, timeout_seconds: float) -> Batch | None:
        """Return the next run of records; see `Consumer.poll`."""
        deadline = boot_seconds() + timeout_seconds
        try:
            while True:
                batch = self._next()
                remaining = deadline - boot_seconds()
                if batch is not None or remaining <= 0:
                    return batch
                time.sleep(min(self._wait, remaining))
                self._wait = min(self._wait * 1.3, LONGEST_WAIT_SECONDS)
        except (Retryable, Fenced) as error:
            self._lose()
            if isinstance(error, Retryable):
                raise
            return None

    def _next(self) -> Batch | None:
        store = self._connected()
        self._keep_membership()
        if not self._active:
            return None
        self._find_topics(store)
        self._flush_commits(store)
        if not self._ready:
            self._read(store)
        if not self._ready:
            return None
        self._wait = SHORTEST_WAIT_SECONDS
        return self._ready.popleft()

    def _connected(self) -> Store:
        if self._store is None:
            self._store = self._open()
            self._lease = self._store.group_lease(self._group, self._owner, LEASE_SECONDS)
            self._due["lease"] = 0.0
        return self._store

    def _keep_membership(self) -> None:
        lease, now = self._lease, boot_seconds()
        if lease is None or (now < self._due["lease"] and not (self._active and lease.held.expired())):
            return
        if self._active:
            step = lease.advance().step
            self._due["lease"] = now + RENEW_SECONDS
            if step - self._pruned >= PRUNE_STEPS and self._store is not None:
                self._store.prune_group_lease(self._group, step)
                self._pruned = step
            return
        taken = lease.take()
        self._holder = taken.holder
        self._active = taken.held is not None
        self._looked = self._active or taken.holder is not None
        self._due["lease"] = now + (
            RENEW_SECONDS if self._active else min(TAKE_SECONDS, taken.remaining_seconds + 0.01)
        )

    def _find_topics(self, store: Store) -> None:
        if boot_seconds() < self._due["topics"]:
            return
        found = store.topics(self._names)
        self._missing = frozenset(self._names) - found.keys()
        parts = {part: topic for topic in found.values() for part in topic.parts()}
        gone = [part for part in self._topics if part not in parts]
        new = [part for part in parts if part not in self._topics]
        if gone:
            self._listener.revoked(gone)
            self._forget(gone)
        if new:
            self._topics |= {part: parts[part] for part in new}
            for part, offset in self._listener.assigned(new).items():
                self.seek(part, offset)
        self._due["topics"] = boot_seconds() + TOPICS_SECONDS

    def _read(self, store: Store) -> None:
        wanted = [
            (part, self._topics[part], offset) for part, offset in self._reached.items() if part not in self._paused
        ]
        if not wanted:
            return
        most_bytes = max(1, BATCH_BYTES // len(wanted))
        for part, records in store.read(wanted, most_records=BATCH_RECORDS, most_bytes=most_bytes).items():
            begin = self._reached[part]
            _refuse_gap(part, begin, records)
            end = Offset(records[-1].offset + 1)
            self._ready.append(Batch(part, begin, end, records))
            self._reached[part] = end

    def _flush_commits(self, store: Store) -> None:
        if not self._reported or boot_seconds() < self._due["commit"]:
            return
        self._commit_reported(store)
        self._due["commit"] = boot_seconds() + COMMIT_SECONDS

    def _commit_reported(self, store: Store) -> None:
        known = {part: offset for part, offset in self._reported.items() if part in self._topics}
        if known:
            store.commit(self._group, known, self._topics)
        self._reported.clear()

    def _lose(self) -> None:
        """Nothing read from a connection outlives it: give the partitions up and join again."""
        if self._topics:
            self._listener.revoked(list(self._topics))
        self._forget(list(self._topics))
        self._active, self._looked, self._holder = False, False, None
        self._due["topics"] = 0.0
        store, self._store, self._lease = self._store, None, None
        if store is not None:
            with suppress(OutboxError):
                store.close()

    def _forget(self, partitions: Sequence[Partition]) -> None:
        gone = set(partitions)
        self._ready = deque(batch for batch in self._ready if batch.partition not in gone)
        self._paused -= gone
        for part in gone:
            self._topics.pop(part, None)
            self._reached.pop(part, None)
            self._reported.pop(part, None)

    def assignment(self) -> frozenset[Partition] | None:
        """Return what is assigned now; see `Consumer.assignment`."""
        if not self._looked or (self._active and not self._due["topics"]):
            return None
        return frozenset(self._topics) if self._active else frozenset()

    def waits_for(self) -> str | None:
        """Return who holds the group's partitions."""
        return None if self._active else self._holder

    def missing(self) -> frozenset[str]:
        """Return the topics that do not exist yet."""
        return self._missing

    def bounds(self, partitions: Sequence[Partition]) -> Mapping[Partition, Bounds]:
        """Return what each partition holds now."""
        store = self._connected()
        return store.bounds({part: self._topics[part] for part in partitions if part in self._topics})

    def seek(self, partition: Partition, offset: Offset) -> None:
        """Read this partition from `offset` on."""
        self._ready = deque(batch for batch in self._ready if batch.partition != partition)
        self._reached[partition] = offset

    def pause(self, partition: Partition) -> None:
        """Return no records of this partition until `resume`."""
        dropped = [batch for batch in self._ready if batch.partition == partition]
        if dropped:
            self.seek(partition, dropped[0].begin)
        self._paused.add(partition)

    def resume(self, partition: Partition) -> None:
        """Return its records again."""
        self._paused.discard(partition)

    def commit(self, offsets: Mapping[Partition, Offset]) -> None:
        """Report how far the group has come."""
        for part, offset in offsets.items():
            self._reported[part] = max(offset, self._reported.get(part, offset))

    def close(self) -> None:
        """Commit what was reported, give the lease back, and let go."""
        store, lease = self._store, self._lease
        if store is None:
            return
        with suppress(OutboxError):
            self._commit_reported(store)
        if lease is not None and self._active:
            lease.release()
        self._active, self._store, self._lease = False, None, None
        self._forget(list(self._topics))
        store.close()


def _refuse_gap(partition: Partition, begin: Offset, records: Sequence[Record]) -> None:
    """Offsets are dense, so a gap means that records are gone which this group has not read."""
    expected = begin
    for record in records:
        if record.offset != expected:
            raise Permanent(
                f"the log has lost records of topic {partition.topic!r}, partition {partition.number}: offset"
                f" {expected} was to be read and {record.offset} is the next; restore them, or handle what is left with"
                " a group of another name"
            )
        expected = Offset(expected + 1)
