"""Prints the records of a topic, for people or as JSON, as long as somebody reads."""

import base64
import logging
import os
import select
import sys
import threading
from typing import Any

from outbox.process.output import one_line, print_json, print_line
from relay.logs.contract import Log, Record

logger = logging.getLogger(__name__)


def print_records(
    log: Log, topic: str, *, from_start: bool, follow: bool, as_json: bool, stop: threading.Event
) -> None:
    """Print a topic's records, each line flushed, until they end, `stop` is set, or nobody reads any more.

    Args:
        log: open, and known to answer.
        topic: one that does not exist yet is a notice.
        from_start: begin with the oldest record.
        follow: go on with new records.
        as_json: an object a line, instead of text.
        stop: checked between records and while there are none.
    """
    if not log.partitions([topic]):
        logger.warning("the log has no topic %s %s", topic, "yet" if follow else "")
    try:
        for record in log.tail(topic, from_start=from_start, follow=follow):
            if stop.is_set() or (record is None and _nobody_reads()):
                return
            if record is not None and as_json:
                print_json(as_object(record))
            elif record is not None:
                print_line(as_text(record))
    except BrokenPipeError:
        # Or the interpreter complains while it ends: what is left in the buffer goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def as_object(record: Record) -> dict[str, Any]:
    """Return a record as JSON shows it: `payload_base64` and `key_base64` hold what is not UTF-8."""
    message = record.message
    return {
        "topic": record.partition.topic,
        "partition": record.partition.number,
        "offset": record.offset,
        "id": str(message.id),
        **_key(message.key),
        "type": message.type,
        **_payload(message.payload),
        "headers": dict(record.headers),
    }


def as_text(record: Record) -> str:
    """Return a record as one line for people: where it stands, its type, key and payload."""
    message = record.message
    key = (
        ""
        if message.key is None
        else f"  key={message.key.encode('utf-8', 'surrogateescape').decode('utf-8', 'replace')}"
    )
    payload = "(tombstone)" if message.payload is None else message.payload.decode("utf-8", "replace")
    where = f"{record.partition.topic}/{record.partition.number}@{record.offset}"
    return one_line(f"{where}  {message.type}{key}  {payload}")


def _key(key: str | None) -> dict[str, str | None]:
    try:
        if key is not None:
            key.encode()
    except UnicodeEncodeError:
        return {"key_base64": base64.b64encode(str(key).encode("utf-8", "surrogateescape")).decode()}
    return {"key": key}


def _payload(payload: bytes | None) -> dict[str, str | None]:
    if payload is None:
        return {"payload": None}
    try:
        return {"payload": payload.decode()}
    except UnicodeDecodeError:
        return {"payload_base64": base64.b64encode(payload).decode()}


def _nobody_reads() -> bool:
    """Return whether stdout is a pipe whose reader is gone: without records to write, nothing else would tell."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        return any(event & (select.POLLERR | select.POLLNVAL) for _, event in poll.poll(0))
    except (OSError, ValueError):
        return False
