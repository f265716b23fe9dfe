"""What a consumer's errors mean for a group's member."""

from confluent_kafka import KafkaError

from outbox.errors import ConfigurationError, OutboxError, Permanent, Retryable
from outbox.message import Offset
from relay.logs.contract import Bounds, Partition
from relay.logs.kafka.cluster import Cluster
from relay.logs.kafka.errors import UNKNOWN_TOPIC, ours

INSTANCE = "group.instance.id"
_PASSING = UNKNOWN_TOPIC | {
    # The listener took longer than the group waits: librdkafka joins again.
    KafkaError._MAX_POLL_EXCEEDED,  # noqa: SLF001 - librdkafka's own codes are named so
    # What the connections say is judged by whether the brokers answer.
    KafkaError._ALL_BROKERS_DOWN,  # noqa: SLF001
    KafkaError._TRANSPORT,  # noqa: SLF001
}


def judged(error: KafkaError, doing: str) -> OutboxError | None:
    """Return what is to be raised for an error that came between the records; None for one that passes by itself."""
    code = error.code()
    if code in _PASSING:
        return None
    if code == KafkaError.TOPIC_AUTHORIZATION_FAILED:
        return Permanent(f"{doing}: {error.str()}: grant our user READ and DESCRIBE on the topic")
    return ours(error, doing)


def given_up(error: KafkaError, group: str) -> OutboxError:
    """Return what is to be raised when the client has given up for good; another one has to be made.

    But for a static member whose place was taken: the two would go on taking it from each other.
    """
    if INSTANCE not in error.str():
        return Retryable(f"group {group!r}: {error.str()}; it is joined again")
    return ConfigurationError(
        f"group {group!r}: another member has our {INSTANCE} and has taken our place; each member needs one of its own"
    )


def is_disagreement(error: KafkaError) -> bool:
    """Return whether the members of the group are no members of ours."""
    return error.code() in (KafkaError.INCONSISTENT_GROUP_PROTOCOL, KafkaError.GROUP_ID_NOT_FOUND)


def name_taken(group: str, cluster: Cluster) -> ConfigurationError | None:
    """Say that other programs use the group's name, and how; None when they have left meanwhile."""
    try:
        found = cluster.group(group)
        if found.members:
            how = f"divide partitions by {found.assignor!r}, ours by 'cooperative-sticky'"
        elif cluster.is_of_newer_protocol(group):
            how = "speak the newer protocol of groups (group.protocol=consumer), ours the classic one"
        else:
            return None
    except OutboxError:
        return None
    return ConfigurationError(
        f"the name of group {group!r} is taken: its members {how}, and the members of a group have to agree; stop them,"
        " or give this group another name (--group)"
    )


def lost_records(partition: Partition, offset: Offset, held: Bounds) -> str:
    """Say that the log no longer has what comes next."""
    where = f"the log has lost records of topic {partition.topic!r}, partition {partition.number}: offset {offset} was"
    what = f"{held.first} is the first that it has" if offset < held.first else f"it ends at {held.end}"
    return f"{where} to be read and {what}; restore them, or handle what is left with a group of another name"
