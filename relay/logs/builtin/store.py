"""What the built-in log asks of a database; one file a dialect answers."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from outbox.message import Epoch, Message, Offset
from relay.logs.cloudevents import wire_headers
from relay.logs.contract import Bounds, Partition, Record


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic of the log."""

    number: int
    name: str
    incarnation: str
    partitions: int

    def parts(self) -> list[Partition]:
        """Return its partitions."""
        return [Partition(self.name, self.incarnation, number) for number in range(self.partitions)]


class WireHeaders(Mapping[str, str]):
    """A record's headers as on the wire, built when somebody looks."""

    __slots__ = ("_built", "_epoch", "_message")

    def __init__(self, message: Message, epoch: Epoch) -> None:
        self._message = message
        self._epoch = epoch
        self._built: dict[str, str] | None = None

    def _all(self) -> dict[str, str]:
        if self._built is None:
            self._built = wire_headers(self._message, self._epoch)
        return self._built

    def __getitem__(self, name: str) -> str:
        return self._all()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())


class Store(Protocol):
    """The log's tables, on one connection. Not safe to use from two threads.

    Every method raises Retryable when the connection is lost (open another), and ConfigurationError when tables are
    missing.
    """

    def identity(self) -> str:
        """Return the log's uuid, made on first use."""
        ...

    def topics(self, names: Sequence[str]) -> dict[str, Topic]:
        """Return those of the topics that exist."""
        ...

    def bounds(self, wanted: Mapping[Partition, Topic]) -> dict[Partition, Bounds]:
        """Return what each partition holds."""
        ...

    def read(
        self, wanted: Sequence[tuple[Partition, Topic, Offset]], *, most_records: int, most_bytes: int
    ) -> dict[Partition, list[Record]]:
        """Return the records from an offset on, at most so many and so large for each partition, but one at least."""
        ...

    def close(self) -> None:
        """Close the connection."""
        ...
