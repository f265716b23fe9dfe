"""Where a relay stands in its outbox."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from outbox.message import Position

BEGINNING = "1:1:"
"""A snapshot that sees no transaction: reading begins with the oldest entry that is kept."""
COLUMNS = ("snapshot_from", "snapshot_to", "last", "position")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The state that a relay saves: (S0, S1, last position between them).

    Attributes:
        snapshot_from: S0: everything that it sees is done.
        snapshot_to: S1: the window being read is what S1 sees and S0 does not; None between two windows.
        last: the last position done inside that window; 0 between two windows. On SQLite, the last position done.
        position: the highest position done, for people to read.
    """

    snapshot_from: str
    snapshot_to: str | None
    last: Position
    position: Position

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> "Checkpoint":
        """Return the checkpoint in a journal's row."""
        return cls(**{name: state[name] for name in COLUMNS})

    def columns(self) -> dict[str, Any]:
        """Return the checkpoint as a journal's columns."""
        return asdict(self)
