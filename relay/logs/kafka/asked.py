"""Questions to the brokers whose answers can be waited for, or looked for now and then."""

from collections.abc import Callable, Collection
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

Answer = TypeVar("Answer")

Place = tuple[str, int]
"""A topic's name and a partition's number: how Kafka names a partition, of whatever incarnation."""


class Asked(Generic[Answer]):
    """A question that is under way."""

    def __init__(self, futures: Collection["Future[Any]"], read: Callable[[], Answer]) -> None:
        self._futures = futures
        self._read = read

    @property
    def is_answered(self) -> bool:
        """Whether `answer` returns at once."""
        return all(future.done() for future in self._futures)

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
    """A group, as its coordinator knows it.

    Attributes:
        is_known: whether there is such a group; one that has nothing but offsets counts.
        is_stable: whether its members know their shares, and none is waited for.
        assignor: how the members divide the partitions.
        members: who they are.
    """

    is_known: bool
    is_stable: bool
    assignor: str
    members: tuple[GroupMember, ...]

    @property
    def places(self) -> frozenset[Place]:
        """What is assigned to any member."""
        return frozenset().union(*(member.places for member in self.members))
