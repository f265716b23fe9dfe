"""How far a member has said that the group has come, and how much of that the brokers know."""

from collections.abc import Collection, Iterable, Mapping

from outbox.message import Offset
from relay.logs.contract import Partition
from relay.logs.kafka.membership import Membership
from relay.logs.kafka.reading import place_of

ASK_SECONDS = 5.0
_NOTHING = Offset(-1)


class Commits:
    """The reports of one member. Beside each offset the topic's incarnation is noted: see `groups.committed`."""

    def __init__(self) -> None:
        self._reported: dict[Partition, Offset] = {}
        self._known: dict[Partition, Offset] = {}

    def report(self, offsets: Mapping[Partition, Offset]) -> None:
        """Take a report; what goes back, or says what is known, is dropped."""
        for partition, offset in offsets.items():
            if offset > self._known.get(partition, _NOTHING):
                self._reported[partition] = max(offset, self._reported.get(partition, offset))

    def flush(self, membership: Membership, partitions: Collection[Partition], *, wait: bool) -> None:
        """Commit what was reported of these partitions, and is not known to the brokers.

        Raises:
            Retryable: the brokers do not answer; it is kept.
        """
        self.note(membership)
        due = [partition for partition in partitions if partition in self._reported]
        self._learn(membership, [partition for partition in due if partition not in self._known])
        offsets = {
            place_of(partition): (self._reported[partition], partition.incarnation)
            for partition in due
            if self._reported[partition] > self._known[partition]
        }
        if offsets:
            membership.commit(offsets, wait=wait)
            self.note(membership)

    def note(self, membership: Membership) -> None:
        """Note what the brokers have acknowledged."""
        done = membership.acknowledged()
        for partition, offset in list(self._reported.items()):
            known = max(self._known.get(partition, _NOTHING), done.get(place_of(partition), _NOTHING))
            if known > _NOTHING:
                self._known[partition] = known
            if known >= offset:
                del self._reported[partition]

    def forget(self, partitions: Iterable[Partition]) -> None:
        """Forget partitions that are not this member's any more: others may commit them."""
        for partition in partitions:
            self._reported.pop(partition, None)
            self._known.pop(partition, None)

    def _learn(self, membership: Membership, partitions: Collection[Partition]) -> None:
        """Ask what the group had committed before us, so that it never goes back."""
        if not partitions:
            return
        found = membership.committed([place_of(partition) for partition in partitions], ASK_SECONDS)
        for partition in partitions:
            offset, note = found.get(place_of(partition), (_NOTHING, ""))
            self._known[partition] = offset if note in ("", partition.incarnation) else _NOTHING
