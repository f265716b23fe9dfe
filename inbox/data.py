"""From a payload's bytes to `Delivery.data`: by content type, and into the handler's model if it names one."""

import dataclasses
import json
from collections.abc import Callable
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

from inbox.shapes import Mismatch, shape_of
from outbox.errors import ConfigurationError, MessageAtFault
from outbox.message import Message

Decoder = Callable[[Message], Any]


class Undecodable(MessageAtFault):
    """The payload is not what its content type, or the handler's model, says. Trying again will not help."""


def decode(message: Message) -> Any:
    """Return the payload by its content type: JSON as Python data, text as str, anything else as bytes.

    Raises:
        Undecodable: it is not what its content type says.
    """
    if message.payload is None:
        return None
    media, charset = _content_type(message.content_type)
    try:
        if media == "application/json" or media.endswith("+json"):
            return json.loads(message.payload)
        if media.startswith("text/"):
            return message.payload.decode(charset)
    except (ValueError, LookupError) as error:
        raise Undecodable(f"the payload is not {message.content_type}: {error}") from error
    return message.payload


def names_model(annotation: Any) -> bool:
    """Return whether the annotation is a dataclass or a pydantic model, or either of these or None."""
    return all(_is_model(one) for one in _members(annotation))


def decoder_of(model: Any) -> Decoder:
    """Return what decodes a payload and validates it as `model`.

    Raises:
        ConfigurationError: the model is no dataclass or pydantic model, or has a field of a type we cannot fill.
    """
    if not names_model(model):
        raise ConfigurationError(f"data= is a dataclass or a pydantic model, not {model!r}")
    if any(_is_pydantic(one) for one in _members(model)):
        return _by_pydantic(model)
    fill = shape_of(model)

    def into_dataclass(message: Message) -> Any:
        try:
            return fill(decode(message))
        except Mismatch as error:
            raise Undecodable(f"the payload is no {_name(model)}: {error}") from error

    return into_dataclass


def _by_pydantic(model: Any) -> Decoder:
    from pydantic import TypeAdapter, ValidationError  # noqa: PLC0415 - optional: loaded only for a model of its own

    adapter = TypeAdapter(model)

    def validate(message: Message) -> Any:
        media, _ = _content_type(message.content_type)
        try:
            if message.payload is not None and (media == "application/json" or media.endswith("+json")):
                # From the text itself: pydantic's JSON mode knows that dates and ids are strings there.
                return adapter.validate_json(message.payload)
            return adapter.validate_python(decode(message))
        except ValidationError as error:
            # Without the input: a payload may be personal, and this goes into logs.
            faults = error.errors(include_url=False, include_input=False, include_context=False)
            said = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in faults)
            raise Undecodable(f"the payload is no {_name(model)}: {said}") from error

    return validate


def _content_type(text: str) -> tuple[str, str]:
    """Return media type and charset, in lower case."""
    media, *parameters = (part.strip() for part in text.lower().split(";"))
    named = dict(part.split("=", 1) for part in parameters if "=" in part)
    return media, named.get("charset", "utf-8").strip('"')


def _members(annotation: Any) -> tuple[Any, ...]:
    if get_origin(annotation) in (Union, UnionType):
        return tuple(one for one in get_args(annotation) if one is not NoneType)
    return (annotation,)


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and (dataclasses.is_dataclass(annotation) or _is_pydantic(annotation))


def _is_pydantic(annotation: Any) -> bool:
    return isinstance(annotation, type) and hasattr(annotation, "__pydantic_validator__")


def _name(model: Any) -> str:
    return getattr(model, "__name__", str(model))
