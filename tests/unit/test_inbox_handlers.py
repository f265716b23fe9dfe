"""What a handler may ask for, and what is refused when it is registered."""

from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import Enum
from typing import Any, Literal
from uuid import UUID, uuid4

import pydantic
import pytest
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from inbox import Delivery, Inbox, Reject, Retry
from inbox.data import Undecodable, decoder_of
from outbox.errors import ConfigurationError, MessageAtFault
from outbox.message import Message


def none() -> None: ...
def three(delivery, session, more): ...
def unknown(delivery: Message) -> None: ...
def twice(one: Session, two: Session) -> None: ...
def starred(*deliveries: Any) -> None: ...
def keyword(delivery: Delivery, *, session: Session) -> None: ...
def unresolved(delivery: "Nowhere") -> None: ...  # noqa: F821 - that is what is tested
def asynchronous_in_def(delivery: Delivery, session: AsyncSession) -> None: ...
async def synchronous_in_async(delivery: Delivery, session: Session) -> None: ...
def half_a_text(delivery: Delivery["Odd"]) -> None: ...


@dataclass
class Odd:
    value: complex


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (none, "takes a delivery"),
        (three, "too many parameters"),
        (unknown, "asks for Delivery"),
        (twice, "takes a delivery"),
        (half_a_text, "write the class itself"),
        (starred, "cannot be filled"),
        (keyword, "cannot be filled"),
        (unresolved, "cannot be read"),
        (asynchronous_in_def, "asks for Session"),
        (synchronous_in_async, "asks for AsyncSession"),
    ],
)
def test_a_signature_that_cannot_be_called_is_refused(function: Any, words: str):
    with pytest.raises(ConfigurationError, match=words) as raised:
        Inbox("billing").handler("orders")(function)
    assert function.__name__ in str(raised.value)


def test_what_has_a_default_is_left_alone_and_the_function_stays_itself():
    def handle(delivery: Delivery[str], connection: Connection, more: int = 1, *, other: int = 2) -> None: ...

    assert Inbox("billing").handler("orders")(handle) is handle


def one(delivery: Delivery) -> None: ...
async def other(delivery: Delivery) -> None: ...


def test_two_handlers_for_one_topic_and_type_are_refused():
    inbox = Inbox("billing")
    inbox.handler("orders")(one)
    inbox.handler("orders", type="Placed")(one)
    inbox.handler("refunds")(one)
    with pytest.raises(ConfigurationError, match="two handlers for topic 'orders' and all types"):
        inbox.handler("orders")(one)
    with pytest.raises(ConfigurationError, match="type 'Placed'"):
        inbox.handler("orders", type="Placed")(one)


def test_def_and_async_def_are_not_mixed():
    inbox = Inbox("billing")
    inbox.handler("orders")(one)
    with pytest.raises(ConfigurationError, match="def or async def"):
        inbox.handler("refunds")(other)


@pytest.mark.parametrize("topic", ["", ".", "..", "a b", "x" * 250, "a\n"])
def test_a_topic_that_is_none_is_refused(topic: str):
    with pytest.raises(ConfigurationError, match="is no topic"):
        Inbox("billing").handler(topic)(one)


@pytest.mark.parametrize(
    "options", [{"type": ""}, {"timeout_seconds": 0}, {"data": dict}, {"data": "text"}, {"data": Odd}]
)
def test_options_that_mean_nothing_are_refused(options: dict[str, Any]):
    with pytest.raises(ConfigurationError):
        Inbox("billing").handler("orders", **options)(one)


def test_a_group_has_a_name_and_handlers():
    for name in ("", "a\nb"):
        with pytest.raises(ConfigurationError, match="no group's name"):
            Inbox(name)
    with pytest.raises(ConfigurationError, match="no handlers"):
        Inbox("billing").run("sqlite:///none.db", "memory://x", once=True)
    with pytest.raises(ConfigurationError, match="deduplicate"):
        Inbox("billing", deduplicate="key")  # type: ignore[arg-type]


def test_retry_takes_a_timedelta():
    with pytest.raises(TypeError, match="timedelta"):
        Retry(after=5)  # type: ignore[arg-type]
    assert issubclass(Reject, MessageAtFault)


# Payloads


def message(payload: bytes | None, content_type: str = "application/json") -> Message:
    return Message(uuid4(), "orders", None, "Placed", payload, content_type)


@pytest.mark.parametrize(
    ("payload", "content_type", "data"),
    [
        (b'{"a": 1}', "application/json", {"a": 1}),
        (b"[1]", "application/vnd.orders+json; charset=utf-8", [1]),
        ("ä".encode(), "text/plain; charset=utf-8", "ä"),
        ("ä".encode("latin-1"), 'text/plain; charset="latin-1"', "ä"),
        (b"\x00", "application/octet-stream", b"\x00"),
        (b"\x00", "", b"\x00"),
        (None, "application/json", None),
    ],
)
def test_data_is_decoded_by_content_type_on_first_use(payload: bytes, content_type: str, data: Any):
    delivery: Delivery[Any] = Delivery(message(payload, content_type))
    assert delivery.data == data
    assert delivery.data is delivery.data


class Size(Enum):
    SMALL = "s"
    LARGE = "l"


@dataclass(frozen=True)
class Line:
    sku: str
    amount: int
    sizes: set[Size] = field(default_factory=set)


@dataclass(frozen=True)
class Order:
    id: UUID
    at: datetime
    day: date
    total: Decimal
    rate: float
    lines: list[Line]
    pair: tuple[int, str]
    by_name: dict[str, Line | None]
    state: Literal["open", "closed"] = "open"
    parent: "Order | None" = None


ORDER = (
    b'{"id": "0198a1f0-0000-7000-8000-000000000001", "at": "2026-01-02T03:04:05+00:00", "day": "2026-01-02",'
    b' "total": "1.10", "rate": 2, "lines": [{"sku": "a", "amount": 1, "sizes": ["s", "l"]}], "pair": [1, "x"],'
    b' "by_name": {"a": {"sku": "b", "amount": 2}, "c": null}, "new field": 1}'
)


def test_a_dataclass_is_filled_with_the_types_that_it_names():
    assert decoder_of(Order)(message(ORDER)) == Order(
        UUID("0198a1f0-0000-7000-8000-000000000001"),
        datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        date(2026, 1, 2),
        Decimal("1.10"),
        2.0,
        [Line("a", 1, {Size.SMALL, Size.LARGE})],
        (1, "x"),
        {"a": Line("b", 2), "c": None},
    )


@pytest.mark.parametrize(
    ("was", "is_now", "words"),
    [
        (b'"amount": 1', b'"amount": true', "lines: 0: amount: expected int, got a boolean"),
        (b'"amount": 1', b'"amount": "1"', "lines: 0: amount: expected int, got a text"),
        (b'["s", "l"]', b'["xxl"]', "expected Size"),
        (b'[1, "x"]', b"[1]", "pair: expected a list of 2, got one of 1"),
        (b'"total": "1.10"', b'"total": "much"', "total: expected Decimal"),
        (b'"new field": 1', b'"state": "lost"', "state: expected one of 'open', 'closed'"),
        (b'"rate": 2,', b"", "rate missing"),
        (b'"new field": 1', b'"parent": {}', "parent: "),
    ],
)
def test_a_payload_of_another_shape_says_where(was: bytes, is_now: bytes, words: str):
    assert was in ORDER
    with pytest.raises(Undecodable) as raised:
        decoder_of(Order)(message(ORDER.replace(was, is_now)))
    assert words in str(raised.value)


class Priced(pydantic.BaseModel):
    id: UUID
    price: Decimal = pydantic.Field(gt=0)


def test_a_pydantic_model_validates():
    decode = decoder_of(Priced)
    number = UUID("0198a1f0-0000-7000-8000-000000000001")
    assert decode(message(f'{{"id": "{number}", "price": "2.5"}}'.encode())) == Priced(id=number, price=Decimal("2.5"))
    with pytest.raises(Undecodable, match="price: Input should be greater than 0") as raised:
        decode(message(f'{{"id": "{number}", "price": "-17.03"}}'.encode()))
    assert "17.03" not in str(raised.value)
    for payload in (None, b"{"):
        with pytest.raises(Undecodable):
            decode(message(payload))


def test_a_model_or_none_takes_a_tombstone():
    assert decoder_of(Priced | None)(message(None)) is None
    assert decoder_of(Line | None)(message(None)) is None
    with pytest.raises(Undecodable):
        decoder_of(Line)(message(None))
