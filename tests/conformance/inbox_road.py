"""What the inbox's tests share: a log in memory, messages put into it, and a table for the handlers' effects."""

import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from databases import install, rows
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from inbox import Delivery, Inbox
from outbox.message import Entry, Epoch, Message, Position
from outbox.retry import RetryPolicy
from relay.logs.contract import Log, LogOptions, ProducerIdentity
from relay.logs.registry import open_log

TOPIC = "orders"


def message(payload: str, *, key: str | None = "k", **other: Any) -> Message:
    """A message as an outbox holds it; `id`, `type`, `topic`, `source`, `headers` and `content_type` may be named."""
    made = Message(
        id=uuid.uuid4(),
        topic=TOPIC,
        key=key,
        type="Placed",
        payload=payload.encode(),
        content_type="text/plain; charset=utf-8",
        source="/shop",
    )
    return replace(made, **other)


class Road:
    """One database with our tables and a table of effects, and one log in memory."""

    def __init__(self, database: str, partitions: int = 4) -> None:
        self.database = install(database)
        self.log = f"memory://{uuid.uuid4().hex}?partitions={partitions}"
        self._positions = 0
        identity = ProducerIdentity("default", uuid.uuid4(), uuid.uuid4(), Epoch(1))
        self._producer = self.open_log().producer(identity)
        self._chunks = 0
        number = "integer" if database.startswith("sqlite") else "integer generated always as identity"
        rows(self.database, f"create table effects (number {number} primary key, body text, attempt integer)")

    def open_log(self) -> Log:
        return open_log(self.log, LogOptions())

    def put(self, *messages: Message) -> list[Message]:
        """Bring messages into the log, in this order."""
        entries = []
        for one in messages:
            self._positions += 1
            entries.append(Entry(Position(self._positions), one))
        self._chunks += 1
        self._producer.produce(self._chunks, entries)
        settled = self._producer.settle(10)
        assert settled is not None and settled.failure is None
        return list(messages)

    def write(self, *payloads: str, key: str | None = "k") -> list[Message]:
        return self.put(*(message(one, key=key) for one in payloads))

    @property
    def effects(self) -> list[str]:
        """The bodies in the order in which they were inserted."""
        return [row[0] for row in rows(self.database, "select body from effects order by number")]

    def counts(self, group: str = "billing") -> tuple[int, int, int]:
        """Handled, duplicates and ignored, by the newest claim of each partition."""
        found = rows(
            self.database,
            "select coalesce(sum(handled), 0), coalesce(sum(duplicates), 0), coalesce(sum(ignored), 0)"
            " from inbox_offset o"
            " where consumer_group = ? and partition >= 0 and step = (select max(step) from inbox_offset n where"
            " n.consumer_group = o.consumer_group and n.incarnation = o.incarnation and n.partition = o.partition)",
            group,
        )
        return tuple(int(one) for one in found[0])

    def ids(self, group: str = "billing") -> int:
        """How many messages the group remembers."""
        return int(rows(self.database, "select count(*) from inbox where consumer_group = ?", group)[0][0])


INSERT = "insert into effects (body, attempt) values (:body, :attempt)"


@contextmanager
def running(run: Any, *arguments: Any, **named: Any) -> Iterator[threading.Event]:
    """Run an inbox in a thread; on leaving the block it is stopped, and its error raised."""
    stop = threading.Event()
    failed: list[BaseException] = []

    def target() -> None:
        try:
            run(*arguments, stop=stop, **named)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=target)
    thread.start()
    try:
        yield stop
    finally:
        stop.set()
        thread.join(30)
        assert not thread.is_alive(), "the inbox did not stop"
    if failed:
        raise failed[0]


def on(inbox: Inbox, kind: str, body: Callable[[Delivery[Any], Session], None], **options: Any) -> None:
    """Register one body as a `def` or as an `async def` handler."""
    options.setdefault("retry", RetryPolicy(first_seconds=0.01))
    if kind == "def":

        @inbox.handler(TOPIC, **options)
        def handle(delivery: Delivery[Any], session: Session) -> None:
            body(delivery, session)

    else:

        @inbox.handler(TOPIC, **options)
        async def handle_async(delivery: Delivery[Any], session: AsyncSession) -> None:
            await session.run_sync(lambda inner: body(delivery, inner))


def effect(delivery: Delivery[Any], session: Session | Connection) -> None:
    """What handlers do unless a test says otherwise: one row a message."""
    session.execute(text(INSERT), {"body": delivery.data, "attempt": delivery.attempt})
