"""Where a relay stands in its outbox."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from outbox.message import Position

BEGINNING = "1:1:"
"""A snapshot that sees no transaction: reading begins with the oldest entry that is kept."""
COLUMNS = ("snapshot_from", "snapshot_to", "last", "position")
STATE = (*COLUMNS, "chunk", "open_last", "open_entries", "open_digest", "maybe_lost")
"""What a relay's journal carries on from step to step."""


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

    def behind(self, last: Position) -> "Checkpoint":
        """Return the checkpoint further on in the same window."""
        return replace(self, last=last, position=max(self.position, last))


@dataclass(frozen=True, slots=True)
class OpenChunk:
    """A chunk that was begun: how far it reaches, and what it held then.

    Attributes:
        last: the position of its last entry.
        entries: how many.
        digest: of their ids; 64 bits, signed.
    """

    last: Position
    entries: int
    digest: int


@dataclass(frozen=True, slots=True)
class Numbered:
    """Where a relay stands whose log keeps the number of its last chunk.

    Attributes:
        checkpoint: behind the chunks that are done; an open one begins here.
        chunk: how many are done.
        open: the next one, if it was begun and is not known to be in the log.
    """

    checkpoint: Checkpoint
    chunk: int
    open: OpenChunk | None

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> "Numbered":
        """Return what a journal's row says."""
        last = state["open_last"]
        begun = None if last is None else OpenChunk(last, state["open_entries"], state["open_digest"])
        return cls(Checkpoint.of(state), state["chunk"], begun)

    def columns(self) -> dict[str, Any]:
        """Return it as a journal's columns."""
        begun = self.open
        return {
            **self.checkpoint.columns(),
            "chunk": self.chunk,
            "open_last": begun and begun.last,
            "open_entries": begun and begun.entries,
            "open_digest": begun and begun.digest,
        }
