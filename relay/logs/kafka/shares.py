"""Whether a member has all that it is to have, and what of the group's topics nobody has.

The group's coordinator says who has what, once its members agree. A member that has all partitions of its topics need
not ask. Dividing takes two rounds: what another gives up is nobody's in the first, so that being given nothing does not
mean that there is nothing to come.
"""

from contextlib import suppress

from outbox.errors import Retryable
from outbox.journal import boot_seconds
from relay.logs.kafka.asked import GroupState, Place
from relay.logs.kafka.cluster import Cluster
from relay.logs.kafka.membership import Membership
from relay.logs.kafka.standing import Sight

ASK_SECONDS = 1.0
AGAIN_SECONDS = 10.0
"""A cluster that cannot say who is in the group is not asked again for so long: that is waited for."""
QUIET_SECONDS = 2.0
"""There, a group that has given and taken nothing for so long counts as settled: four heartbeats."""


class Shares:
    """What one member knows of how the group has divided the partitions.

    Args:
        cluster: is asked who is in the group.
        group: its name.
        gone_seconds: after this time a silent member is gone.

    Attributes:
        settled: whether all is here that should be, or what is not counts as another's who does not give it up.
        abandoned: topics that the group has read and nobody has.
        unlisted: set when the coordinator has known nobody in the group for a while, us neither: members of another
            protocol are in it.
    """

    def __init__(self, cluster: Cluster, group: str, gone_seconds: float) -> None:
        self.settled = False
        self.abandoned: frozenset[str] = frozenset()
        self.unlisted = False
        self._cluster = cluster
        self._group = group
        self._gone_seconds = gone_seconds
        self._places: frozenset[Place] | None = None
        self._changes = -1
        self._changed_at = self._waits_since = boot_seconds()
        self._ask_from = float("-inf")
        self._looked = -1

    def unsettle(self) -> None:
        """Say that something is under way."""
        if self.settled:
            self._waits_since = boot_seconds()
        self.settled = False

    def judge(self, membership: Membership, sight: Sight | None, *, is_news: bool) -> None:
        """See whether all is here.

        Args:
            membership: what the group gave.
            sight: which topics there are.
            is_news: whether that was just seen; the group is asked no oftener.
        """
        if membership.changes != self._changes:
            self._changes, self._changed_at = membership.changes, boot_seconds()
        if sight is None or sight.changes != membership.changes or membership.waiting or sight.places != self._places:
            self.unsettle()
        if sight is None or sight.changes != membership.changes or membership.waiting:
            return
        self._places = sight.places
        if membership.given >= sight.places:
            self.settled = True
        elif is_news and not self.settled:
            self.settled = self._is_settled(membership, sight)
        if is_news and self.settled and self._looked != membership.changes:
            self._look_for_abandoned(membership, sight)

    def _is_settled(self, membership: Membership, sight: Sight) -> bool:
        now = boot_seconds()
        group = self._ask()
        if group is None:
            return membership.changes > 0 and now - self._changed_at > QUIET_SECONDS
        if group.is_stable and group.places >= sight.places:
            return group.places_of(membership.name) == frozenset(membership.given)
        if not group.members and now - self._waits_since > QUIET_SECONDS:
            self._waits_since = now
            self.unlisted = True
        # Another does not give up what is to be ours.
        is_alone = all(member.id == membership.name for member in group.members)
        return not is_alone and now - self._waits_since > self._gone_seconds

    def _look_for_abandoned(self, membership: Membership, sight: Sight) -> None:
        """Once each time that the members' shares may have changed."""
        group = self._ask()
        if group is not None and not group.is_stable:
            return
        self._looked = membership.changes
        if group is not None:
            with suppress(Retryable):
                read = membership.topics_read(ASK_SECONDS)
                self.abandoned = read - {topic for topic, _ in group.places} - sight.topics.keys()

    def _ask(self) -> GroupState | None:
        if boot_seconds() < self._ask_from:
            return None
        try:
            return self._cluster.group(self._group, ASK_SECONDS)
        except Retryable:
            self._ask_from = boot_seconds() + AGAIN_SECONDS
            return None
