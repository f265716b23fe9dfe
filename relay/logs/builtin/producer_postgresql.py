"""Appending to a built-in log on PostgreSQL from another database: by COPY into a staging table, and from there."""

import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from outbox.errors import Fenced, MessageAtFault, OutboxError, Permanent
from outbox.journal.postgresql import PostgresqlJournal, prune_steps
from outbox.message import Entry
from outbox.process.postgresql import Connection, connect, execute, translated
from relay.logs.builtin.address import Address
from relay.logs.builtin.append_postgresql import SOURCE, WHERE, Append, Appended, append, make_topics
from relay.logs.builtin.postgresql import PLANNER
from relay.logs.builtin.producer import LOCK_SHARE, STATEMENT_SHARE, Copied, prune_now_and_then
from relay.logs.cloudevents import source_of
from relay.logs.contract import ProducerIdentity

COLUMNS = {
    "position": "int8",
    "id": "uuid",
    "source": "text",
    "topic": "text",
    "key": "text",
    "type": "text",
    "payload": "bytea",
    "content_type": "text",
    "headers": "json",
    "created_at": "timestamptz",
}
"""Of the staging table, in the order of the COPY that fills it."""
STAGING = "pg_temp.log_staging"
_ATTEMPTS = 5


class PostgresqlAppender:
    """One connection to the log's tables; see `Appender`."""

    def __init__(self, address: Address, identity: ProducerIdentity) -> None:
        self._address = address
        self._identity = identity
        self._source = source_of(identity.installation)
        self._table = address.place.sql("log_chunk")
        self._key = {"incarnation": identity.incarnation}
        self._journal = PostgresqlJournal(self._table, self._key, ("epoch", "number", "relay", "installation"))
        self._opened: Connection | None = None
        self._step = 0
        self._pruned = 0
        self._lowest = 0

    @property
    def _connection(self) -> Connection:
        assert self._opened is not None  # noqa: S101 - `open` comes first
        return self._opened

    def open(self) -> int:
        """Connect, fence older epochs, and return the number of the last chunk; see `Appender.open`."""
        seconds = self._identity.lease_seconds
        self._opened = connect(
            self._address.url,
            name=f"relay {self._identity.relay} log",
            statement_seconds=seconds * STATEMENT_SHARE,
            lock_seconds=seconds * LOCK_SHARE,
            # Should this process be stopped between the COPY and the append: no lock is held, but a transaction is.
            settings={**PLANNER, "idle_in_transaction_session_timeout": f"{int(seconds * 1000)}"},
            connect_seconds=max(2, int(seconds * STATEMENT_SHARE)),
        )
        columns = ", ".join(f"{name} {kind}" for name, kind in COLUMNS.items())
        # Once a connection, and emptied by the commit: neither leaves dead rows in the catalogs, as TRUNCATE would.
        self._all(f"create temporary table log_staging ({columns}) on commit delete rows")
        # The row that appends lock: without it, two services' relays would draw the same offsets.
        self._all(f"insert into {self._address.place.sql('log_identity')} (single) values (1) on conflict do nothing")
        return self._take()

    def _take(self) -> int:
        identity = self._identity
        bound = {"relay": identity.relay, "installation": identity.installation, "epoch": identity.epoch}
        self._all(
            f"insert into {self._table} (incarnation, step, epoch, number, relay, installation)"
            " select %(key_incarnation)s, 0, %(epoch)s, 0, %(relay)s, %(installation)s"
            f" where not exists (select from {self._table} where incarnation = %(key_incarnation)s)"
            " on conflict do nothing",
            **bound,
        )
        values = {"epoch": "%(epoch)s", "relay": "%(relay)s", "installation": "%(installation)s"}
        taken = self._journal.insert(values, where="cur.epoch <= %(epoch)s")
        for _ in range(_ATTEMPTS):
            # An append of the one before us was under way and has inserted the step after the one we locked.
            with suppress(Fenced):
                (row,) = self._all(
                    f"with cur as ({self._journal.newest()}), taken as ({taken})"
                    " select cur.epoch as newest, taken.step, taken.number from cur left join taken on true",
                    **bound,
                )
                break
        else:
            raise Fenced(f"relay {identity.relay!r}: others go on appending to this log with the same incarnation")
        if row["step"] is None:
            raise Fenced(
                f"relay {identity.relay!r} produces with epoch {row['newest']} by now; this one has {identity.epoch}"
            )
        self._step = self._pruned = row["step"]
        return int(row["number"])

    def append(self, number: int, chunk: Sequence[Entry] | Copied) -> None:
        """Store the chunk's records and its number; see `Appender.append`."""
        while missing := self._append(number, chunk):
            address = self._address
            make_topics(self._connection, address.place, missing, address.partitions, address.retain_seconds)
        self._pruned = prune_now_and_then(self._pruned, self._step, self._prune)

    def _append(self, number: int, chunk: Sequence[Entry] | Copied) -> tuple[str, ...]:
        """Append, or return the topics that are missing."""
        entries = chunk.entries if isinstance(chunk, Copied) else len(chunk)
        try:
            self._stage(chunk)
            appended = append(self._connection, self._address.place, self._work(number, entries))
        except OutboxError:
            with translated():
                self._connection.rollback()
            raise
        if appended.missing:
            return appended.missing
        if appended.step is None:
            raise _not_stored(number, entries, appended)
        self._step = appended.step["step"]
        return ()

    def _stage(self, chunk: Sequence[Entry] | Copied) -> None:
        self._all("begin")
        statement = f"copy {STAGING} from stdin (format binary)".encode()
        with translated(), self._connection.cursor().copy(statement) as copy:
            if isinstance(chunk, Copied):
                copy.write(chunk.data)
                return
            copy.set_types(list(COLUMNS.values()))
            for entry in chunk:
                copy.write_row(_row(entry))

    def _work(self, number: int, entries: int) -> Append:
        return Append(
            select=f"select * from {STAGING}",
            current=self._journal.standing(),
            following=self._journal.insert({"number": "cur.number + 1"}, source=SOURCE, where=WHERE),
            parameters={
                **self._journal.parameters,
                "step": self._step,
                "epoch": self._identity.epoch,
                "before": number - 1,
                "expected": entries,
            },
            source=self._source,
            fit="cur.number = %(before)s and tally.entries = %(expected)s",
            end=";commit",
        )

    def fault(self, entry: Entry) -> str | None:
        """Return why PostgreSQL cannot store an entry: a text of SQLite may hold what it has no room for."""
        message = entry.message
        for name, text in (("key", message.key), ("type", message.type), ("content type", message.content_type)):
            if text is not None and not _storable(text):
                return f"its {name} has a NUL character, or is no UTF-8"
        return None if message.source is None or _storable(message.source) else "its source has a NUL character"

    def _prune(self) -> None:
        self._lowest = prune_steps(self._connection, self._table, self._key, newest=self._step, lowest=self._lowest)

    def abort(self) -> None:
        """End the connection under whoever waits on it."""
        if self._opened is None:
            return
        # Its other thread may find the connection closed at the same moment.
        with suppress(OSError, OutboxError), translated(), socket.socket(fileno=os.dup(self._opened.fileno())) as ours:
            ours.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connection."""
        if self._opened is not None:
            self._opened.close()

    def _all(self, statement: str, **parameters: Any) -> list[dict[str, Any]]:
        with translated():
            cursor = execute(self._connection, statement, {**self._journal.parameters, **parameters})
            return cursor.fetchall() if cursor.description else []


def _row(entry: Entry) -> tuple[object, ...]:
    message = entry.message
    headers = dict(message.headers) or None
    return (
        entry.position, message.id, message.source, message.topic, message.key, message.type, message.payload,
        message.content_type, headers, message.time or datetime.now(UTC),
    )  # fmt: skip


def _storable(text: str) -> bool:
    return "\0" not in text and text.encode(errors="replace").decode() == text


def _not_stored(number: int, entries: int, appended: Appended) -> OutboxError:
    if appended.fault is not None:
        identity, topic, position = appended.fault
        return MessageAtFault(
            f"message {identity} of topic {topic!r} (position {position}) cannot be moved: its headers are not a JSON"
            " object of texts; delete its row in the outbox, and write the message anew"
        )
    return Permanent(
        f"chunk {number} was begun with {entries} messages and came with {appended.entries}: entries were deleted, or"
        " another program writes to our staging table; nothing was stored. Start the relay again"
    )
