"""What a message says about where it came from: trace, correlation and causation, from the current context."""

from contextvars import ContextVar
from dataclasses import dataclass
from uuid import UUID

from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from outbox.cloudevents import CAUSATION_ID, CORRELATION_ID, TRACEPARENT
from outbox.validation import storable


@dataclass(frozen=True, slots=True)
class Correlation:
    """What ties messages together.

    Attributes:
        correlation_id: the same for every message of one story; None outside of any.
        causation_id: the id of the message whose handling wrote this one.
    """

    correlation_id: str | None = None
    causation_id: str | None = None


_NONE = Correlation()
_current: ContextVar[Correlation] = ContextVar("outbox_correlation", default=_NONE)
_trace = TraceContextTextMapPropagator()


def current_correlation() -> Correlation:
    """Return the ids that a message written now would carry."""
    return _current.get()


class correlate:  # noqa: N801 - used as a context manager, where a call is read
    """Let the messages that are written inside carry these ids. One that is not given stays as it is outside.

    Raises:
        WriteError: an id holds a NUL or a lone surrogate; when it is entered.
    """

    # A class and no generator: the inbox enters one for each message that it hands over.
    __slots__ = ("_causation_id", "_correlation_id", "_token")

    def __init__(self, *, correlation_id: str | UUID | None = None, causation_id: str | UUID | None = None) -> None:
        self._correlation_id = correlation_id
        self._causation_id = causation_id

    def __enter__(self) -> Correlation:
        outer, correlation_id, causation_id = _current.get(), self._correlation_id, self._causation_id
        inner = Correlation(
            outer.correlation_id if correlation_id is None else storable("the correlation id", str(correlation_id)),
            outer.causation_id if causation_id is None else storable("the causation id", str(causation_id)),
        )
        self._token = _current.set(inner)
        return inner

    def __exit__(self, *_: object) -> None:
        _current.reset(self._token)


def context_headers() -> dict[str, str]:
    """Return the headers that the current context sets."""
    headers: dict[str, str] = {}
    carrier: dict[str, str] = {}
    _trace.inject(carrier)
    if TRACEPARENT in carrier:
        headers[TRACEPARENT] = carrier[TRACEPARENT]
    correlation = _current.get()
    if correlation.correlation_id is not None:
        headers[CORRELATION_ID] = correlation.correlation_id
    if correlation.causation_id is not None:
        headers[CAUSATION_ID] = correlation.causation_id
    return headers
