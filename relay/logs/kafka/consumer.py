"""A group member's hand on Kafka: it reads the partitions that the group gives it.

    poll:  begin what was given  ->  look at topics and group  ->  report offsets  ->  hand out what was read, or read

The group gives and takes partitions by their topic's name; we know a topic by its id, so that one that is deleted and
made anew is another: its partitions are given up and begun again.
"""

import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from datetime import datetime

from confluent_kafka import KafkaError
from confluent_kafka import Message as Raw

from outbox.errors import OutboxError, Permanent, Retryable, Unreachable
from outbox.journal import boot_seconds
from outbox.message import Offset
from relay.logs.assignment import stated_topics
from relay.logs.contract import Batch, Bounds, Listener, Partition
from relay.logs.kafka.address import Address
from relay.logs.kafka.asked import Place
from relay.logs.kafka.cluster import Cluster, Topic
from relay.logs.kafka.commits import Commits
from relay.logs.kafka.membership import DEFAULTS, Membership
from relay.logs.kafka.reading import Reading, place_of
from relay.logs.kafka.shares import Shares
from relay.logs.kafka.standing import Sight, Standing
from relay.logs.kafka.troubles import given_up, is_disagreement, judged, lost_records, name_taken

COMMIT_SECONDS = 1.0
SILENT_SECONDS = 0.5
"""How long connections that are lost may be so before it is said."""
SLICE_SECONDS = 0.1
HURRIED_SLICE_SECONDS = 0.01
PAUSED_SLICE_SECONDS = 0.05


class KafkaConsumer:
    """A member of a consumer group; see `Consumer` for what each method promises.

    Args:
        address: of the brokers.
        cluster: is asked about topics and the group.
        group: the group's name.
        topics: what the member states.
        listener: told what comes and goes.

    Raises:
        ConfigurationError: it states no topics.
    """

    def __init__(
        self, address: Address, cluster: Cluster, group: str, topics: Sequence[str], listener: Listener
    ) -> None:
        self._address = address
        self._cluster = cluster
        self._group = group
        self._names = stated_topics(group, topics)
        self._listener = listener
        self._standing = Standing(cluster, self._names)
        self._membership: Membership | None = None
        self._closed = False
        self._reading = Reading()
        self._commits = Commits()
        self._sight: Sight | None = None
        self._kept: BaseException | None = None
        self._down_since: float | None = None
        self._commit_due = 0.0
        timeout = address.settings.get("session.timeout.ms", DEFAULTS["session.timeout.ms"])
        self._shares = Shares(cluster, group, _seconds(timeout))

    def poll(self, timeout_seconds: float) -> Batch | None:
        """Return the next run of records; see `Consumer.poll`."""
        if self._closed:
            raise RuntimeError("this consumer is closed")
        deadline = boot_seconds() + timeout_seconds
        while True:
            remaining = deadline - boot_seconds()
            batch = self._next(max(0.0, remaining))
            if batch is not None or remaining <= 0:
                return batch

    def _next(self, timeout_seconds: float) -> Batch | None:
        membership = self._joined()
        self._raise_kept()
        self._look(membership)
        self._begin(membership)
        self._flush_commits(membership)
        batch = self._reading.next()
        if batch is None:
            self._read(membership, timeout_seconds)
            batch = self._reading.next()
        if batch is None:
            self._refuse(membership)
        return batch

    def _joined(self) -> Membership:
        if self._membership is None:
            self._membership = Membership(self._address, self._group, self._names, self._take_away)
            self._standing.hasten()
        return self._membership

    def _raise_kept(self) -> None:
        kept, self._kept = self._kept, None
        if kept is not None:
            raise kept

    # What comes and goes

    def _look(self, membership: Membership) -> None:
        """See what has become of the topics, when there is news of them, and whether we have what we are to have."""
        is_stale = self._sight is None or self._sight.changes != membership.changes
        hurry = is_stale or not self._shares.settled or self._down_since is not None
        sight = self._standing.look(membership.changes, hurry=hurry)
        if sight is not None:
            self._sight = sight
            membership.faults.forget()
            self._end_remade(membership, sight.topics)
        self._shares.judge(membership, self._sight, is_news=sight is not None)
        if self._shares.unlisted:
            self._shares.unlisted = False
            taken = name_taken(self._group, self._cluster)
            if taken is not None:
                raise taken

    def _begin(self, membership: Membership) -> None:
        """Ask the listener where to begin what was given; again, when it could not say."""
        waiting, sight = membership.waiting, self._sight
        if not waiting or sight is None or sight.changes != membership.changes:
            return
        new = [Partition(name, sight.topics[name].id, n) for name, n in waiting if name in sight.topics]
        if not new:
            return
        begins = self._listener.assigned(new)
        membership.begin({place_of(partition): offset for partition, offset in begins.items()})
        for partition, offset in begins.items():
            self._reading.begin(partition, offset)
        self._shares.judge(membership, sight, is_news=False)
        self._standing.hasten()

    def _take_away(self, places: Collection[Place], lost: bool) -> None:  # noqa: FBT001 - a callback's own shape
        """Give partitions up, from within a callback: what goes wrong is kept, since records would be lost with it."""
        gone = [partition for place in sorted(places) if (partition := self._reading.find(place)) is not None]
        self._shares.unsettle()
        try:
            self._give_up(gone, lost=lost)
        except BaseException as error:  # noqa: BLE001 - raised by the poll that it belongs to
            self._kept = error

    def _give_up(self, partitions: Sequence[Partition], *, lost: bool) -> None:
        if not partitions:
            return
        try:
            self._listener.revoked(partitions)
            if not lost and self._membership is not None:
                # A report: what does not arrive, the inbox knows by its claims.
                with suppress(OutboxError):
                    self._commits.flush(self._membership, partitions, wait=True)
        finally:
            self._reading.end(partitions)
            self._commits.forget(partitions)

    def _end_remade(self, membership: Membership, topics: Mapping[str, Topic]) -> None:
        """Give up the partitions of a topic that was deleted and made anew; they are begun again."""
        gone = [
            partition
            for partition in sorted(self._reading.partitions)
            if partition.topic in topics and topics[partition.topic].id != partition.incarnation
        ]
        if gone:
            membership.end([place_of(partition) for partition in gone])
            self._give_up(gone, lost=True)

    def _lose(self) -> None:
        """This membership has come to an end: give all up, and be a new member at the next poll."""
        membership, self._membership = self._membership, None
        self._sight = None
        self._shares.unsettle()
        if membership is not None:
            membership.close()
        self._give_up(sorted(self._reading.partitions), lost=True)

    # What is read

    def _read(self, membership: Membership, timeout_seconds: float) -> None:
        if self._reading.all_paused:
            # What came would only be kept: but polling goes on, as a member has to.
            time.sleep(min(timeout_seconds, PAUSED_SLICE_SECONDS))
            raws = membership.fetch(0, most=1)
        else:
            slice_seconds = SLICE_SECONDS if self._shares.settled else HURRIED_SLICE_SECONDS
            raws = membership.fetch(min(timeout_seconds, slice_seconds))
        errors = self._reading.take(raws)
        if len(errors) < len(raws):
            membership.faults.forget()
        membership.rest(self._reading.to_rest())
        membership.go_on(self._reading.to_go_on())
        self._raise_kept()
        for raw in errors:
            self._judge(membership, raw)

    def _judge(self, membership: Membership, raw: Raw) -> None:
        error = raw.error()
        if error is None:
            return
        place = (raw.topic() or "", raw.partition() or 0)
        if error.code() == KafkaError._AUTO_OFFSET_RESET:  # noqa: SLF001 - librdkafka's own codes are named so
            if self._reading.find(place) is not None:
                self._look_behind(membership, place)
            return
        if error.code() == KafkaError._FATAL:  # noqa: SLF001
            self._lose()
            raise given_up(error, self._group)
        if is_disagreement(error):
            trouble: OutboxError | None = name_taken(self._group, self._cluster)
        else:
            trouble = judged(error, f"reading for group {self._group!r}")
        if trouble is not None:
            raise trouble

    def _look_behind(self, membership: Membership, place: Place) -> None:
        """Find out why a partition cannot be read from where it is."""
        partition, offset = self._reading.find(place), self._reading.end_of(place)
        if partition is None:
            return
        topics = self._cluster.topics([partition.topic])
        if partition.topic not in topics:
            return
        self._end_remade(membership, topics)
        if not self._reading.has(partition):
            # What is known of the topics is of before.
            self._sight = None
            self._standing.hasten()
        else:
            held = self._cluster.bounds([partition])[partition]
            if held.first <= offset <= held.end:
                membership.seek(place, offset)
            else:
                self._reading.refuse(place, lost_records(partition, offset, held))

    def _refuse(self, membership: Membership) -> None:
        """Say what keeps us from reading on, if anything does."""
        if self._reading.refusal is not None:
            raise Permanent(self._reading.refusal)
        if not membership.faults.down:
            self._down_since = None
        elif self._down_since is None:
            self._down_since = boot_seconds()
        elif boot_seconds() - self._down_since > SILENT_SECONDS:
            words = membership.faults.words
            raise Unreachable(f"reading for group {self._group!r}: no broker answers{f'; {words}' if words else ''}")

    # What is reported

    def _flush_commits(self, membership: Membership) -> None:
        # A commit that waits for a broker to come back would be waited for by `close`.
        if boot_seconds() < self._commit_due or membership.faults.down:
            return
        self._commit_due = boot_seconds() + COMMIT_SECONDS
        # A report can wait.
        with suppress(Retryable):
            self._commits.flush(membership, self._reading.partitions, wait=False)

    def commit(self, offsets: Mapping[Partition, Offset]) -> None:
        """Report how far the group has come."""
        self._commits.report({part: offset for part, offset in offsets.items() if self._reading.has(part)})

    def assignment(self) -> frozenset[Partition] | None:
        """Return what is assigned; see `Consumer.assignment`."""
        return self._reading.partitions if self._shares.settled else None

    def missing(self) -> frozenset[str]:
        """Return the topics that do not exist yet."""
        return frozenset(self._names) - (self._sight.topics.keys() if self._sight else frozenset())

    def abandoned(self) -> frozenset[str]:
        """Return the group's topics that no member states; see `Consumer.abandoned`."""
        return self._shares.abandoned

    def bounds(self, partitions: Sequence[Partition]) -> Mapping[Partition, Bounds]:
        """Return what each partition holds now of committed records."""
        return self._cluster.bounds(partition for partition in partitions if self._reading.has(partition))

    def offsets_at(self, partitions: Sequence[Partition], time: datetime) -> Mapping[Partition, Offset]:
        """Return where to seek in each for what was stored at `time` or later; a partition's end if nothing was.

        Beside the contract: logs that cannot tell do not have it.

        Raises:
            Retryable: the log does not answer.
        """
        return self._cluster.offsets_at(partitions, time)

    def seek(self, partition: Partition, offset: Offset) -> None:
        """Read this partition from `offset` on; no effect on one that is not assigned."""
        if self._membership is not None and self._reading.has(partition):
            self._reading.seek(partition, offset)
            self._membership.seek(place_of(partition), offset)

    def pause(self, partition: Partition) -> None:
        """Return no records of this partition until `resume`; no effect on one that is not assigned."""
        self._reading.pause(partition)

    def resume(self, partition: Partition) -> None:
        """Return its records again."""
        self._reading.resume(partition)

    def close(self) -> None:
        """Commit what was reported, leave the group, and let go."""
        self._closed = True
        membership, self._membership = self._membership, None
        if membership is None:
            return
        held = self._reading.partitions
        if not membership.faults.down:
            with suppress(OutboxError):
                self._commits.flush(membership, held, wait=True)
        self._reading.end(held)
        self._commits.forget(held)
        self._shares.unsettle()
        membership.close()


def _seconds(milliseconds: str) -> float:
    """Return a setting in seconds; what is no number is refused by librdkafka, in words of its own."""
    return int(milliseconds) / 1000 if milliseconds.isdecimal() else 0.0
