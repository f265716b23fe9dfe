"""What a handler is given, and what it may answer: a `Delivery`, `Reject` and `Retry`."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Generic, cast

from inbox.data import decode
from outbox.errors import MessageAtFault, OutboxError
from outbox.message import Message, Offset

if TYPE_CHECKING:
    # With a default, so that a bare `Delivery` is no error in mypy's strict mode; the standard library's has none yet.
    from typing_extensions import TypeVar

    T = TypeVar("T", default=Any)
else:
    from typing import TypeVar

    T = TypeVar("T")

_FIRST = Offset(0)
_NOT_YET: Any = object()


class Reject(MessageAtFault):
    """Raise it in a handler when the message itself is wrong: it is not tried again."""


class Retry(OutboxError):
    """Raise it in a handler to have the message tried again later. It counts as an attempt.

    Args:
        reason: what is said in the log.
        after: how long to wait; without it the handler's retry policy decides.
    """

    def __init__(
        self, reason: str = "the handler asked for another attempt", *, after: timedelta | None = None
    ) -> None:
        super().__init__(reason)
        if after is not None and not isinstance(after, timedelta):
            raise TypeError("after is a timedelta: Retry(after=timedelta(seconds=5))")
        self.after = after


@dataclass(frozen=True, slots=True)
class Delivery(Generic[T]):
    """One record handed to one handler.

    Attributes:
        message: what the application wrote: id, topic, key, type, payload as bytes, headers, time, source, sequence.
        partition: the number of the partition it was read from.
        offset: its place there.
        attempt: 1, and one more after each attempt that failed.
        redelivered: whether it may have been handed to the handler before, in a transaction that was rolled back.
    """

    message: Message
    partition: int = 0
    offset: Offset = _FIRST
    attempt: int = 1
    redelivered: bool = False
    decoder: Callable[[Message], Any] = field(default=decode, repr=False, compare=False)
    _data: Any = field(default=_NOT_YET, init=False, repr=False, compare=False)

    @property
    def data(self) -> T:
        """The payload, decoded by its content type on first use; None for a tombstone.

        Raises:
            Undecodable: the payload is not what its content type says. Left to itself it rejects the message.
        """
        if self._data is _NOT_YET:
            object.__setattr__(self, "_data", self.decoder(self.message))
        return cast("T", self._data)
