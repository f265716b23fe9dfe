"""Whose is which partition: a pure function of who is in a group, so that all members come to one answer by themselves.

Each pair of member and partition has a score that depends on nothing else. The best pairs win, until a member has its
share: so when one member comes or goes, few partitions move between those that stay.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from hashlib import blake2b

from outbox.errors import ConfigurationError
from relay.logs.contract import Partition


def assign(members: Mapping[str, Collection[str]], topics: Iterable[Sequence[Partition]]) -> dict[Partition, str]:
    """Return the owner of each partition of a topic that at least one member states.

    The members that state a topic share it to within one partition; when all of them state the same topics, their
    shares of all topics are within one, too.

    Args:
        members: the topics that each member states.
        topics: the partitions of each topic that exists. In the order in which topics were made: a new topic at the
            end moves no partition of those before it.
    """
    owners: dict[Partition, str] = {}
    load: Counter[str] = Counter()
    for partitions in topics:
        stating = [member for member, stated in members.items() if partitions and partitions[0].topic in stated]
        if stating:
            shared = _share(partitions, stating, load)
            owners |= shared
            load.update(shared.values())
    return owners


def stated_topics(group: str, topics: Sequence[str]) -> tuple[str, ...]:
    """Return a member's topics, sorted, each once.

    Raises:
        ConfigurationError: there are none.
    """
    if not topics:
        raise ConfigurationError(
            f"a member of group {group!r} states no topics, so no partition could ever be its own: name at least one"
        )
    return tuple(sorted(set(topics)))


def _share(partitions: Sequence[Partition], members: Sequence[str], load: Mapping[str, int]) -> dict[Partition, str]:
    left = _shares(partitions, members, load)
    owners: dict[Partition, str] = {}
    pairs = [(_score(member, partition), member, partition) for member in members for partition in partitions]
    for _, member, partition in sorted(pairs, reverse=True):
        if partition not in owners and left[member]:
            owners[partition] = member
            left[member] -= 1
    return owners


def _shares(partitions: Sequence[Partition], members: Sequence[str], load: Mapping[str, int]) -> dict[str, int]:
    """Return how many partitions each member gets; what cannot be divided goes to those that have the least so far."""
    least, more = divmod(len(partitions), len(members))
    in_turn = sorted(members, key=lambda member: (load[member], _score(member, partitions[0]), member))
    return {member: least + (place < more) for place, member in enumerate(in_turn)}


def _score(member: str, partition: Partition) -> bytes:
    # By the topic's name alone: a topic made anew stays with its owners.
    return blake2b(f"{member}\0{partition.topic}\0{partition.number}".encode(), digest_size=8).digest()
