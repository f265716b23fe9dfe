"""A group member's hand on the built-in log: it reads the partitions that are its own, and shares them with the others.

    poll:  be a member  ->  give up and take partitions  ->  report offsets  ->  read

Partitions that stay are read on while others come and go. What is handed out is decided by the membership's own clock:
a member that others may call gone hands out nothing, until a heartbeat says whether they did.
"""

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import TypeVar

from outbox.errors import Fenced, OutboxError, Permanent, Retryable, TimedOut
from outbox.journal import boot_seconds
from outbox.message import Offset
from relay.logs.assignment import assign, stated_topics
from relay.logs.builtin.group.membership import Membership
from relay.logs.builtin.group.store import Holding, Roll
from relay.logs.builtin.store import Store, Topic
from relay.logs.contract import Batch, Bounds, Listener, Partition, Record

T = TypeVar("T")

TOPICS_SECONDS = 1.0
TAKE_SECONDS = 0.1
COMMIT_SECONDS = 1.0
SHORTEST_WAIT_SECONDS = 0.002
LONGEST_WAIT_SECONDS = 0.05
BATCH_RECORDS = 500
BATCH_BYTES = 4_000_000
_NOBODY = Roll(0, {})


class BuiltinConsumer:
    """Polls the tables; see `Consumer` for what each method promises.

    Args:
        store: opens a connection to topics and records.
        join: makes a membership for these topics; not joined yet.
        group: the group's name.
        topics: what the member states.
        listener: told what comes and goes.

    Raises:
        ConfigurationError: it states no topics.
    """

    def __init__(
        self,
        store: Callable[[], Store],
        join: Callable[[tuple[str, ...]], Membership],
        group: str,
        topics: Sequence[str],
        listener: Listener,
    ) -> None:
        self._open = store
        self._join = join
        self._names = stated_topics(group, topics)
        self._listener = listener
        self._store: Store | None = None
        self._membership: Membership | None = None
        self._roll = _NOBODY
        self._topics: dict[str, Topic] = {}
        # What should be ours, and for which epoch that was reckoned.
        self._mine: set[Partition] = set()
        self._reckoned = 0
        # What the table says is ours; what of it the listener has begun is in `_reached`.
        self._holdings: dict[Partition, Holding] = {}
        self._reached: dict[Partition, Offset] = {}
        self._settled = self._is_stale = False
        self._waits_since: float | None = None
        self._ready: deque[Batch] = deque()
        self._paused: set[Partition] = set()
        self._reported: dict[Partition, Offset] = {}
        self._committed: dict[Partition, Offset] = {}
        self._due = {"topics": 0.0, "take": 0.0, "commit": 0.0}
        self._wait = SHORTEST_WAIT_SECONDS

    def poll(self, timeout_seconds: float) -> Batch | None:
        """Return the next run of records; see `Consumer.poll`."""
        deadline = boot_seconds() + timeout_seconds
        while True:
            batch = self._next()
            remaining = deadline - boot_seconds()
            if batch is not None or remaining <= 0:
                return batch
            time.sleep(min(self._wait, remaining))
            self._wait = min(self._wait * 1.3, LONGEST_WAIT_SECONDS)

    def _next(self) -> Batch | None:
        membership = self._joined()
        if not membership.is_certain():
            membership.refuse_silence()
            return None
        self._share(membership)
        self._flush_commits(membership)
        if not self._ready:
            self._read()
        if not self._ready or not membership.is_certain():
            return None
        self._wait = SHORTEST_WAIT_SECONDS
        return self._ready.popleft()

    def _joined(self) -> Membership:
        if self._membership is not None and self._membership.is_lost():
            self._lose()
        if self._membership is None:
            self._membership = self._join(self._names)
        self._membership.join()
        return self._membership

    def _ask(self, question: Callable[[Store], T]) -> T:
        """Ask the log's tables, over a new connection if need be."""
        try:
            if self._store is None:
                self._store = self._open()
            return question(self._store)
        except TimedOut:
            raise
        except (Retryable, Fenced):
            self._disconnect()
            raise

    def _disconnect(self) -> None:
        """Nothing read from a connection outlives it."""
        for batch in reversed(self._ready):
            self._reached[batch.partition] = batch.begin
        self._ready.clear()
        store, self._store = self._store, None
        if store is not None:
            with suppress(OutboxError):
                store.close()

    def _share(self, membership: Membership) -> None:
        """Have the partitions that are this member's by now, and no others."""
        now = boot_seconds()
        is_stale = self._is_stale or membership.epoch != self._roll.epoch
        is_complete = self._mine == self._reached.keys()
        if not is_stale and now < self._due["topics"] and (is_complete or now < self._due["take"]):
            return
        # What is not done to its end is done again.
        self._settled, self._is_stale = False, True
        if is_stale:
            self._roll = membership.roll()
        if membership.name not in self._roll.members:
            membership.lose()
            return
        if is_stale or now >= self._due["topics"]:
            self._reckon(membership.name)
        # First, since what is given up may take its time.
        self._take(membership)
        gone = [partition for partition in self._holdings if partition not in self._mine]
        self._give_up(membership, gone)
        self._begin()
        # The listener may have taken its time, and others have left meanwhile.
        self._is_stale = bool(gone)
        self._settled = not gone and self._has_settled(membership)

    def _has_settled(self, membership: Membership) -> bool:
        """Return whether all is here that should be, or what is not counts as another's who does not give it up."""
        now = boot_seconds()
        if self._mine == self._reached.keys():
            self._waits_since = None
            return True
        self._waits_since = now if self._waits_since is None else self._waits_since
        return now - self._waits_since > membership.pulse.gone_seconds

    def _reckon(self, member: str) -> None:
        """Find out which partitions should be this member's."""
        # The topics of all members: what the others have counts for the shares.
        names = {name for stated in self._roll.members.values() for name in stated}
        topics = self._ask(lambda store: store.topics(sorted(names)))
        if topics != self._topics or self._reckoned != self._roll.epoch:
            made = sorted(topics.values(), key=lambda topic: topic.number)
            owners = assign(self._roll.members, [topic.parts() for topic in made])
            self._mine = {partition for partition, owner in owners.items() if owner == member}
            self._topics, self._reckoned = topics, self._roll.epoch
        self._due["topics"] = boot_seconds() + TOPICS_SECONDS

    def _give_up(self, membership: Membership, partitions: Sequence[Partition]) -> None:
        if not partitions:
            return
        self._listener.revoked(partitions)
        self._stop_reading(partitions)
        gone = {partition: self._holdings[partition] for partition in partitions}
        membership.do(lambda group: group.give_up(membership.name, gone, self._reported))
        self._let_go(partitions)

    def _take(self, membership: Membership) -> None:
        wanted = {part: self._topics[part.topic] for part in sorted(self._mine) if part not in self._holdings}
        if not wanted:
            return
        roll = self._roll
        taken = membership.do(lambda group: group.take(membership.name, roll, wanted))
        self._holdings |= {part: Holding(wanted[part], roll.epoch) for part in sorted(taken)}
        self._due["take"] = boot_seconds() + TAKE_SECONDS

    def _begin(self) -> None:
        """Ask the listener where to begin; again, when it could not say."""
        new = [partition for partition in self._holdings if partition not in self._reached]
        if new:
            self._reached |= self._listener.assigned(new)

    def _read(self) -> None:
        wanted = [
            (part, self._holdings[part].topic, offset)
            for part, offset in self._reached.items()
            if part not in self._paused
        ]
        if not wanted:
            return
        most_bytes = max(1, BATCH_BYTES // len(wanted))
        found = self._ask(lambda store: store.read(wanted, most_records=BATCH_RECORDS, most_bytes=most_bytes))
        for part, records in found.items():
            begin = self._reached[part]
            _refuse_gap(part, begin, records)
            end = Offset(records[-1].offset + 1)
            self._ready.append(Batch(part, begin, end, records))
            self._reached[part] = end

    def _flush_commits(self, membership: Membership) -> None:
        if not self._reported or boot_seconds() < self._due["commit"]:
            return
        self._due["commit"] = boot_seconds() + COMMIT_SECONDS
        # A report can wait: on SQLite a slow handler in the same file keeps everybody else from writing.
        with suppress(TimedOut):
            self._commit_reported(membership)

    def _commit_reported(self, membership: Membership) -> None:
        known = {part: offset for part, offset in self._reported.items() if part in self._holdings}
        if known:
            ours = membership.do(lambda group: group.commit(membership.name, self._holdings, known))
            if len(ours) < len(known):
                membership.lose()
            self._committed |= known
        self._reported.clear()

    def _lose(self) -> None:
        """Others have called this member gone: give all up, and be a new one. What is in hand proves its own claim."""
        membership, self._membership = self._membership, None
        self._settled, self._roll, self._mine, self._waits_since = False, _NOBODY, set(), None
        if membership is not None:
            membership.end(leave=False)
        held = list(self._holdings)
        self._stop_reading(held)
        self._let_go(held)
        if held:
            self._listener.revoked(held)

    def _stop_reading(self, partitions: Sequence[Partition]) -> None:
        gone = set(partitions)
        self._ready = deque(batch for batch in self._ready if batch.partition not in gone)
        self._paused -= gone
        for partition in gone:
            self._reached.pop(partition, None)

    def _let_go(self, partitions: Sequence[Partition]) -> None:
        for partition in partitions:
            del self._holdings[partition]
            self._reported.pop(partition, None)
            self._committed.pop(partition, None)

    def assignment(self) -> frozenset[Partition] | None:
        """Return what is assigned now; see `Consumer.assignment`."""
        return frozenset(self._holdings) if self._settled else None

    def missing(self) -> frozenset[str]:
        """Return the topics that do not exist yet."""
        return frozenset(self._names) - self._topics.keys()

    def abandoned(self) -> frozenset[str]:
        """Return the group's topics that no member states; see `Consumer.abandoned`."""
        return self._roll.topics.difference(*self._roll.members.values())

    def bounds(self, partitions: Sequence[Partition]) -> Mapping[Partition, Bounds]:
        """Return what each partition holds now."""
        known = {part: self._holdings[part].topic for part in partitions if part in self._holdings}
        return self._ask(lambda store: store.bounds(known))

    def seek(self, partition: Partition, offset: Offset) -> None:
        """Read this partition from `offset` on; no effect on one that is not assigned."""
        if partition in self._reached:
            self._ready = deque(batch for batch in self._ready if batch.partition != partition)
            self._reached[partition] = offset

    def pause(self, partition: Partition) -> None:
        """Return no records of this partition until `resume`; no effect on one that is not assigned."""
        if partition not in self._reached:
            return
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
            if part in self._holdings and offset != self._committed.get(part):
                self._reported[part] = max(offset, self._reported.get(part, offset))

    def close(self) -> None:
        """Commit what was reported, leave the group, and let go."""
        membership, self._membership = self._membership, None
        if membership is not None:
            with suppress(OutboxError):
                if membership.is_certain():
                    self._commit_reported(membership)
            membership.end(leave=True)
        held = list(self._holdings)
        self._stop_reading(held)
        self._let_go(held)
        self._settled, self._roll, self._mine = False, _NOBODY, set()
        self._disconnect()


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
