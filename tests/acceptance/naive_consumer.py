"""A consumer as many are written, to be run in place of `inbox run`: it handles a message, commits, and goes on.

Where it is, it saves in a file, every ten messages. It remembers no ids: what a kill catches it at, it handles again.

python -m tests.acceptance.naive_consumer MODULE:ATTR FILE
"""

import json
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from inbox import Delivery
from inbox.loading import load_inbox
from outbox import Message, correlate

SAVED_EVERY = 10
POLL_SECONDS = 0.05
RECORDS = """
    select id, name, key, type, payload, content_type, source, "partition", "offset"
    from log_record join log_topic using (topic_id) where name = %s and "partition" = %s and "offset" >= %s
    order by "offset" limit 100
"""


def records(log: psycopg.Connection[Any], topics: list[str], offsets: dict[str, int]) -> Iterator[Message]:
    """Yield what has come since; the offsets are moved on when the next one is asked for."""
    known = log.execute("select name, generate_series(0, partitions - 1) from log_topic where name = any(%s)", [topics])
    for topic, partition in known.fetchall():
        place = f"{topic}/{partition}"
        for row in log.execute(RECORDS, [topic, partition, offsets.get(place, 0)]).fetchall():
            identity, _, key, kind, payload, content_type, source, _, offset = row
            yield Message(identity, topic, key, kind, payload, content_type, {}, source)
            offsets[place] = offset + 1


def main(path: str, file: Path) -> None:
    inbox = load_inbox(path)
    engine = create_engine(os.environ["DATABASE_URL"])
    offsets: dict[str, int] = json.loads(file.read_text()) if file.exists() else {}
    handled = 0
    log_url = os.environ["INBOX_LOG"].replace("+psycopg", "").partition("?")[0]
    with psycopg.connect(log_url, autocommit=True) as log:
        while True:
            before = handled
            for message in records(log, inbox._handlers.topics, offsets):
                handler = inbox._handlers.for_message(message)
                cause = str(message.id)
                with Session(engine) as session, session.begin(), correlate(causation_id=cause):
                    if handler is not None:
                        handler.function(Delivery(message, decoder=handler.decoder), session)
                handled += 1
                if handled % SAVED_EVERY == 0:
                    save(file, offsets)
            if handled == before:
                threading.Event().wait(POLL_SECONDS)


def save(file: Path, offsets: dict[str, int]) -> None:
    """Write the file whole or not at all."""
    unfinished = file.with_suffix(f".{os.getpid()}")
    unfinished.write_text(json.dumps(offsets))
    unfinished.rename(file)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
