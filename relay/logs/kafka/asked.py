"""What the brokers are asked, and what they say of a group."""

import struct
from collections.abc import Callable, Collection
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

Answer = TypeVar("Answer")

Place = tuple[str, int]
"""A topic's name and a partition's number: how Kafka names a partition, of whatever incarnation."""


class Asked(Generic[Answer]):
    """A question that is under way: its answer can be waited for, or looked for now and then.

    Attributes:
        futures: librdkafka's, of its parts.
    """

    def __init__(self, futures: Collection["Future[Any]"], read: Callable[[], Answer]) -> None:
        self.futures = futures
        self._read = read

    @property
    def is_answered(self) -> bool:
        """Whether `answer` returns at once."""
        return all(future.done() for future in self.futures)

    def answer(self) -> Answer:
        """Wait for the answer.

        Raises:
            Retryable: there is none.
            Permanent: we may not ask.
        """
        return self._read()


@dataclass(frozen=True, slots=True)
class GroupMember:
    """One member of a group, as its coordinator knows it.

    Attributes:
        id: given by the coordinator.
        client: what its program calls itself.
        host: where it runs.
        places: what is assigned to it.
    """

    id: str
    client: str
    host: str
    places: frozenset[Place]


@dataclass(frozen=True, slots=True)
class GroupState:
    """A group, as its coordinator knows it; one that nobody knows has no members.

    Attributes:
        is_stable: whether its members know their shares, and none is waited for.
        assignor: how the members divide the partitions.
        members: who they are.
    """

    is_stable: bool = False
    assignor: str = ""
    members: tuple[GroupMember, ...] = ()

    @property
    def places(self) -> frozenset[Place]:
        """What is assigned to any member."""
        return frozenset().union(*(member.places for member in self.members))

    def places_of(self, member: str) -> frozenset[Place] | None:
        """Return what is assigned to a member; None when it is not in the group."""
        return next((one.places for one in self.members if one.id == member), None)


def places_in(assignment: bytes) -> frozenset[Place]:
    """Return what a member's assignment names; nothing, where another program wrote it in a way of its own.

    As Kafka's consumers write it: a version (2 bytes), an array of topics, each with a string and an array of numbers,
    and more that does not matter here. Lengths of arrays have 4 bytes, of strings 2.
    """
    found = set()
    try:
        (topics,) = struct.unpack_from(">i", assignment, 2)
        place = 6
        for _ in range(topics):
            (length,) = struct.unpack_from(">h", assignment, place)
            name = assignment[place + 2 : place + 2 + length].decode()
            place += 2 + length
            (numbers,) = struct.unpack_from(">i", assignment, place)
            found |= {(name, number) for number in struct.unpack_from(f">{numbers}i", assignment, place + 4)}
            place += 4 + 4 * numbers
    except (struct.error, UnicodeDecodeError):
        return frozenset()
    return frozenset(found)
