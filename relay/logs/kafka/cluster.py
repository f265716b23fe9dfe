"""What the brokers are asked about the log itself: who they are, which topics there are, and what they hold."""

import math
import warnings
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any, TypeVar

from confluent_kafka import Consumer as Client
from confluent_kafka import (
    ConsumerGroupType,
    IsolationLevel,
    KafkaError,
    KafkaException,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic, OffsetSpec, ResourceType

from outbox.errors import OutboxError, Permanent, Unreachable
from outbox.message import Offset
from relay.logs.contract import Bounds, Partition
from relay.logs.kafka.address import Address
from relay.logs.kafka.admin import ASK_SECONDS, Admin, Admins
from relay.logs.kafka.asked import Asked, GroupMember, GroupState, Place, places_in
from relay.logs.kafka.client import Faults, made
from relay.logs.kafka.errors import UNKNOWN_TOPIC, ours, translated

Answer = TypeVar("Answer")

_OF_ANOTHER_LEADER = frozenset(
    {KafkaError.FENCED_LEADER_EPOCH, KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError.UNKNOWN_LEADER_EPOCH}
)
NONE_SINCE = -1
"""What brokers answer where they have no record of a time or later."""


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic as the brokers describe it.

    Attributes:
        name: its name.
        id: tells it from an earlier or later one of the same name.
        partitions: how many.
        replicas: on how many brokers its first partition lies.
    """

    name: str
    id: str
    partitions: int
    replicas: int

    def parts(self) -> list[Partition]:
        """Return its partitions."""
        return [Partition(self.name, self.id, number) for number in range(self.partitions)]


class Cluster:
    """The brokers of one log. Safe to use from several threads.

    Raises:
        ConfigurationError: a setting of the address is unknown, or has a value that it cannot have.
    """

    def __init__(self, address: Address) -> None:
        self._address = address
        self._admins = Admins(address)

    def identity(self) -> str:
        """Return the cluster's id.

        Raises:
            Unreachable: no broker answers.
        """
        found = self._admins.asked(lambda admin: admin.cluster_id("asking who the brokers are"))
        if not found:
            raise Permanent("the brokers say no cluster id, by which the relay knows its log again: Kafka 2.8 or newer")
        return found

    def topics(self, names: Collection[str]) -> dict[str, Topic]:
        """Return those of the topics that exist.

        Raises:
            Unreachable: no broker answers.
            Permanent: one may not be looked at.
        """
        return self._admins.asked(lambda admin: _topics_asked(admin, names).answer())

    def bounds(self, partitions: Iterable[Partition]) -> dict[Partition, Bounds]:
        """Return what each partition holds of committed records.

        Raises:
            Retryable: no broker answers, or a topic has gone meanwhile.
        """
        wanted = list(partitions)
        if not wanted:
            return {}
        specs: Any = OffsetSpec  # it has no types
        first, end = (self._offsets(wanted, spec) for spec in (specs.earliest(), specs.latest()))
        return {one: Bounds(first[one], end[one]) for one in wanted}

    def _offsets(self, partitions: Sequence[Partition], spec: OffsetSpec, least: int = 0) -> dict[Partition, Offset]:
        return self._admins.asked(lambda admin: _offsets_asked(admin, partitions, spec, least))

    def configs(self, topics: Collection[str]) -> dict[str, dict[str, str]]:
        """Return the settings of topics; those that do not exist or may not be asked for are left out.

        Raises:
            Unreachable: no broker answers.
        """
        return self._admins.asked(lambda admin: _configs_asked(admin, topics)) if topics else {}

    def ask_for(self, topics: Collection[str]) -> None:
        """Ask for topics in the way that has brokers make them which make topics by themselves."""
        with translated("asking for topics"):
            for name in sorted(topics):
                self._making.list_topics(name, timeout=ASK_SECONDS)

    @cached_property
    def _making(self) -> AdminClient:
        """The client whose questions have topics made: those of the others must not."""
        return made(AdminClient, self._address, Faults(), {})

    def make(self, topics: Collection[str], *, partitions: int, replication: int | None) -> None:
        """Make topics; one that is there already is left alone.

        Raises:
            Retryable: no broker answers.
            Permanent: the brokers do not let us.
        """
        if not topics:
            return
        wanted = [NewTopic(name, partitions, -1 if replication is None else replication) for name in sorted(topics)]
        self._admins.asked(lambda admin: _made_by(admin, wanted))

    def ask_topics(self, names: Collection[str]) -> Asked[dict[str, Topic]]:
        """Ask which of the topics exist; see `topics`."""
        admin = self._admins.newest
        asked = _topics_asked(admin, names)

        def read() -> dict[str, Topic]:
            try:
                return asked.answer()
            except Unreachable:
                self._admins.renew(admin)
                raise

        return Asked(asked.futures, read)

    def group(self, group: str, seconds: float = ASK_SECONDS) -> GroupState:
        """Return who is in a group.

        By the client's older call, which asks all brokers. The newer one asks the group's coordinator, as all of the
        admin client's questions to a coordinator ends the process when that goes away at the wrong moment (librdkafka's
        issues 4605 and 5040): not for a member that runs for months.

        Raises:
            Retryable: not all brokers answer.
        """
        with translated(f"asking who is in group {group!r}"), warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            found: list[Any] = self._admins.newest.client.list_groups(group, timeout=seconds)
        if found and found[0].error is not None:
            raise ours(found[0].error, f"asking who is in group {group!r}")
        return _group_state(found[0]) if found else GroupState()

    def is_of_newer_protocol(self, group: str) -> bool:
        """Return whether a group's members speak the protocol of `group.protocol=consumer`.

        `group` sees nobody in such a group. This asks all brokers which groups they have, and no coordinator.

        Raises:
            Retryable: not all brokers answer, or they know no types of groups.
        """
        doing, types = f"asking for the type of group {group!r}", {ConsumerGroupType.CONSUMER}
        found = self._admins.asked(
            lambda admin: admin.answer(
                doing, admin.client.list_consumer_groups(types=types, request_timeout=ASK_SECONDS)
            )
        )
        return any(one.group_id == group for one in found.valid)

    def offsets(self, group: str) -> dict[Place, TopicPartition]:
        """Return the offsets that a group has committed, with what was noted beside them.

        By a client that could be its member, and joins nothing; see `group` for why.

        Raises:
            Retryable: no broker answers.
        """
        faults = Faults()
        client = made(Client, self._address, faults, {"group.id": group, "enable.auto.commit": False})
        try:
            with translated(f"asking how far group {group!r} has come"):
                return committed_offsets(client, ASK_SECONDS)
        finally:
            client.close()

    def delete_group(self, group: str) -> bool:
        """Delete what the brokers have of a group without members; return whether there was anything.

        A question to the group's coordinator: see `group`.

        Raises:
            Retryable: no broker answers.
            Permanent: it has a member.
        """
        doing = f"deleting group {group!r}"
        try:
            self._admins.asked(
                lambda admin: admin.answer(
                    doing, admin.client.delete_consumer_groups([group], request_timeout=ASK_SECONDS)[group]
                )
            )
        except OutboxError as error:
            if code_of(error) == KafkaError.GROUP_ID_NOT_FOUND:
                return False
            if code_of(error) == KafkaError.NON_EMPTY_GROUP:
                raise Permanent(f"group {group!r} is alive: somebody is a member of it; stop it first") from error
            raise
        return True

    def offsets_at(self, partitions: Iterable[Partition], time: datetime) -> dict[Partition, Offset]:
        """Return for each partition the offset of the first record that was stored at `time` or later; else its end.

        Raises:
            Retryable: no broker answers.
        """
        wanted = list(partitions)
        if not wanted:
            return {}
        specs: Any = OffsetSpec  # it has no types
        # First, so that what comes in between is not skipped.
        ends = self._offsets(wanted, specs.latest())
        found = self._offsets(wanted, specs.for_timestamp(max(0, math.ceil(time.timestamp() * 1000))), least=NONE_SINCE)
        return {one: found[one] if found[one] >= 0 else ends[one] for one in wanted}


def code_of(error: OutboxError) -> int | None:
    """Return the code of the client's error behind one of ours."""
    cause = error.__cause__
    return int(cause.args[0].code()) if isinstance(cause, KafkaException) else None


def _topics_asked(admin: Admin, names: Collection[str]) -> Asked[dict[str, Topic]]:
    futures: dict[str, Future[Any]] = {}
    if names:
        futures = admin.client.describe_topics(TopicCollection(sorted(names)), request_timeout=ASK_SECONDS)

    def read() -> dict[str, Topic]:
        found = {}
        for name, future in futures.items():
            described = _unless_unknown(admin, f"asking for topic {name!r}", future)
            if described is not None:
                replicas = len(described.partitions[0].replicas) if described.partitions else 0
                found[name] = Topic(name, str(described.topic_id), len(described.partitions), replicas)
        return found

    return Asked(futures.values(), read)


def _unless_unknown(admin: Admin, doing: str, future: "Future[Answer]") -> Answer | None:
    try:
        return admin.answer(doing, future)
    except OutboxError as error:
        code = code_of(error)
        if code in UNKNOWN_TOPIC:
            return None
        if code == KafkaError.TOPIC_AUTHORIZATION_FAILED:
            raise Permanent(f"{doing}: our user may not DESCRIBE it; grant it that") from error
        raise


def _offsets_asked(
    admin: Admin, partitions: Sequence[Partition], spec: OffsetSpec, least: int
) -> dict[Partition, Offset]:
    """Ask the leaders of partitions.

    Of a leader that goes away meanwhile librdkafka reports no error, and the offset that means "none". Afterwards it
    goes on asking by the epoch of the leader before, which the new one refuses, for a minute and more (tried, 2.16.0).
    Both are a matter for another client.

    Raises:
        Unreachable: one of them has not answered, or its answer is below `least`.
    """
    asked = {TopicPartition(one.topic, one.number): spec for one in partitions}
    futures = admin.client.list_offsets(
        asked, isolation_level=IsolationLevel.READ_COMMITTED, request_timeout=ASK_SECONDS
    )
    found = {}
    for part, future in futures.items():
        doing = f"asking what {part.topic!r} holds"
        try:
            offset = Offset(admin.answer(doing, future).offset)
        except OutboxError as error:
            if code_of(error) in _OF_ANOTHER_LEADER:
                raise Unreachable(str(error)) from error
            raise
        if offset < least:
            raise Unreachable(f"{doing}: the leader of partition {part.partition} has not answered")
        found[part.topic, part.partition] = offset
    return {one: found[one.topic, one.number] for one in partitions}


def _configs_asked(admin: Admin, topics: Collection[str]) -> dict[str, dict[str, str]]:
    resources = [ConfigResource(ResourceType.TOPIC, name) for name in sorted(topics)]
    found = {}
    for resource, future in admin.client.describe_configs(resources, request_timeout=ASK_SECONDS).items():
        try:
            entries = admin.answer(f"asking for the settings of {resource.name!r}", future)
        except Unreachable:
            raise
        except OutboxError:
            continue
        found[str(resource.name)] = {name: str(entry.value) for name, entry in entries.items()}
    return found


def _made_by(admin: Admin, topics: Sequence[NewTopic]) -> None:
    for name, future in admin.client.create_topics(list(topics), request_timeout=ASK_SECONDS).items():
        try:
            admin.answer(f"making topic {name!r}", future)
        except OutboxError as error:
            _refuse_unmade(error)


def _refuse_unmade(error: OutboxError) -> None:
    if code_of(error) == KafkaError.TOPIC_ALREADY_EXISTS:
        return
    if isinstance(error, Unreachable):
        raise error
    raise Permanent(f"{error}: make the topic yourself, or mend ?partitions= and ?replication= of --log") from error


def committed_offsets(client: Client, timeout_seconds: float) -> dict[Place, TopicPartition]:
    """Return what the client's group has committed, of any topic."""
    found = client.list_topics(timeout=timeout_seconds).topics.values()
    parts = [TopicPartition(topic.topic, number) for topic in found for number in topic.partitions]
    answers = client.committed(parts, timeout_seconds) if parts else []
    return {(one.topic, one.partition): one for one in answers if one.error is None and one.offset >= 0}


def _group_state(found: Any) -> GroupState:
    members = [
        GroupMember(member.id, member.client_id, member.client_host, places_in(member.assignment))
        for member in found.members
    ]
    return GroupState(found.state == "Stable", found.protocol, tuple(members))
