"""A group member's hand on a log in memory."""

import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence

from outbox.message import Offset
from relay.logs.assignment import assign, stated_topics
from relay.logs.contract import Batch, Bounds, Listener, Partition
from relay.logs.memory.store import Group, Store

BATCH_RECORDS = 500
GIVEN_UP_SECONDS = 1.0
"""What another member has not given up for so long counts as its own."""


class MemoryConsumer:
    """A group member's hand on a log in memory."""

    def __init__(self, store: Store, group: str, topics: Sequence[str], listener: Listener) -> None:
        self._store = store
        self._group = group
        self._topics = stated_topics(group, topics)
        self._listener = listener
        self._member: str | None = None
        self._closed = False
        self._positions: dict[Partition, Offset] = {}
        self._turns: deque[Partition] = deque()
        self._paused: set[Partition] = set()
        # As of the last poll, all three: somebody who compares them must not find a topic or partition in none.
        self._missing = frozenset(self._topics)
        self._abandoned: frozenset[str] = frozenset()
        self._settled = False
        self._waits_since: float | None = None

    def poll(self, timeout_seconds: float) -> Batch | None:
        """Return the next run of records of one partition; partitions take turns."""
        if self._closed:
            raise RuntimeError("this consumer is closed")
        deadline = time.monotonic() + timeout_seconds
        while True:
            self._share()
            with self._store.changed:
                batch = self._next()
                if batch is not None:
                    return batch
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    return None
                if not self._has_something_to_do():
                    self._store.changed.wait(remaining)

    def assignment(self) -> frozenset[Partition] | None:
        """Return what is assigned; None while others have yet to give up what is to be this member's."""
        return frozenset(self._positions) if self._settled else None

    def missing(self) -> frozenset[str]:
        """Return the topics that did not exist at the last poll."""
        return self._missing

    def abandoned(self) -> frozenset[str]:
        """Return the topics of which the group had partitions, and that no member stated at the last poll."""
        return self._abandoned

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
        """Report how far the group has come; only the owner's word counts, and only forward."""
        with self._store.changed:
            group = self._members()
            for partition, offset in offsets.items():
                if self._member is not None and group.owners.get(partition) == self._member:
                    group.committed[partition] = max(offset, group.committed.get(partition, Offset(0)))

    def close(self) -> None:
        """Leave the group; the others take over at once. Again: no effect."""
        self._closed = True
        with self._store.changed:
            group, member = self._members(), self._member
            if member is not None:
                del group.members[member]
                self._member = None
                self._let_go([partition for partition, owner in group.owners.items() if owner == member])
            self._settled = False

    def _members(self) -> Group:
        return self._store.groups.setdefault(self._group, Group())

    def _share(self) -> None:
        """Have the partitions that are this member's by now, and no others."""
        with self._store.changed:
            mine = self._look()
            gone = [partition for partition in self._positions if partition not in mine]
        # Not under the lock: the listener may ask the log, or a database that does not answer.
        if gone:
            self._listener.revoked(gone)
        with self._store.changed:
            self._let_go(gone)
            new = self._take(mine)
        if new:
            begins = self._listener.assigned(new)
            with self._store.changed:
                self._positions |= begins
                self._turns.extend(new)
        self._settled = self._has_settled(mine)

    def _has_settled(self, mine: set[Partition]) -> bool:
        """Return whether all is here that should be, or what is not counts as another's who does not give it up."""
        now = time.monotonic()
        if mine == self._positions.keys():
            self._waits_since = None
            return True
        self._waits_since = now if self._waits_since is None else self._waits_since
        return now - self._waits_since > GIVEN_UP_SECONDS

    def _look(self) -> set[Partition]:
        """Be a member; return the partitions that should be its own."""
        group = self._members()
        if self._member is None:
            self._member = f"{threading.current_thread().name} (member {next(self._store.joined)})"
            group.members[self._member] = frozenset(self._topics)
            self._store.changed.notify_all()
        self._missing = frozenset(self._topics) - self._store.topics.keys()
        read = {partition.topic for partition in group.owners}
        self._abandoned = frozenset(read.difference(*group.members.values()))
        self._settled = False
        return self._mine()

    def _mine(self) -> set[Partition]:
        owners = assign(self._members().members, self._store.topics.values())
        return {partition for partition, owner in owners.items() if owner == self._member}

    def _has_something_to_do(self) -> bool:
        """Return whether there is something to give up, or to take; not whether others have yet to give up."""
        mine, group = self._mine(), self._members()
        free = (part for part in mine if part not in self._positions and group.owners.get(part) not in group.members)
        return not self._positions.keys() <= mine or any(free)

    def _let_go(self, partitions: Sequence[Partition]) -> None:
        """Let others take these partitions."""
        owners = self._members().owners
        for partition in partitions:
            owners[partition] = ""
            self._positions.pop(partition, None)
            self._paused.discard(partition)
        self._turns = deque(partition for partition in self._turns if partition in self._positions)
        if partitions:
            self._store.changed.notify_all()

    def _take(self, mine: set[Partition]) -> list[Partition]:
        """Take what is free; return what the listener has to begin."""
        group = self._members()
        for partition in mine:
            if group.owners.get(partition) not in group.members:
                group.owners[partition] = self._member or ""
        return [
            partition
            for partition in sorted(mine)
            if group.owners[partition] == self._member and partition not in self._positions
        ]

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
