"""A consumer group as a whole: how far it has come, and letting go of it."""

from outbox.errors import Permanent
from outbox.message import Offset
from relay.logs.contract import Partition
from relay.logs.kafka.cluster import Cluster


def committed(cluster: Cluster, group: str) -> dict[Partition, Offset]:
    """Return the offsets that a group has reported, of the topics as they are now.

    Members of ours note the topic's incarnation beside each offset: one of an earlier topic of the name says nothing
    about this one.

    Raises:
        Retryable: no broker answers.
    """
    found = cluster.offsets(group)
    topics = cluster.topics({topic for topic, _ in found})
    return {
        Partition(topic, topics[topic].id, number): Offset(one.offset)
        for (topic, number), one in found.items()
        if topic in topics and one.metadata in (None, "", topics[topic].id)
    }


def forget(cluster: Cluster, group: str) -> bool:
    """Let go of a group without members; return whether it was known.

    Raises:
        Permanent: it has a member.
        Retryable: no broker answers.
    """
    members = cluster.group(group).members
    if members:
        alive = members[0]
        raise Permanent(
            f"group {group!r} is alive: {alive.client} at {alive.host.lstrip('/')} ({alive.id}) is a member of it;"
            " stop it, and forget the group then"
        )
    return cluster.delete_group(group)
