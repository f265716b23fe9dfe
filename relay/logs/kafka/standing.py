"""What the brokers say of a member's topics and of its group: asked now and then, and not waited for."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from outbox.errors import Retryable
from outbox.journal import boot_seconds
from relay.logs.kafka.asked import Asked, GroupState, Place
from relay.logs.kafka.cluster import Cluster, Topic

LOOK_SECONDS = 2.0
HURRY_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Sight:
    """What was seen.

    Attributes:
        changes: how often the group had given or taken something when this was asked.
        topics: which of the member's topics there are.
        group: who is in the group.
    """

    changes: int
    topics: dict[str, Topic]
    group: GroupState

    def covers_all(self) -> bool:
        """Return whether each partition of the member's topics is assigned to some member."""
        return all(self.group.places >= {(name, n) for n in range(one.partitions)} for name, one in self.topics.items())

    def places_of(self, member: str) -> frozenset[Place] | None:
        """Return what is assigned to a member; None when it is not in the group."""
        return next((one.places for one in self.group.members if one.id == member), None)


class Standing:
    """Looks at the topics and the group, without waiting."""

    def __init__(self, cluster: Cluster, group: str, topics: Sequence[str]) -> None:
        self._cluster = cluster
        self._group = group
        self._topics = topics
        self._asked: tuple[Asked[dict[str, Topic]], Asked[GroupState]] | None = None
        self._asked_at = float("-inf")
        self._changes = 0

    def look(self, changes: int, *, hurry: bool) -> Sight | None:
        """Return what is seen, when there is news.

        Args:
            changes: how often the group has given or taken something.
            hurry: whether somebody waits for it.

        Raises:
            Permanent: we may not look.
        """
        if self._asked is None and boot_seconds() - self._asked_at >= (HURRY_SECONDS if hurry else LOOK_SECONDS):
            self._ask(changes)
        if self._asked is None or not all(asked.is_answered for asked in self._asked):
            return None
        (topics, group), self._asked = self._asked, None
        with suppress(Retryable):
            return Sight(self._changes, topics.answer(), group.answer())
        return None

    def hasten(self) -> None:
        """Look again at once: what is known is out of date."""
        self._asked_at = float("-inf")

    def _ask(self, changes: int) -> None:
        self._asked_at, self._changes = boot_seconds(), changes
        self._asked = (self._cluster.ask_topics(self._topics), self._cluster.ask_group(self._group))
