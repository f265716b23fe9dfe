"""An Outbox that records. All but its INSERT is the product's own: hooks, savepoints, errors."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from uuid import UUID

from outbox.message import Message
from outbox.outbox import Outbox
from outbox.testing.recording import RecordedInsert, Recording


class RecordingOutbox(Outbox, Recording):
    """An Outbox that needs no table: what its transactions commit is in `messages`.

    For sessions and connections of any database that an Outbox works on, SQLite in memory too. It takes the arguments
    that `Outbox` takes, and refuses what `Outbox` refuses.
    """

    def __init__(self, **options: Any) -> None:
        Outbox.__init__(self, **options)
        Recording.__init__(self)
        self._insert = RecordedInsert(self._insert, self, insert=False)


@contextmanager
def recording(outbox: Outbox, *, insert: bool = False) -> Iterator[Recording]:
    """Record what is written to an application's own Outbox inside this block.

    A message counts when its transaction commits, be it after the block.

    Args:
        outbox: the application's; it is as before when the block ends.
        insert: insert the messages into the table as well; otherwise the table need not exist.
    """
    recorded = Recording()
    own = outbox._insert  # noqa: SLF001 - the one place where a test and the product part
    outbox._insert = RecordedInsert(own, recorded, insert=insert)  # noqa: SLF001
    try:
        yield recorded
    finally:
        outbox._insert = own  # noqa: SLF001


def message(
    *,
    topic: str,
    payload: Any,
    key: str | None = None,
    type: str | None = None,  # noqa: A002 - the word of `write`
    headers: Mapping[str, str] | None = None,
    id: UUID | None = None,  # noqa: A002 - the same
    source: str | None = None,
) -> Message:
    """Return the message that `Outbox(source=source).write` would store; see there for the arguments.

    Raises:
        WriteError: `write` would refuse it.
    """
    write = {"topic": topic, "payload": payload, "key": key, "type": type, "headers": headers, "id": id}
    return Outbox(source=source)._message(**write)  # noqa: SLF001 - what `write` itself calls
