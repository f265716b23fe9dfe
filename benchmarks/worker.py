"""What is measured, in a process of its own, as it would be in life; and the bare loops that are its limit.

All of them import the same modules and are timed from before they connect until they are done.
"""

import json
import logging
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
from psycopg import Connection

from benchmarks.bare_producing import bare_produces
from benchmarks.began import Began
from benchmarks.handlers import inbox_handles, loop_handles
from relay import Relay
from relay.reader.contract import MOST_ENTRIES

CHUNK = MOST_ENTRIES
"""Entries a chunk; the relay's own bound, where payloads are small."""
PARTITIONS = 8
WRITERS = 4
FETCH = (
    "select position, id, coalesce(source, '/measured'), topic, key, type, payload, content_type, headers::text,"
    " created_at from outbox where position > %s order by position limit %s"
)
COPY = (
    'copy bare_record (topic_id, partition, "offset", sequence, epoch, id, source, key, type, content_type, time,'
    " headers, payload) from stdin"
)
TYPES = ("int4", "int4", "int8", "int8", "int8", "uuid", "text", "text", "text", "text", "timestamptz", "text", "bytea")


class _Lease(logging.Handler):
    """Notes when the relay says that it has the lease: what it looked at before is done once in its life."""

    taken: Began | None = None

    def emit(self, record: logging.LogRecord) -> None:
        if "has the lease" in record.msg:
            self.taken = Began.now()


def relay(
    database: str,
    log: str,
    name: str,
    *,
    start: str = "earliest",
    retain_days: int = 1,
    delivery: str = "at-least-once",
) -> Began | None:
    """Move all there is, by the relay; return when it had its lease."""
    lease = _Lease()
    logging.getLogger("relay").addHandler(lease)
    logging.getLogger("relay").setLevel(logging.INFO)
    retain = timedelta(days=retain_days)
    Relay(database, log, name=name, start=start, retain=retain, delivery=delivery).run(once=True)
    return lease.taken


def bare(database: str, log: str, *, binary: bool) -> Began:
    """Move all there is as the smallest loop would: fetch a chunk, COPY it into a table like the log's, commit.

    Args:
        database: where the entries are.
        log: where the table is.
        binary: tuned: both ways in the server's binary formats; not so: as psycopg's manual has it.
    """
    with psycopg.connect(database, autocommit=True) as source, psycopg.connect(log) as target:
        began = Began.now()
        _bare_until_empty(source, source if database == log else target, 0, binary=binary)
        return began


def _bare_until_empty(source: Connection[Any], target: Connection[Any], last: int, *, binary: bool = True) -> int:
    while rows := source.execute(FETCH, (last, CHUNK), binary=binary).fetchall():
        with target.transaction(), target.cursor().copy(COPY + " (format binary)" * binary) as copy:
            if binary:
                copy.set_types(TYPES)
            for position, identity, origin, _, key, kind, payload, content_type, headers, created_at in rows:
                copy.write_row(
                    (
                        1,
                        position % PARTITIONS,
                        position,
                        position,
                        1,
                        identity,
                        origin,
                        key,
                        kind,
                        content_type,
                        created_at,
                        headers,
                        payload,
                    )
                )
        last = rows[-1][0]
    return last


def bare_follow(database: str, wait_seconds: float) -> None:
    """Go on moving as the smallest loop would, until standard input ends."""
    ended = _ended()
    with psycopg.connect(database, autocommit=True) as source:
        last = 0
        while not ended.is_set():
            before, last = last, _bare_until_empty(source, source, last)
            if last == before:
                ended.wait(wait_seconds)


def relay_follow(database: str, log: str, name: str) -> None:
    """Run the relay until standard input ends."""
    Relay(database, log, name=name).run(stop=_ended())


def write_steadily(database: str, a_second: int, seconds: float) -> dict[str, Any]:
    """Write messages by plain SQL at a steady pace; return when the COMMIT of each came back."""
    committed: dict[str, float] = {}
    begun = time.monotonic() + 0.2

    def write(writer: int) -> None:
        with psycopg.connect(database, autocommit=True) as connection:
            for number in range(writer, int(a_second * seconds), WRITERS):
                time.sleep(max(0.0, begun + number / a_second - time.monotonic()))
                payload = str(number)
                connection.execute(
                    "insert into outbox (topic, key, payload) values ('orders', %s, %s)",
                    (str(number % 100), payload.encode()),
                )
                committed[payload] = time.monotonic()

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(WRITERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {"committed": committed}


def _ended() -> threading.Event:
    ended = threading.Event()

    def wait() -> None:
        sys.stdin.read()
        ended.set()

    threading.Thread(target=wait, daemon=True).start()
    return ended


TASKS: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        relay,
        bare,
        bare_produces,
        relay_follow,
        bare_follow,
        write_steadily,
        inbox_handles,
        loop_handles,
    )
}


def _peak_bytes() -> int:
    # Not getrusage: what it says of a process that was just made is the peak of the one that made it.
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) * 1024


def main() -> None:
    """Do what the first argument names, and print what it took and what it says."""
    task, arguments = TASKS[sys.argv[1]], json.loads(sys.argv[2])
    began = Began.now()
    said = task(**arguments)
    began = said if isinstance(said, Began) else began  # some tasks know better
    ended = Began.now()
    took = {
        "seconds": ended.seconds - began.seconds,
        "cpu_seconds": ended.cpu_seconds - began.cpu_seconds,
        "peak_bytes": _peak_bytes(),
    }
    print(json.dumps({**took, **(said if isinstance(said, dict) else {})}))


if __name__ == "__main__":
    main()
