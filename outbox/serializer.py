"""From a payload to bytes: JSON that knows the types events are made of, or a serializer of the user's own."""

import dataclasses
import json
from collections.abc import Collection, Mapping
from datetime import date, datetime
from decimal import Decimal
from enum import Enum
from typing import Any, Protocol
from uuid import UUID

from outbox.errors import WriteError

OCTETS = "application/octet-stream"
TEXT = "text/plain; charset=utf-8"


class Serializer(Protocol):
    """Turns payloads that are neither bytes, text nor None into bytes. Called by `write`, from any thread."""

    @property
    def content_type(self) -> str:
        """The media type of what `serialize` returns, as a header's value."""
        ...

    def serialize(self, payload: Any) -> bytes:
        """Return the payload as bytes. Whatever it raises becomes the cause of a `WriteError`."""
        ...


def plain(value: Any) -> Any:
    """Return `value` as something that JSON knows, or at least a step closer to it."""
    match value:
        case datetime():
            known: Any = aware(value).isoformat()
        case date():
            known = value.isoformat()
        case UUID():
            known = str(value)
        case Decimal():
            known = _finite(value)
        case Enum():
            known = value.value
        # Known by what it can do: pydantic is not ours to import.
        case _ if hasattr(type(value), "__pydantic_serializer__") and hasattr(value, "model_dump"):
            refuse_naive(value.model_dump())
            known = value.model_dump(mode="json", by_alias=True)
        case _ if dataclasses.is_dataclass(value) and not isinstance(value, type):
            known = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        case _:
            raise TypeError(f"JSON has no form for {type(value).__name__}; convert it, or give Outbox a serializer")
    return known


def _finite(value: Decimal) -> str:
    if not value.is_finite():
        raise ValueError(f"{value!r} is no number that JSON has")
    return str(value)


def aware(value: datetime) -> datetime:
    """Return `value` if it says which moment it is."""
    if value.utcoffset() is None:
        raise ValueError(
            f"{value!r} is naive: nobody can tell which moment it is; give it a time zone, as in datetime.now(UTC)"
        )
    return value


def refuse_naive(value: Any) -> None:
    """Look for naive datetimes in what a pydantic model holds: its own JSON would write them without a word."""
    if isinstance(value, datetime):
        aware(value)
    elif isinstance(value, Mapping):
        for key, member in value.items():
            refuse_naive(key)
            refuse_naive(member)
    elif isinstance(value, Collection) and not isinstance(value, (str, bytes, bytearray, memoryview)):
        for member in value:
            refuse_naive(member)


class JsonSerializer:
    """Compact JSON in UTF-8.

    Knows datetime (aware ones only, as ISO 8601), date, UUID, Decimal (as text, so that no digit is lost), Enum (by
    value), dataclasses and pydantic models (as they dump themselves for JSON, by alias). NaN and infinity are refused.
    """

    content_type = "application/json"

    def __init__(self) -> None:
        self._encode = json.JSONEncoder(
            default=plain, ensure_ascii=False, allow_nan=False, separators=(",", ":")
        ).encode

    def serialize(self, payload: Any) -> bytes:
        """Return the payload as JSON."""
        return self._encode(payload).encode()


JSON: Serializer = JsonSerializer()
"""The serializer that is used unless another is named."""


def encoded(payload: Any, serializer: Serializer, most_bytes: int) -> tuple[bytes | None, str]:
    """Return the payload's bytes (None for a tombstone) and their content type.

    Raises:
        WriteError: it cannot be serialised, or is over `most_bytes`.
    """
    content: bytes | None
    match payload:
        case None:
            return None, serializer.content_type
        case bytes() | bytearray() | memoryview():
            content, content_type = bytes(payload), OCTETS
        case str():
            content, content_type = _attempted(str.encode, payload), TEXT
        case _:
            content, content_type = _attempted(serializer.serialize, payload), serializer.content_type
    if len(content) > most_bytes:
        raise WriteError(
            f"the payload has {len(content):,} bytes and the limit is {most_bytes:,}: "
            "store it elsewhere and write a reference to it, or raise Outbox(max_payload_bytes=...)"
        )
    return content, content_type


def _attempted(serialize: Any, payload: Any) -> bytes:
    try:
        content: object = serialize(payload)
    except Exception as error:
        raise WriteError(f"the payload ({type(payload).__name__}) cannot be serialised: {error}") from error
    if not isinstance(content, bytes):
        raise WriteError(f"the serializer returned {type(content).__name__} instead of bytes")
    return content
