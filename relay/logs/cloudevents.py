"""A message on the wire: CloudEvents 1.0, binary mode, with the `ce_` names; and who a message is."""

import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC
from functools import lru_cache
from uuid import UUID, uuid5

from outbox.message import Epoch, Message, Offset

NAMESPACE = UUID("50b9da94-ee07-45e1-898d-e27814c122d0")
"""Where ids that are no canonical UUID become one. It never changes: inboxes remember what came of it."""

CONTEXT_HEADERS = frozenset({"traceparent", "ce_correlationid", "ce_causationid"})
"""The reserved headers that a row of the outbox may carry: `write` puts them there itself."""

_RESERVED = re.compile(r"(ce_|cloudevents[:_])|(content-type|traceparent)\Z", re.IGNORECASE)
_CANONICAL = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z")


@lru_cache(4_096)  # asked for each header of each message, and a producer's are mostly the same
def is_reserved(header: str) -> bool:
    """Return whether a header's name is ours to set: CloudEvents' own, `content-type`, `traceparent`; in any case."""
    return _RESERVED.match(header) is not None


def carried_headers(headers: Mapping[str, str]) -> Mapping[str, str]:
    """Return what of an outbox row's headers goes on the wire: the user's own and the three of the context.

    Plain-SQL writers are not refused reserved names; these are dropped here, so that nobody writes another's `ce_id`.
    """
    return {name: value for name, value in headers.items() if name in CONTEXT_HEADERS or not is_reserved(name)}


def are_texts(headers: object) -> bool:
    """Return whether headers read from a row are what they must be: an object whose values are texts."""
    return isinstance(headers, Mapping) and all(
        isinstance(name, str) and isinstance(value, str) for name, value in headers.items()
    )


def source_of(installation: UUID) -> str:
    """Return the source of messages whose writer named none."""
    return f"/outbox/{installation}"


def resolved(message: Message, installation: UUID) -> Message:
    """Return the message as readers get it: type and source filled in, reserved headers of others' making dropped."""
    return replace(
        message,
        type=message.type or message.topic,
        source=source_of(installation) if message.source is None else message.source,
        headers=carried_headers(message.headers) if message.headers else {},
    )


def wire_headers(message: Message, epoch: Epoch) -> dict[str, str]:
    """Return the headers of a resolved message: CloudEvents', ours, and the user's own.

    A key, time or sequence that a message does not have has no header; nor has an empty key, which CloudEvents forbids
    as a partition key.
    """
    headers = {
        **carried_headers(message.headers),
        "ce_specversion": "1.0",
        "ce_id": str(message.id),
        "ce_source": message.source or "",
        "ce_type": message.type or message.topic,
        "content-type": message.content_type,
        "ce_relayepoch": str(epoch),
    }
    if message.time is not None:
        headers["ce_time"] = message.time.astimezone(UTC).isoformat().replace("+00:00", "Z")
    if message.sequence is not None:
        headers["ce_sequence"] = f"{message.sequence:019d}"
    if message.key:
        headers["ce_partitionkey"] = message.key
    return headers


def message_id(ce_id: str) -> UUID:
    """Return the id under which a CloudEvents id is known here.

    A canonical UUID (lower case, with hyphens) is kept; any other text becomes its UUIDv5 in a namespace of ours, so
    that two texts are never taken for one message.
    """
    return UUID(ce_id) if _CANONICAL.match(ce_id) else uuid5(NAMESPACE, ce_id)


def foreign_id(partition: int, offset: Offset) -> UUID:
    """Return the id of a record without CloudEvents headers; its source is the topic's incarnation."""
    return uuid5(NAMESPACE, f"{partition}/{offset}")
