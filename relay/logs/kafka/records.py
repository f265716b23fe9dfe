"""A Kafka record as ours, whoever wrote it: whatever its bytes are, it never stops a group.

Who the message is (for deduplication) is decided strictly: anything that is no clean CloudEvent is known by its place.
That can only hand out twice what was sent twice; the other way round, two messages could be taken for one.
"""

from datetime import UTC, datetime, timedelta
from functools import lru_cache
from operator import methodcaller

from confluent_kafka import TIMESTAMP_NOT_AVAILABLE
from confluent_kafka import Message as Raw

from outbox.message import Message, Offset, Position
from relay.logs.cloudevents import CONTEXT_HEADERS, foreign_id, is_reserved, message_id
from relay.logs.contract import Partition, Record

CONTENT_TYPE = "application/octet-stream"
"""Of a record that says none."""
MOST_SOURCE_BYTES = 2_000
"""A longer source is not taken as one: it goes into a key of the handlers' database, which has a limit."""
SEQUENCE_DIGITS = 19
_HIGHEST_SEQUENCE = 2**63 - 1
_REPLACED = "\ufffd"
_ask_headers = methodcaller("headers")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def record_of(partition: Partition, raw: Raw) -> Record:
    """Return a record, of the topic's incarnation that `partition` names. Raises nothing, whatever was sent."""
    offset = Offset(raw.offset() or 0)
    headers = _headers(raw)
    event, source, key = headers.get("ce_id"), headers.get("ce_source"), raw.key()
    if event and source is not None and _REPLACED not in event and _is_source(source) and "ce_specversion" in headers:
        identity = message_id(event)
    else:
        identity, source = foreign_id(partition.number, offset), partition.incarnation
    message = Message(
        identity,
        partition.topic,
        # Nothing of a key is lost: two that differ stay two.
        None if key is None else key.decode("utf-8", "surrogateescape"),
        headers.get("ce_type") or partition.topic,
        raw.value(),
        headers.get("content-type") or CONTENT_TYPE,
        {name: headers[name] for name in _carried(tuple(headers))},
        source,
        _time(headers.get("ce_time"), raw),
        _sequence(headers.get("ce_sequence")),
    )
    return Record(partition, offset, message, headers)


def _headers(raw: Raw) -> dict[str, str]:
    """Return the headers as texts; none of them if the name of one is not UTF-8.

    There the client returns a list with nothing where that header should be, and an exception beside it. A plain call
    in a busy loop is not looked at for exceptions, and the list ends the process (test_anybodys_records_are_read); from
    `methodcaller` it is, and raises a SystemError. A second call would return the list.
    """
    try:
        pairs = _ask_headers(raw) or ()
    except (SystemError, UnicodeDecodeError):
        return {}
    # Of several of one name the last counts, as Kafka's own clients have it.
    try:
        return {name: value.decode() for name, value in pairs}
    except (UnicodeDecodeError, AttributeError):
        # Without surrogates: a handler may store what it finds here, or write it on.
        return {name: value.decode("utf-8", "replace") for name, value in pairs if value is not None}


@lru_cache(1024)
def _is_source(source: str) -> bool:
    """Return whether a source tells messages apart, and can be kept by a database."""
    return _REPLACED not in source and "\0" not in source and len(source.encode()) <= MOST_SOURCE_BYTES


@lru_cache(1024)
def _carried(headers: tuple[str, ...]) -> tuple[str, ...]:
    """Return which headers are the message's own: the user's, and those of the context.

    For all names at a time: the records of one producer have mostly the same.
    """
    return tuple(name for name in headers if name in CONTEXT_HEADERS or not is_reserved(name))


def _time(text: str | None, raw: Raw) -> datetime | None:
    """Return when it happened; when Kafka stored it, if that is not said or not readable."""
    if text is not None:
        try:
            said = datetime.fromisoformat(text)
            if said.tzinfo is not None:
                return said if said.tzinfo is UTC else said.astimezone(UTC)
        except (ValueError, OverflowError):
            pass
    kind, milliseconds = raw.timestamp()
    if kind == TIMESTAMP_NOT_AVAILABLE:
        return None
    try:
        return _EPOCH + timedelta(milliseconds=milliseconds)
    except OverflowError:
        return None


def _sequence(text: str | None) -> Position | None:
    if text is None or len(text) > SEQUENCE_DIGITS or not (text.isascii() and text.isdigit()):
        return None
    number = int(text)
    return Position(number) if number <= _HIGHEST_SEQUENCE else None
