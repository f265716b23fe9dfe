"""Handlers: what each asks for, read from its signature once, and which of them a message goes to."""

import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, ForwardRef, get_args, get_origin

from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.orm import Session

from inbox.data import Decoder, decode, decoder_of, names_model
from inbox.delivery import Delivery
from outbox.errors import ConfigurationError
from outbox.message import Message
from outbox.retry import RetryPolicy

_TOPIC = re.compile(r"[A-Za-z0-9._-]{1,249}")


class Asks(Enum):
    """What a handler's parameter stands for."""

    DELIVERY = "delivery"
    SESSION = "session"
    CONNECTION = "connection"


_LENT: dict[bool, dict[type, Asks]] = {
    False: {Session: Asks.SESSION, Connection: Asks.CONNECTION},
    True: {AsyncSession: Asks.SESSION, AsyncConnection: Asks.CONNECTION},
}
_BY_PLACE = (Asks.DELIVERY, Asks.SESSION)


@dataclass(frozen=True, slots=True)
class Handler:
    """A function that handles the messages of one topic, of one type or of all.

    Attributes:
        topic: whose messages it handles.
        type: the type of message; None for those that have no handler of their own.
        function: the user's, `def` or `async def`.
        asks: what each of its parameters stands for.
        asynchronous: whether it is `async def`.
        decoder: what makes `Delivery.data` of a payload.
        eager: whether the payload is decoded before the handler is called.
        retry: how often and how long after a failure it is called again.
        timeout_seconds: the longest that one call may take.
        batch: whether several messages may be handled in one transaction.
    """

    topic: str
    type: str | None
    function: Callable[..., Any]
    asks: tuple[Asks, ...]
    asynchronous: bool
    decoder: Decoder
    eager: bool
    retry: RetryPolicy
    timeout_seconds: float
    batch: bool


@dataclass(slots=True)
class Handlers:
    """All handlers of one consumer group."""

    _by_type: dict[tuple[str, str | None], Handler] = field(default_factory=dict)

    def add(self, handler: Handler) -> None:
        """Register a handler.

        Raises:
            ConfigurationError: there is one for this topic and type, or one of the other kind (def, async def).
        """
        if (handler.topic, handler.type) in self._by_type:
            kind = "all types" if handler.type is None else f"type {handler.type!r}"
            raise ConfigurationError(f"two handlers for topic {handler.topic!r} and {kind}: keep one")
        if any(other.asynchronous != handler.asynchronous for other in self):
            raise ConfigurationError(
                f"{_name(handler.function)}: one Inbox has either def or async def handlers: use an Inbox, "
                "with a group of its own, for each kind"
            )
        self._by_type[handler.topic, handler.type] = handler

    def for_message(self, message: Message) -> Handler | None:
        """Return the handler of the message's type, else the topic's, else None: the message is ignored."""
        found = self._by_type.get((message.topic, message.type))
        return self._by_type.get((message.topic, None)) if found is None else found

    @property
    def topics(self) -> list[str]:
        """The topics that have a handler."""
        return sorted({handler.topic for handler in self})

    @property
    def asynchronous(self) -> bool:
        """Whether the handlers are `async def`."""
        return any(handler.asynchronous for handler in self)

    @property
    def timeout_seconds(self) -> float:
        """The longest time-out of any handler."""
        return max((handler.timeout_seconds for handler in self), default=0.0)

    def __iter__(self) -> Iterator[Handler]:
        return iter(self._by_type.values())


def handler_of(
    function: Callable[..., Any],
    topic: str,
    *,
    type: str | None,  # noqa: A002 - the word of the public signature
    data: Any,
    retry: RetryPolicy | None,
    timeout_seconds: float,
    batch: bool,
) -> Handler:
    """Read what the function asks for.

    Raises:
        ConfigurationError: a topic that is no topic's name, or a signature that we cannot call.
    """
    name = _name(function)
    if not _TOPIC.fullmatch(topic) or topic in (".", ".."):
        raise ConfigurationError(f"{name}: {topic!r} is no topic: 1 to 249 of A-Z a-z 0-9 . _ -")
    if timeout_seconds <= 0:
        raise ConfigurationError(f"{name}: timeout_seconds is more than 0")
    if type == "":
        raise ConfigurationError(f"{name}: a type is not empty; leave it out for all types")
    asynchronous = _is_asynchronous(function)
    parameters = _parameters(function, name)
    asks = tuple(_asked(one, place, name, asynchronous) for place, one in enumerate(parameters))
    if not asks or len(set(asks)) < len(asks):
        raise ConfigurationError(
            f"{name}: a handler takes a delivery and, if it wants one, a session or connection: (delivery, session)"
        )
    model = _model(parameters, asks) if data is None else data
    if isinstance(model, (str, ForwardRef)):
        raise ConfigurationError(
            f"{name}: Delivery[{model!r}] names a text: write the class itself, or all of it as text"
        )
    eager = data is not None or (model is not None and names_model(model))
    decoder = decoder_of(model) if eager else decode
    policy = retry or RetryPolicy()
    return Handler(topic, type, function, asks, asynchronous, decoder, eager, policy, timeout_seconds, batch)


def _parameters(function: Callable[..., Any], name: str) -> list[inspect.Parameter]:
    """Return the parameters that we fill: those without a default, with their annotations resolved."""
    try:
        parameters = inspect.signature(function, eval_str=True).parameters.values()
    except (NameError, TypeError, ValueError, SyntaxError) as error:
        raise ConfigurationError(f"{name}: its signature cannot be read: {error}") from error
    for one in parameters:
        if one.kind in (one.VAR_POSITIONAL, one.VAR_KEYWORD) or (
            one.kind is one.KEYWORD_ONLY and one.default is one.empty
        ):
            raise ConfigurationError(f"{name}: parameter {one} cannot be filled: write (delivery, session)")
    return [one for one in parameters if one.default is one.empty and one.kind is not one.KEYWORD_ONLY]


def _asked(parameter: inspect.Parameter, place: int, name: str, asynchronous: bool) -> Asks:  # noqa: FBT001
    annotation = parameter.annotation
    if annotation in (inspect.Parameter.empty, Any):
        if place < len(_BY_PLACE):
            return _BY_PLACE[place]
        raise ConfigurationError(f"{name}: too many parameters: write (delivery, session)")
    if annotation is Delivery or get_origin(annotation) is Delivery:
        return Asks.DELIVERY
    found = _LENT[asynchronous].get(annotation)
    if found is not None:
        return found
    if annotation in _LENT[not asynchronous]:
        right = {Asks.SESSION: "AsyncSession", Asks.CONNECTION: "AsyncConnection"}
        wanted = right[_LENT[not asynchronous][annotation]] if asynchronous else annotation.__name__[len("Async") :]
        kind = "async def" if asynchronous else "def"
        raise ConfigurationError(f"{name}: parameter {parameter}: a handler made by `{kind}` asks for {wanted}")
    raise ConfigurationError(
        f"{name}: parameter {parameter}: a handler asks for Delivery, Delivery[X], Session, AsyncSession or Connection"
    )


def _model(parameters: list[inspect.Parameter], asks: tuple[Asks, ...]) -> Any:
    """Return X of the parameter annotated `Delivery[X]`, None without one."""
    annotation = next((one.annotation for one, ask in zip(parameters, asks, strict=True) if ask is Asks.DELIVERY), None)
    return next(iter(get_args(annotation)), None)


def _is_asynchronous(function: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004


def _name(function: Callable[..., Any]) -> str:
    return f"handler {getattr(function, '__qualname__', repr(function))}"
