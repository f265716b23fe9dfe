"""What a message may be: refused at `write`, in words, rather than by the database in the middle of a COMMIT."""

import re
from collections.abc import Mapping
from uuid import UUID

import uuid_utils

from outbox.cloudevents import is_reserved
from outbox.errors import WriteError

TOPIC = re.compile(r"[A-Za-z0-9._-]{1,249}")


def is_topic(name: object) -> bool:
    """Return whether `name` is well-formed: 1 to 249 of letters, digits, `.`, `_` and `-`, but not `.` or `..`."""
    return isinstance(name, str) and TOPIC.fullmatch(name) is not None and name not in (".", "..")


def valid_topic(topic: object, declared: frozenset[str] | None) -> str:
    """Return `topic` if a message may be written to it.

    Raises:
        WriteError: it is not well-formed, or not one of `declared`.
    """
    if not (isinstance(topic, str) and is_topic(topic)):
        raise WriteError(f"topic {topic!r} is not well-formed: 1 to 249 of A-Z a-z 0-9 . _ - and not . or ..")
    if declared is not None and topic not in declared:
        raise WriteError(f"topic {topic!r} is not declared: add it to Outbox(topics=...)")
    return topic


def storable(what: str, value: object) -> str:
    """Return `value` if it is text that every database of ours can store.

    Raises:
        WriteError: it is no text, or holds a NUL (PostgreSQL has no place for it) or a lone surrogate (no UTF-8).
    """
    if not isinstance(value, str):
        raise WriteError(f"{what} is {value!r}: it has to be text (str), not {type(value).__name__}")
    if "\0" in value:
        raise WriteError(f"{what} is {value!r}: it holds a NUL, which cannot be stored as text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise WriteError(f"{what} is {value!r}: it holds a lone surrogate, which cannot be stored as UTF-8") from error
    return value


def valid_headers(headers: Mapping[str, str] | None) -> dict[str, str]:
    """Return a copy of a user's headers.

    Raises:
        WriteError: a name is empty or reserved, or a name or value is no text or cannot be stored.
    """
    if not headers:
        return {}
    if not isinstance(headers, Mapping):
        raise WriteError(f"headers are {headers!r}: they have to be a mapping from text to text")
    for name, value in headers.items():
        if not storable("a header's name", name):
            raise WriteError(f"a header has an empty name (its value is {value!r})")
        if is_reserved(name):
            raise WriteError(f"header {name!r} is reserved: it is set by us, from the message or its context")
        storable(f"header {name!r}", value)
    return dict(headers)


def valid_id(message_id: object) -> UUID:
    """Return the id as the standard library's UUID.

    Raises:
        WriteError: it is no UUID.
    """
    if isinstance(message_id, UUID):
        return message_id
    if isinstance(message_id, uuid_utils.UUID):
        return UUID(int=message_id.int)
    raise WriteError(f"id is {message_id!r}: it has to be a uuid.UUID")
