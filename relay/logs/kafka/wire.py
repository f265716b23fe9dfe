"""An entry on Kafka's wire: CloudEvents in binary mode, as header names and values in text."""

from collections.abc import Callable

from relay.logs.cloudevents import are_texts, carried_headers, source_of
from relay.logs.contract import ProducerIdentity
from relay.logs.rows import Row

BATCH_OVERHEAD = 61
RECORD_OVERHEAD = 40
"""More than a record has beside its key, value and headers: lengths, deltas, attributes."""
HEADER_OVERHEAD = 10


def header_writer(identity: ProducerIdentity) -> Callable[[Row], dict[str, str]]:
    """Return what gives the wire headers of an entry; the same as `wire_headers` of the resolved message.

    A function made once, over plain rows: it is most of what a relay does for a message.
    """
    default_source = source_of(identity.installation)
    epoch = str(identity.epoch)

    def headers(row: Row) -> dict[str, str]:
        position, identifier, source, topic, key, kind, _, content_type, own, time = row[:10]
        wire = {} if own is None else dict(carried_headers(own))
        wire["ce_specversion"] = "1.0"
        wire["ce_id"] = identifier
        wire["ce_source"] = default_source if source is None else source
        wire["ce_type"] = kind or topic
        wire["content-type"] = content_type
        wire["ce_relayepoch"] = epoch
        if time is not None:
            wire["ce_time"] = time
        wire["ce_sequence"] = str(position).zfill(19)
        if key:
            wire["ce_partitionkey"] = key
        return wire

    return headers


def fault(row: Row) -> str | None:
    """Return why an entry cannot be a record, if so. A plain-SQL writer may have stored any JSON as headers."""
    own = row[8]
    return None if own is None or are_texts(own) else "its headers are not an object of texts"


def size_of(row: Row, headers: dict[str, str]) -> int:
    """Return how large a batch with this one record is, at most, without compression."""
    texts = sum(len(name.encode()) + len(value.encode()) + HEADER_OVERHEAD for name, value in headers.items())
    payload, key = row[6] or b"", (row[4] or "").encode()
    return BATCH_OVERHEAD + RECORD_OVERHEAD + len(payload) + len(key) + texts
