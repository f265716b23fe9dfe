"""Filling a dataclass from JSON data: annotations compiled once into functions that check and convert."""

import dataclasses
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date, datetime, time
from decimal import Decimal
from enum import Enum
from typing import Any, Literal, NewType, Union, get_args, get_origin, get_type_hints
from uuid import UUID

from outbox.errors import ConfigurationError

Fill = Callable[[Any], Any]


class Mismatch(ValueError):
    """The data does not have the shape of the annotation; the words say where."""


def shape_of(annotation: Any) -> Fill:
    """Return what turns JSON data into a value of this annotation, or raises `Mismatch`.

    Fields that the dataclass does not have are passed over, so that a writer may add some.

    Raises:
        ConfigurationError: a type that JSON data cannot be turned into.
    """
    return _shape(annotation, {})


def _shape(annotation: Any, known: dict[Any, Fill]) -> Fill:
    if isinstance(annotation, NewType):
        return _shape(annotation.__supertype__, known)
    if annotation in _PLAIN:
        return _PLAIN[annotation]
    origin, arguments = get_origin(annotation), get_args(annotation)
    return _generic(origin or annotation, arguments, known) or _class(annotation, known)


def _generic(origin: Any, arguments: tuple[Any, ...], known: dict[Any, Fill]) -> Fill | None:
    if origin is Literal:
        return _one_of(arguments)
    if origin in (Union, types.UnionType):
        return _first_that_fits([_shape(one, known) for one in arguments])
    if origin in _SEQUENCES:
        return _sequence(origin, arguments, known)
    if origin in (dict, Mapping):
        return _mapping(_shape(arguments[0], known), _shape(arguments[1], known)) if arguments else _instance(dict)
    return None


def _class(annotation: Any, known: dict[Any, Fill]) -> Fill:
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return _converted(annotation, annotation)
    if isinstance(annotation, type) and dataclasses.is_dataclass(annotation):
        return _dataclass(annotation, known)
    raise ConfigurationError(f"a payload cannot be turned into {annotation!r}: use a pydantic model, or another type")


def _instance(kind: type) -> Fill:
    def check(data: Any) -> Any:
        # bool is an int in Python, and not in JSON.
        if not isinstance(data, kind) or (isinstance(data, bool) and kind is not bool):
            raise Mismatch(f"expected {kind.__name__}, got {_shown(data)}")
        return data

    return check


def _converted(kind: Any, convert: Callable[[Any], Any], accepts: tuple[type, ...] = (str, int, float)) -> Fill:
    def fill(data: Any) -> Any:
        if isinstance(data, accepts) and not isinstance(data, bool):
            try:
                return convert(data)
            except (ValueError, ArithmeticError, TypeError):
                pass
        raise Mismatch(f"expected {kind.__name__}, got {_shown(data)}")

    return fill


def _one_of(values: tuple[Any, ...]) -> Fill:
    def check(data: Any) -> Any:
        for value in values:
            if data == value and type(data) is type(value):
                return value
        raise Mismatch(f"expected one of {', '.join(map(repr, values))}, got {_shown(data)}")

    return check


def _first_that_fits(shapes: Sequence[Fill]) -> Fill:
    def fill(data: Any) -> Any:
        reasons = []
        for shape in shapes:
            try:
                return shape(data)
            except Mismatch as error:
                reasons.append(str(error))
        raise Mismatch("; or ".join(reasons))

    return fill


def _sequence(container: Any, arguments: tuple[Any, ...], known: dict[Any, Fill]) -> Fill:
    make = _SEQUENCES[container]
    several = container is tuple and arguments[1:] != (Ellipsis,) and bool(arguments)
    items = [_shape(one, known) for one in arguments if one is not Ellipsis] or [_shape(Any, known)]

    def fill(data: Any) -> Any:
        if not isinstance(data, list):
            raise Mismatch(f"expected a list, got {_shown(data)}")
        if several and len(data) != len(items):
            raise Mismatch(f"expected a list of {len(items)}, got one of {len(data)}")
        shapes: Iterable[Fill] = items if several else items * len(data)
        return make(_inside(str(at), shape, one) for at, (shape, one) in enumerate(zip(shapes, data, strict=True)))

    return fill


def _mapping(key: Fill, value: Fill) -> Fill:
    def fill(data: Any) -> Any:
        if not isinstance(data, dict):
            raise Mismatch(f"expected an object, got {_shown(data)}")
        return {key(name): _inside(name, value, one) for name, one in data.items()}

    return fill


def _dataclass(model: Any, known: dict[Any, Fill]) -> Fill:
    def fill(data: Any) -> Any:
        if not isinstance(data, dict):
            raise Mismatch(f"expected an object, got {_shown(data)}")
        missing = [name for name in required if name not in data]
        if missing:
            raise Mismatch(f"{', '.join(missing)} missing")
        values = {name: _inside(name, shape, data[name]) for name, shape in shapes.items() if name in data}
        try:
            return model(**values)
        except (ValueError, TypeError) as error:
            raise Mismatch(str(error)) from error

    if model in known:
        return known[model]
    known[model] = fill  # before the fields: a dataclass may hold itself
    shapes: dict[str, Fill] = {}
    try:
        hints = get_type_hints(model)
    except NameError as error:
        raise ConfigurationError(f"{model.__name__}: an annotation cannot be resolved: {error}") from error
    fields = [one for one in dataclasses.fields(model) if one.init]
    shapes.update((one.name, _shape(hints[one.name], known)) for one in fields)
    required = [
        one.name for one in fields if one.default is dataclasses.MISSING and one.default_factory is dataclasses.MISSING
    ]
    return fill


def _inside(where: str, shape: Fill, data: Any) -> Any:
    try:
        return shape(data)
    except Mismatch as error:
        raise Mismatch(f"{where}: {error}") from None


def _shown(data: Any) -> str:
    """Return what was there instead: its kind, never the data, which may be personal."""
    return {dict: "an object", list: "a list", str: "a text", type(None): "null", bool: "a boolean"}.get(
        type(data), "a number"
    )


_PLAIN: dict[Any, Fill] = {
    Any: lambda data: data,
    object: lambda data: data,
    None: _one_of((None,)),
    types.NoneType: _one_of((None,)),
    bool: _instance(bool),
    int: _instance(int),
    str: _instance(str),
    float: _converted(float, float, (int, float)),
    dict: _instance(dict),
    list: _instance(list),
    UUID: _converted(UUID, UUID, (str,)),
    Decimal: _converted(Decimal, lambda data: Decimal(str(data))),
    datetime: _converted(datetime, datetime.fromisoformat, (str,)),
    date: _converted(date, date.fromisoformat, (str,)),
    time: _converted(time, time.fromisoformat, (str,)),
}
_SEQUENCES: dict[Any, Callable[[Iterable[Any]], Any]] = {
    list: list,
    tuple: tuple,
    set: set,
    frozenset: frozenset,
    Sequence: list,
    Iterable: list,
}
