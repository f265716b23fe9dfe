"""A group's registration, and where it resumes: from its newest claims, never from the log's own offsets.

The registration rows have partition -1 and are never pruned, so step 0 of a partition is made once: made again after
the claims were pruned, it would hand out everything a second time. The group's own row has an empty incarnation.
"""

import logging
from collections.abc import Mapping

from sqlalchemy import ColumnElement, Connection, Table, delete, insert, select, update

from inbox.claims import Claim, forgotten_words
from outbox.errors import Forgotten, Permanent
from outbox.message import Offset
from relay.logs.contract import Bounds, Partition

REGISTRATION = -1
_GROUP = Partition("", "", REGISTRATION)
_BEING_FORGOTTEN = "(being forgotten)"
"""Stands as topic in the group's own row, which has none; no topic's name has such characters."""

_logger = logging.getLogger("inbox")


class Registration:
    """What one group has registered in the handler's database."""

    def __init__(self, offsets: Table, group: str) -> None:
        self._offsets = offsets
        self.group = group

    def register(self, connection: Connection, held: Mapping[Partition, Bounds], *, latest: bool) -> bool:
        """Make step 0 of every partition that is not known yet; return whether the group is new.

        Args:
            connection: in a transaction.
            held: every partition of the group's topics that exist, and what it holds.
            latest: a new group begins at the end of what is there; what appears later is read from its first record.
        """
        is_new = self._lock_group(connection)
        for topic in sorted({partition[:2] for partition in held}):
            partitions = sorted(partition for partition in held if partition[:2] == topic)
            self._register_topic(connection, partitions, held, latest=latest and is_new)
        return is_new

    def newest(self, connection: Connection, partition: Partition) -> Claim:
        """Return the newest claim of a partition.

        Raises:
            Forgotten: there is none: the group was forgotten, or the topic made anew, under this process.
        """
        offsets = self._offsets
        # By the end of the index and by nothing wider: there may be many rows between two prunings.
        row = connection.execute(
            select(offsets.c.step, offsets.c.end_offset)
            .where(*self._of(partition))
            .order_by(offsets.c.step.desc())
            .limit(1)
        ).one_or_none()
        if row is None:
            raise Forgotten(forgotten_words(self.group, partition.topic))
        return Claim(row.step, Offset(row.end_offset))

    def prune(self, connection: Connection, partition: Partition, claim: Claim, low: int) -> None:
        """Delete the partition's claims from step `low` up to the newest, which stays."""
        step = self._offsets.c.step
        connection.execute(delete(self._offsets).where(*self._of(partition), step >= low, step < claim.step))

    def begin_to_forget(self, connection: Connection) -> None:
        """Delete claims and registrations; what stays is the group's own row, by which nobody can register meanwhile.

        Raises:
            Fenced: the group is registered for the first time at this moment: try again.
        """
        group, offsets = self._of(_GROUP), self._offsets
        # The group's row first: whoever registers waits for it, and finds the mark.
        if not connection.execute(update(offsets).where(*group).values(topic=_BEING_FORGOTTEN)).rowcount:
            connection.execute(insert(offsets).values(self._row(_GROUP, 0, Offset(0)) | {"topic": _BEING_FORGOTTEN}))
        rest = delete(offsets).where(
            offsets.c.consumer_group == self.group, offsets.c.incarnation != _GROUP.incarnation
        )
        # Again until none is left: a consumer that held the newest claim while we waited for it has made one more.
        while connection.execute(rest).rowcount:
            pass

    def end_to_forget(self, connection: Connection) -> None:
        """Delete the mark: the group can be registered anew."""
        connection.execute(delete(self._offsets).where(*self._of(_GROUP), self._offsets.c.topic == _BEING_FORGOTTEN))

    def _lock_group(self, connection: Connection) -> bool:
        """Let registrations of one group come one after the other; return whether this is the first."""
        known = select(self._offsets.c.topic).where(*self._of(_GROUP)).with_for_update()
        found = connection.execute(known).one_or_none()
        if found is not None and found.topic == _BEING_FORGOTTEN:
            raise Permanent(
                f"group {self.group!r} is being forgotten, and some of what it remembers is gone already: let "
                f"`inbox forget {self.group}` come to its end, then start again"
            )
        if found is not None:
            return False
        # Two first registrations at once: the second finds the row, fails, and is repeated.
        connection.execute(insert(self._offsets).values(self._row(_GROUP, 0, Offset(0))))
        return True

    def _register_topic(
        self, connection: Connection, partitions: list[Partition], held: Mapping[Partition, Bounds], *, latest: bool
    ) -> None:
        topic = partitions[0]
        registration = topic._replace(number=REGISTRATION)
        count = max(partition.number for partition in partitions) + 1
        known = self._known(connection, registration)
        if known == 0:
            self._forget_others(connection, topic)
        if count <= known:
            return
        rows = [self._row(registration, count, Offset(0))]
        rows += [
            self._row(partition, 0, _begin(held[partition], first_time=known == 0, latest=latest))
            for partition in partitions
            if partition.number >= known
        ]
        connection.execute(insert(self._offsets), rows)

    def _known(self, connection: Connection, registration: Partition) -> int:
        step = self._offsets.c.step
        newest = select(step).where(*self._of(registration)).order_by(step.desc()).limit(1)
        return int(connection.scalar(newest) or 0)

    def _forget_others(self, connection: Connection, topic: Partition) -> None:
        """Delete the claims of earlier incarnations of this topic. The ids stay: a message is who it is."""
        offsets = self._offsets
        gone = connection.execute(
            delete(offsets).where(
                offsets.c.consumer_group == self.group,
                offsets.c.topic == topic.topic,
                offsets.c.incarnation != topic.incarnation,
                offsets.c.incarnation != _GROUP.incarnation,
            )
        ).rowcount
        if gone:
            _logger.warning("topic %s was made anew: group %s reads it from its first record", topic.topic, self.group)

    def _of(self, partition: Partition) -> tuple[ColumnElement[bool], ...]:
        offsets = self._offsets
        return (
            offsets.c.consumer_group == self.group,
            offsets.c.incarnation == partition.incarnation,
            offsets.c.partition == partition.number,
        )

    def _row(self, partition: Partition, step: int, offset: Offset) -> dict[str, object]:
        return {
            "consumer_group": self.group,
            "incarnation": partition.incarnation,
            "partition": partition.number,
            "step": step,
            "topic": partition.topic,
            "begin_offset": offset,
            "end_offset": offset,
            "handled": 0,
            "duplicates": 0,
            "ignored": 0,
        }


def _begin(bounds: Bounds, *, first_time: bool, latest: bool) -> Offset:
    if latest:
        return bounds.end
    # A partition that was added to a topic we know begins at 0: what is gone below its first record, we have missed.
    return bounds.first if first_time else Offset(0)


def refuse_holes(group: str, resumed: Mapping[Partition, Claim], held: Mapping[Partition, Bounds]) -> None:
    """See that the log still has, and has already, the records that the group goes on with.

    Raises:
        Permanent: it has not; going on would skip messages without a word.
    """
    for partition, claim in resumed.items():
        bounds = held.get(partition)
        if bounds is not None and not bounds.first <= claim.end <= bounds.end:
            missed = (
                f"the log begins at {bounds.first}, so records were deleted before they were handled"
                if claim.end < bounds.first
                else f"the log ends at {bounds.end}, so it has lost records that were handled"
            )
            raise Permanent(
                f"group {group!r} goes on with topic {partition.topic!r}, partition {partition.number}, at offset "
                f"{claim.end}, and {missed}: find out which; a group of another name reads what is there"
            )
