"""One membership of a group: librdkafka's consumer, with what the group gives it and takes from it.

    the group gives a partition   -> it waits until `begin` says from where on it is read
    the group takes one away      -> `taken` is called, and has finished with it when it returns

Given is not begun: the listener may have to be asked more than once where to begin, and until it has answered nothing
is fetched. All callbacks run inside `fetch` and `close`, in the thread that calls them.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from confluent_kafka import Consumer as Client
from confluent_kafka import KafkaError, KafkaException, TopicPartition
from confluent_kafka import Message as Raw

from outbox.message import Offset
from relay.logs.kafka.address import Address
from relay.logs.kafka.asked import Place
from relay.logs.kafka.client import Faults, made
from relay.logs.kafka.cluster import committed_offsets
from relay.logs.kafka.errors import translated

FETCH_RECORDS = 1_000
"""How many records are taken from the client in one go."""

DEFAULTS = {
    # As in the built-in log: a member that is silent for so long is gone.
    "session.timeout.ms": "10000",
    # By heartbeats a member hears that the others wait for it: what it is to give up, and that it may take the rest.
    "heartbeat.interval.ms": "500",
    # How long the listener may work: it waits for a handler in hand, whose own bound is 60 seconds unless somebody
    # says otherwise. The others wait as long for their shares, so it is no more than that; a member that takes longer
    # is out, and its successor waits for its claim.
    "max.poll.interval.ms": "600000",
    # New topics and partitions are noticed so soon; it is one small request.
    "topic.metadata.refresh.interval.ms": "1000",
    # How long a broker holds back an answer without records. Only such an answer says that a partition is read to its
    # end, and a group that reads to the end waits for it.
    "fetch.wait.max.ms": "250",
    # What is read ahead, over all partitions: by bytes. One answer may go beyond it, hence a bound on that.
    "queued.max.messages.kbytes": "16384",
    "fetch.max.bytes": "8388608",
    # Or the fetcher sleeps for a second, when what was read ahead is used up in milliseconds.
    "fetch.queue.backoff.ms": "20",
    "fetch.error.backoff.ms": "100",
    "reconnect.backoff.max.ms": "500",
}
"""What a URL may say otherwise."""

HELD = {
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    "isolation.level": "read_committed",
    # Nothing is skipped, nothing repeated, without a person's word.
    "auto.offset.reset": "error",
    "enable.partition.eof": True,
    "allow.auto.create.topics": False,
}
"""What reading needs, with a group or without."""


class Membership:
    """A member of a group. Not safe to use from two threads.

    Args:
        address: of the brokers.
        group: the group's name.
        topics: what this member states.
        taken: told which partitions go; and whether they are gone already, so that nothing can be committed.

    Attributes:
        given: what the group has given to this member.
        changes: how often the group gave or took something; also when it was nothing.
        faults: what the connections said last.
    """

    def __init__(
        self, address: Address, group: str, topics: Sequence[str], taken: Callable[[Collection[Place], bool], None]
    ) -> None:
        self.given: set[Place] = set()
        self.changes = 0
        self.faults = Faults()
        self._group = group
        self._taken = taken
        self._begun: set[Place] = set()
        self._leaves = False
        self._acknowledged: list[TopicPartition] = []
        self._client = made(
            Client,
            address,
            self.faults,
            {
                **{name: value for name, value in DEFAULTS.items() if name not in address.settings},
                **HELD,
                "group.id": group,
                "group.protocol": "classic",
                "partition.assignment.strategy": "cooperative-sticky",
                "on_commit": self._on_commit,
            },
        )
        with translated(f"joining group {group!r}"):
            self._client.subscribe(
                list(topics), on_assign=self._on_given, on_revoke=self._on_taken, on_lost=self._on_lost
            )

    @property
    def name(self) -> str:
        """What the group's coordinator calls this member; empty before it has a name."""
        return self._client.memberid() or ""

    @property
    def waiting(self) -> list[Place]:
        """What was given and is not begun."""
        return sorted(self.given - self._begun)

    def fetch(self, timeout_seconds: float, *, most: int = FETCH_RECORDS) -> list[Raw]:
        """Return what there is, or what comes first within the time; errors are among it."""
        with translated(f"reading for group {self._group!r}"):
            found = self._client.consume(most, 0)
            if not found and timeout_seconds > 0:
                # `consume` would wait until it has all of them.
                first = self._client.poll(timeout_seconds)
                if first is not None:
                    found = [first, *self._client.consume(most - 1, 0)]
        return found

    def begin(self, offsets: Mapping[Place, Offset]) -> None:
        """Read these partitions from there on, which were given."""
        with translated("beginning to read"):
            self._client.incremental_assign([TopicPartition(*place, offset) for place, offset in offsets.items()])
        self._begun |= offsets.keys()

    def end(self, places: Collection[Place]) -> None:
        """Read these no longer; they stay this member's, and wait to be begun again."""
        begun = [place for place in places if place in self._begun]
        with translated("ending to read"):
            self._client.incremental_unassign([TopicPartition(*place) for place in begun])
        self._begun -= set(begun)

    def seek(self, place: Place, offset: Offset) -> None:
        """Read this partition from there on; what was read ahead is not returned any more."""
        part = TopicPartition(*place, offset)
        # It need not rest any more: nothing is kept of it.
        self._client.resume([part])
        try:
            self._client.seek(part)
        except KafkaException:
            # It has not begun to fetch, or has stopped at an error.
            with translated("seeking"):
                self._client.incremental_unassign([part])
                self._client.incremental_assign([part])

    def rest(self, places: Iterable[Place]) -> None:
        """Read nothing ahead of these."""
        parts = [TopicPartition(*place) for place in places]
        if parts:
            self._client.pause(parts)

    def go_on(self, places: Iterable[Place]) -> None:
        """Read ahead again, from the last record that was returned."""
        parts = [TopicPartition(*place) for place in places]
        if parts:
            self._client.resume(parts)

    def commit(self, offsets: Mapping[Place, tuple[Offset, str]], *, wait: bool) -> None:
        """Commit offsets, with a note beside each; see `acknowledged`.

        Raises:
            Retryable: with `wait`, it is not known to be done.
        """
        parts = [TopicPartition(*place, offset, note) for place, (offset, note) in offsets.items()]
        with translated(f"committing offsets of group {self._group!r}"):
            if wait:
                self._acknowledged += self._client.commit(offsets=parts, asynchronous=False)
            else:
                self._client.commit(offsets=parts, asynchronous=True)

    def acknowledged(self) -> dict[Place, Offset]:
        """Return what was committed since the last call."""
        done, self._acknowledged = self._acknowledged, []
        return {(one.topic, one.partition): Offset(one.offset) for one in done if one.error is None}

    def committed(self, places: Iterable[Place], timeout_seconds: float) -> dict[Place, tuple[Offset, str]]:
        """Return what the group has committed, with the note beside it.

        Raises:
            Retryable: the brokers do not answer.
        """
        with translated(f"asking how far group {self._group!r} has come"):
            found = self._client.committed([TopicPartition(*place) for place in places], timeout_seconds)
        return {
            (one.topic, one.partition): (Offset(one.offset), one.metadata or "")
            for one in found
            if one.error is None and one.offset >= 0
        }

    def topics_read(self, timeout_seconds: float) -> frozenset[str]:
        """Return the topics of which the group has committed offsets.

        Raises:
            Retryable: the brokers do not answer.
        """
        with translated(f"asking how far group {self._group!r} has come"):
            return frozenset(topic for topic, _ in committed_offsets(self._client, timeout_seconds))

    def close(self) -> None:
        """Leave the group. Nobody is told of what goes with it."""
        self._leaves = True
        self._client.close()

    def _on_given(self, client: Client, parts: Sequence[TopicPartition]) -> None:
        self.changes += 1
        self.given |= {(part.topic, part.partition) for part in parts}
        # Said here or all of them would be read at once, from wherever.
        client.incremental_assign([])

    def _on_taken(self, client: Client, parts: Sequence[TopicPartition]) -> None:
        self._give_up(client, parts, lost=False)

    def _on_lost(self, client: Client, parts: Sequence[TopicPartition]) -> None:
        self._give_up(client, parts, lost=True)

    def _give_up(self, client: Client, parts: Sequence[TopicPartition], *, lost: bool) -> None:
        self.changes += 1
        places = {(part.topic, part.partition) for part in parts}
        if not self._leaves:
            self._taken(places, lost)
        self.given -= places
        begun = [part for part in parts if (part.topic, part.partition) in self._begun]
        self._begun -= places
        client.incremental_unassign([TopicPartition(part.topic, part.partition) for part in begun])

    def _on_commit(self, error: KafkaError | None, parts: Sequence[TopicPartition]) -> None:
        if error is None:
            self._acknowledged += parts
