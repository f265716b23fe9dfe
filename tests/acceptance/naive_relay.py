"""A relay as many are written, to be run in place of `relay run`: it sends what lies behind its last position.

Where it is, it saves in a file, every ten messages: what a kill catches it at, it sends again. And positions are drawn
before they are committed: what commits late lies behind it, and is never sent.

python -m tests.acceptance.naive_relay FILE
"""

import os
import sys
import threading
from pathlib import Path

import psycopg

SAVED_EVERY = 10
PARTITIONS = 4
POLL_SECONDS = 0.05
ENTRIES = """
    select position, id, source, topic, key, type, content_type, headers::text, payload from outbox
    where position > %s order by position limit 100
"""
TOPIC = "insert into log_topic (name, partitions) values (%s, %s) on conflict do nothing"
APPEND = """
    with place as (
        select topic_id, abs(hashtext(%(key)s)) %% partitions as partition from log_topic where name = %(topic)s
    )
    insert into log_record
        (topic_id, "partition", "offset", sequence, epoch, id, source, key, type, content_type, time, headers, payload)
    select topic_id, partition,
           (select coalesce(max(r."offset") + 1, 0) from log_record r
            where r.topic_id = place.topic_id and r."partition" = place.partition),
           %(position)s, 1, %(id)s, %(source)s, %(key)s, %(type)s, %(content_type)s, now(), %(headers)s::json,
           %(payload)s
    from place
"""
NAMES = ("position", "id", "source", "topic", "key", "type", "content_type", "headers", "payload")


def main(file: Path) -> None:
    last = int(file.read_text()) if file.exists() else 0
    sent = 0
    database, log = (
        os.environ[name].replace("+psycopg", "").partition("?")[0] for name in ("DATABASE_URL", "RELAY_LOG")
    )
    with psycopg.connect(database, autocommit=True) as source, psycopg.connect(log, autocommit=True) as target:
        while True:
            rows = source.execute(ENTRIES, [last]).fetchall()
            for row in rows:
                entry = dict(zip(NAMES, row, strict=True))
                with target.transaction():
                    target.execute("lock table log_topic in exclusive mode")  # the offsets have no holes
                    target.execute(TOPIC, [entry["topic"], PARTITIONS])
                    target.execute(APPEND, entry)
                last, sent = entry["position"], sent + 1
                if sent % SAVED_EVERY == 0:
                    file.write_text(str(last))
            if not rows:
                threading.Event().wait(POLL_SECONDS)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
