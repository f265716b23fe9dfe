"""Members that each believe they own every partition."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal

from inbox_road import Road, on, running
from sqlalchemy import MetaData
from sqlalchemy.orm import Session

from inbox import Delivery, Inbox
from inbox.claims import Limits, dialect_for
from inbox.deduplicate import ById, ByOffset
from inbox.handlers import Handlers
from inbox.hands.many import Worker
from inbox.loop import Loop, Manner
from inbox.registration import Registration
from inbox.transactions import Target, ThreadTransactions
from outbox.process.urls import parse_url
from outbox.tables import inbox_tables
from outbox.tables.names import Place

GROUP = "billing"


class Twin:
    """A member that believes it owns every partition: to the log it is a group of its own, to the database not."""

    def __init__(
        self,
        road: Road,
        name: str,
        body: Callable[[Delivery[str], Session], None],
        *,
        concurrency: int = 1,
        deduplicate: Literal["id", "offset"] = "id",
        **options: Any,
    ) -> None:
        self.inbox = Inbox(GROUP, deduplicate=deduplicate)
        self._way = ByOffset if deduplicate == "offset" else ById
        on(self.inbox, "def", body, **options)
        self._handlers: Handlers = self.inbox._handlers
        self._road, self._name, self._concurrency = road, name, concurrency

    def run(self, stop: threading.Event) -> None:
        url = parse_url(self._road.database)
        target = Target(url, dialect_for(url, Place(), GROUP), Limits(self._handlers.timeout_seconds), Place())
        others = target.dialect.others(self._concurrency) if self._concurrency > 1 else []
        tables = inbox_tables(MetaData())
        Loop(
            self._road.open_log(),
            f"{GROUP}-{self._name}",
            self._handlers,
            transactions=ThreadTransactions(target),
            target=target,
            registration=Registration(tables.inbox_offset, GROUP),
            deduplicate=self._way(tables, GROUP, target.dialect),
            manner=Manner(once=False, latest=False, stop=stop, wait_seconds=10),
            workers=[Worker(ThreadTransactions(replace(target, dialect=one)), one) for one in others],
        ).run()


@contextmanager
def twins(*all_of_them: Twin) -> Iterator[None]:
    """Run them all."""
    if not all_of_them:
        yield
        return
    with running(all_of_them[0].run), twins(*all_of_them[1:]):
        yield
