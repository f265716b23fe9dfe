"""What a group member has been given: its partitions, and how far each is to be read under `once`."""

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol, TypeVar

from sqlalchemy import Connection

from inbox.claims import Claim
from inbox.deduplicate import Deduplicate
from inbox.hands import Hands
from inbox.registration import Registration, refuse_holes
from outbox.message import Offset
from relay.logs.contract import Bounds, Log, Partition
from relay.logs.retention import RetainingLog

T = TypeVar("T")

_logger = logging.getLogger("inbox")


class Member(Protocol):
    """What the membership needs of the loop that it belongs to."""

    def persist(self, work: Callable[[Connection], T]) -> T:
        """Do work in a transaction, as often and as long as it takes."""
        ...

    def ask(self, question: Callable[[], T]) -> T:
        """Ask the log, as often and as long as it takes."""
        ...


class Membership:
    """Listens to the consumer: registers what is new, and begins each lane at its newest claim."""

    def __init__(
        self,
        member: Member,
        hands: Hands,
        log: Log,
        topics: Sequence[str],
        registration: Registration,
        *,
        deduplicate: Deduplicate,
        latest: bool,
    ) -> None:
        self.goals: dict[Partition, Offset] = {}
        self._member = member
        self._hands = hands
        self._log = log
        self._topics = topics
        self._registration = registration
        self._deduplicate = deduplicate
        self._latest = latest

    def register(self) -> None:
        """Register the group with what is there now, also while another member has the partitions.

        Before any partition is assigned: `latest` is for the topics that exist when the group is registered, and one
        that appears later is read from its first record.
        """
        held = self._held()
        is_new = self._member.persist(
            lambda connection: self._registration.register(connection, held, latest=self._latest)
        )
        if self._latest and not is_new:
            _logger.warning("the group is registered already and goes on where it was: --start latest does not count")

    def assigned(self, partitions: Sequence[Partition]) -> Mapping[Partition, Offset]:
        """Return where each partition goes on: at its newest claim.

        Raises:
            Permanent: the log no longer has what comes next.
            ConfigurationError: the group has run the other way, and cannot go on like this.
        """
        held = self._held()
        claims = self._member.persist(lambda connection: self._resume(connection, partitions, held))
        refuse_holes(self._registration.group, claims, held)
        for partition, claim in claims.items():
            self._hands.take(partition, claim)
            self.goals.setdefault(partition, held[partition].end if partition in held else claim.end)
        return {partition: claim.end for partition, claim in claims.items()}

    def revoked(self, partitions: Sequence[Partition]) -> None:
        """Finish what is in hand of these partitions, and forget the rest."""
        self._hands.finish(partitions)
        self._hands.drop(partitions)

    def is_through(self, assignment: Collection[Partition]) -> bool:
        """Return whether each partition that is ours was read to the end it had when first seen, or has stopped."""
        ours = [lane for partition, lane in self._hands.lanes.items() if partition in assignment]
        return all(lane.is_through(self.goals[lane.partition]) for lane in ours)

    def _held(self) -> Mapping[Partition, Bounds]:
        def look() -> Mapping[Partition, Bounds]:
            # First known, then looked: between the two, retention could delete the records that we are to begin with.
            log, topics = self._log, self._topics
            return log.partitions(
                log.enrol(self._registration.group, topics) if isinstance(log, RetainingLog) else topics
            )

        return self._member.ask(look)

    def _resume(
        self, connection: Connection, partitions: Sequence[Partition], held: Mapping[Partition, Bounds]
    ) -> dict[Partition, Claim]:
        self._registration.register(connection, held, latest=False)
        # With each assignment: what is given to us now, a member that runs the other way may have had until now.
        self._deduplicate.look(connection)
        return {partition: self._registration.newest(connection, partition) for partition in partitions}
