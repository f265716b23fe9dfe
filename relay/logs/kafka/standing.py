"""What the brokers say of a member's topics: asked now and then, and not waited for."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from outbox.errors import Retryable
from outbox.journal import boot_seconds
from relay.logs.kafka.asked import Asked, Place
from relay.logs.kafka.cluster import Cluster, Topic

LOOK_SECONDS = 2.0
HURRY_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Sight:
    """What was seen.

    Attributes:
        changes: how often the group had given or taken something when this was asked.
        topics: which of the member's topics there are.
        places: their partitions.
    """

    changes: int
    topics: dict[str, Topic]
    places: frozenset[Place]


class Standing:
    """Looks at the topics, without waiting."""

    def __init__(self, cluster: Cluster, topics: Sequence[str]) -> None:
        self._cluster = cluster
        self._topics = topics
        self._asked: Asked[dict[str, Topic]] | None = None
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
            self._asked_at, self._changes = boot_seconds(), changes
            self._asked = self._cluster.ask_topics(self._topics)
        if self._asked is None or not self._asked.is_answered:
            return None
        asked, self._asked = self._asked, None
        with suppress(Retryable):
            topics = asked.answer()
            places = frozenset((name, n) for name, topic in topics.items() for n in range(topic.partitions))
            return Sight(self._changes, topics, places)
        return None

    def hasten(self) -> None:
        """Look again at once: what is known is out of date, and what is on its way may be."""
        self._asked = None
        self._asked_at = float("-inf")
