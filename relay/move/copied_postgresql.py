"""Chunks that pass from one PostgreSQL to another as bytes: no row becomes an object, and no lock is held meanwhile."""

from dataclasses import replace
from typing import Any

from outbox.errors import MessageAtFault, Retryable
from outbox.message import Position
from outbox.process.postgresql import Connection, execute, translated
from relay.checkpoint import Checkpoint, OpenChunk
from relay.logs.builtin.producer import Copied
from relay.move.chunks import Ahead, Formed, changed
from relay.reader.contract import Limits, Query
from relay.reader.postgresql import PostgresqlReader, Selection

BOUNDS = """
select count(*) as entries, max(position) as last, coalesce(bit_xor(uuid_hash_extended(id, 0)), 0) as digest,
  min(position) filter (where headers is not null and json_typeof(headers) <> 'object') as fault
from ({select}) as chunk
"""


class CopiedChunks:
    """Reads chunks as the bytes of a COPY, on the relay's own connection; see `Chunks`."""

    def __init__(self, connection: Connection, reader: PostgresqlReader) -> None:
        self._connection = connection
        self._reader = reader

    def form(self, checkpoint: Checkpoint, limits: Limits) -> Ahead:
        """Read the next chunk; see `Chunks.form`."""
        checkpoint, selection = self._reader.look(checkpoint, limits)
        if selection is None:
            return Ahead(checkpoint, None, empty=True)
        found = self._bounds(self._reader.query(selection, limits))
        if found["fault"] is not None:
            fault = Position(found["fault"])
            selection = self._reader.before(selection, fault)
            found = self._bounds(self._reader.query(selection, limits))
            if not found["entries"]:
                raise self._fault(selection, fault)
        if not found["entries"]:
            return Ahead(self._reader.passed(selection), None)
        bounds = OpenChunk(Position(found["last"]), found["entries"], found["digest"])
        after = self._reader.behind(selection, bounds.last)
        return Ahead(checkpoint, Formed(bounds, self._copied(selection, bounds), after))

    def expect(self, checkpoint: Checkpoint, limits: Limits) -> None:
        """Do nothing: what is copied is known when its bounds are."""

    def again(self, checkpoint: Checkpoint, bounds: OpenChunk) -> Formed[Copied]:
        """Read an open chunk; see `Chunks.again`."""
        selection = self._reader.within(checkpoint, bounds.last)
        found = self._bounds(Query(*self._reader.whole(selection), {}))
        if OpenChunk(found["last"], found["entries"], found["digest"]) != bounds:
            raise changed(bounds, found["entries"])
        return Formed(bounds, self._copied(selection, bounds), checkpoint.behind(bounds.last))

    def _bounds(self, query: Query) -> dict[str, Any]:
        with translated():
            row = execute(self._connection, BOUNDS.format(select=query.select), query.parameters).fetchone()
        if row is None:
            raise Retryable("the database gave no answer")
        return row

    def _copied(self, selection: Selection, bounds: OpenChunk) -> Copied:
        select, parameters = self._reader.whole(replace(selection, upto=bounds.last, end=None))
        statement = f"copy ({select}) to stdout (format binary)".encode()
        with translated(), self._connection.cursor().copy(statement, parameters) as copy:
            return Copied(b"".join(copy), bounds.entries)

    def _fault(self, selection: Selection, position: Position) -> MessageAtFault:
        behind = selection.checkpoint.behind(Position(position - 1))
        select, parameters = self._reader.whole(replace(selection, checkpoint=behind, upto=position))
        with translated():
            row = execute(self._connection, select, parameters).fetchone()
        identity, topic = (row["id"], row["topic"]) if row else ("(gone)", "")
        return MessageAtFault(
            f"message {identity} of topic {topic!r} (position {position}) cannot be moved: its headers are not a JSON"
            " object of texts; delete its row in the outbox, and write the message anew"
        )
