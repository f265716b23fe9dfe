"""The contract between relay and inbox: what a log is, for adapters of ours and of third parties.

A log is opened by its URL (`relay.logs.registry.open_log`). It has two hands: a *producer*, opened by a relay, and a
*consumer*, opened for a consumer group. What an adapter can do is in its `Capabilities`; the conformance suite tests
each one that is claimed, and a relay or inbox that needs one that is missing refuses to start, with the reason.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable
from uuid import UUID

from outbox.message import Entry, Epoch, Message, Offset


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What an adapter promises.

    Attributes:
        ordered_per_key: records of one topic and key are read in the order in which they were produced.
        exactly_once: records and the number of their chunk become visible together, where the relay asks for it; the
            producer is a `NumberedProducer` then.
        consumer_groups: a group's committed offsets are kept, and its members share the partitions.
        replayable: a consumer may begin at any offset that is still kept.
        fences: records of an epoch that is no longer the newest are refused by the log itself.
        local: the log can lie in the outbox's own database, where a chunk is a query and no row leaves the server.
    """

    ordered_per_key: bool = True
    exactly_once: bool = False
    consumer_groups: bool = True
    replayable: bool = True
    fences: bool = False
    local: bool = False


class Partition(NamedTuple):
    """One partition of one incarnation of a topic."""

    topic: str
    incarnation: str
    number: int


@dataclass(frozen=True, slots=True)
class Record:
    """A message in a log, with topic, partition and offset.

    Attributes:
        partition: where it stands.
        offset: its place there; grows by record, not always by one.
        message: who and what it is, parsed. `message.source` is never None here.
        headers: as on the wire (`ce_id`, `content-type`, ..., and the user's own).
    """

    partition: Partition
    offset: Offset
    message: Message
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Batch:
    """An unbroken run of records of one partition.

    Attributes:
        partition: whose records these are.
        begin: where the run begins: the seek, or the `end` of the batch before; not always the first record's offset.
        end: one past the last record's offset; the next batch begins here.
        records: in offset order; may be empty only when a log has holes.
    """

    partition: Partition
    begin: Offset
    end: Offset
    records: Sequence[Record]


@dataclass(frozen=True, slots=True)
class Failure:
    """One entry that could not be produced.

    Attributes:
        entry: which one.
        reason: what the log said, in words.
        permanent: whether trying again cannot help (too large, forbidden topic, unserialisable).
    """

    entry: Entry
    reason: str
    permanent: bool


@dataclass(frozen=True, slots=True)
class Settlement:
    """The answer for one chunk: durable when `failure` is None."""

    number: int
    failure: Failure | None = None


@dataclass(frozen=True, slots=True)
class ProducerIdentity:
    """For whom a producer is opened.

    Attributes:
        relay: the relay's name.
        installation: the outbox's random id; tells two services with a relay of one name apart.
        incarnation: the registration's uuid.
        epoch: the lease's number; a newer one fences this one.
        lease_seconds: the lease's length. A chunk that is not durable in half of it is better given up (`TimedOut`).
        delivery: `at-least-once`, `exactly-once` or `at-most-once`, as the relay was asked.
        topics: those that the relay names in full, to be looked at before the first message comes; it may move others.
    """

    relay: str
    installation: UUID
    incarnation: UUID
    epoch: Epoch
    lease_seconds: float = 10.0
    delivery: str = "at-least-once"
    topics: Sequence[str] = ()


class Producer(Protocol):
    """A relay's hand on the log. Not safe to use from two threads."""

    def produce(self, number: int, chunk: Sequence[Entry]) -> None:
        """Take a chunk. Chunks come in order, numbered from 1 without a gap by one producer.

        Durable when it returns: no, see `settle`. Order: entries of one topic and key keep theirs, and nothing passes a
        failed entry of the same partition. Partial failure: told by `settle`. Concurrent: no. Again: repeats records.

        Raises:
            Retryable: the log does not take it now; nothing of it may be counted as produced.
            Fenced: a newer epoch produces into this log.
        """
        ...

    def settle(self, timeout_seconds: float) -> Settlement | None:
        """Wait for the oldest chunk that is not settled; None when the time is up first.

        Durable: a settlement without a failure says that the whole chunk is. Order: by number. Partial failure: the
        failure names the first entry at fault, and every entry before it *of its partition* is durable. Again: the
        next chunk's.

        Raises:
            Retryable: the outcome is unknown; the relay goes back to its checkpoint.
            Fenced: a newer epoch produces into this log.
        """
        ...

    def close(self) -> None:
        """Let go of what is held. What was not settled has an unknown outcome."""
        ...


@runtime_checkable
class NumberedProducer(Producer, Protocol):
    """The producer of a log that claims `exactly_once`: the log keeps the number of the last chunk, with its records.

    Opening it fences the producers of older epochs of the same incarnation and ends their unfinished work: none of
    their chunks can appear afterwards. Chunks are numbered on from `number`, over all epochs. A chunk is durable as a
    whole, with its number, or nothing of it is: a settlement with a failure, and `TimedOut`, say that nothing is, and
    the same number may be produced again. After any other error the outcome is unknown until another producer is
    opened.
    """

    def number(self) -> int | None:
        """Return the number of the last chunk in the log as this producer was opened; 0 when there was none.

        Counts everything that the fenced producers brought in. None: the log does not know, because it has forgotten
        it, or was never told one (`keep`).

        Raises:
            Retryable: the log does not answer.
            Fenced: a newer epoch produces into this log.
        """
        ...

    def keep(self, number: int) -> None:
        """See that the log does not forget the number of the last chunk, where it would.

        Called before the first chunk, and while there is none to be produced: costs nothing but now and then. Durable
        when it returns. Again: no effect.

        Raises:
            Retryable: unknown outcome; the relay goes back to its checkpoint.
            Fenced: a newer epoch produces into this log.
        """
        ...


class Listener(Protocol):
    """Told by a consumer, from within its `poll`, which partitions it has.

    A partition is assigned to one member only after `revoked` has returned to the other, or the other is gone.
    """

    def assigned(self, partitions: Sequence[Partition]) -> Mapping[Partition, Offset]:
        """Take these partitions; return where to begin in each. What it raises, `poll` raises, and asks again."""
        ...

    def revoked(self, partitions: Sequence[Partition]) -> None:
        """Give these partitions up: work in hand is finished or dropped when this returns.

        A member that the others have called gone is told so afterwards: its partitions may be others' already.
        """
        ...


class Bounds(NamedTuple):
    """What a partition holds: offsets from `first` up to, not including, `end`."""

    first: Offset
    end: Offset


class Consumer(Protocol):
    """A group member's hand on the log. Not safe to use from two threads."""

    def poll(self, timeout_seconds: float) -> Batch | None:
        """Return the next run of records of one partition, or None when the time is up.

        Also calls the listener when partitions come or go, as long as that takes: the members of a group share the
        partitions of the topics that they state, each partition is one member's, and those that stay with a member go
        on without a pause. A member stays one while the listener works. Order: by offset within a partition. Again:
        the next run.

        Raises:
            Retryable: the log does not answer; poll again.
            Permanent: the log has lost records that this group has not read; the words say which.
        """
        ...

    def assignment(self) -> frozenset[Partition] | None:
        """Return what is assigned, as of the last poll; None while that is not settled yet.

        Partitions of the member's topics that are not in it are those of another live member: by the assignment, or
        because that has not given them up for as long as a silent one would be waited for.
        """
        ...

    def missing(self) -> frozenset[str]:
        """Return those of the consumer's topics that do not exist yet, as of the last poll."""
        ...

    def abandoned(self) -> frozenset[str]:
        """Return topics that the group has read and no live member states, as far as the log knows; they wait."""
        ...

    def bounds(self, partitions: Sequence[Partition]) -> Mapping[Partition, Bounds]:
        """Return what each partition holds now."""
        ...

    def seek(self, partition: Partition, offset: Offset) -> None:
        """Read this partition from `offset` on; what was prefetched is dropped."""
        ...

    def pause(self, partition: Partition) -> None:
        """Return no records of this partition until `resume`; its membership stays. Again: no effect."""
        ...

    def resume(self, partition: Partition) -> None:
        """Return its records again, from where `pause` left off. Again: no effect."""
        ...

    def commit(self, offsets: Mapping[Partition, Offset]) -> None:
        """Report how far the group has come: for lag and retention; the inbox resumes from its own claims.

        Durable: within about a second. Never moves an offset back; no effect on partitions that are not this
        member's. Again: no effect, and costs nothing.
        """
        ...

    def close(self) -> None:
        """Commit what was reported, leave the group, and let go, so that the next member starts at once."""
        ...


class Log(Protocol):
    """An open log; made by an adapter's `open(url)`. Opening it does not need the log to be reachable."""

    @property
    def capabilities(self) -> Capabilities:
        """What this adapter promises."""
        ...

    def check(self) -> None:
        """See that the log answers and is as expected.

        Raises:
            Unreachable: it does not answer.
            ConfigurationError: it answers, and is not what we need (tables missing, another version).
        """
        ...

    def identity(self) -> str:
        """Return what tells this log from every other: its uuid, or a cluster's id."""
        ...

    def producer(self, identity: ProducerIdentity) -> Producer:
        """Open a relay's hand; fences the producers of older epochs where the log can."""
        ...

    def consumer(self, group: str, topics: Sequence[str], listener: Listener) -> Consumer:
        """Open a group member's hand. The first `poll` joins the group.

        Raises:
            ConfigurationError: the member states no topics.
        """
        ...

    def committed(self, group: str) -> Mapping[Partition, Offset]:
        """Return the offsets that the group has reported."""
        ...

    def forget(self, group: str) -> bool:
        """Let go of a group: its committed offsets and its members that are gone; return whether it was known.

        Durable when it returns: yes. Partial failure: none, it is all or nothing. Again: returns False.

        Raises:
            Permanent: a member of the group is alive; the words name it, and nothing is deleted.
        """
        ...

    def partitions(self, topics: Sequence[str]) -> Mapping[Partition, Bounds]:
        """Return the partitions of those of the topics that exist, and what each holds."""
        ...

    def tail(self, topic: str, *, from_start: bool, follow: bool) -> Iterator[Record | None]:
        """Yield the topic's records without joining a group; None when there is nothing new at the moment.

        Without `follow` it ends at what the log held at the call; with `follow` it never ends. Order: by offset
        within a partition. A topic that does not exist has no records.
        """
        ...

    def close(self) -> None:
        """Let go of connections."""
        ...


@dataclass(frozen=True, slots=True)
class LogOptions:
    """What an adapter is given beside its URL.

    Attributes:
        schema: where the outbox's tables lie; a built-in log in the same database lies there too.
        prefix: likewise.
    """

    schema: str | None = None
    prefix: str = ""
