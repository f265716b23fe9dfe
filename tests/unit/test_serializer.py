import json
from collections import namedtuple
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from typing import Any
from uuid import UUID

import pydantic
import pytest

from outbox import JSON, WriteError
from outbox.serializer import encoded


class Colour(Enum):
    RED = "red"
    SINCE = datetime(2026, 1, 2, tzinfo=UTC)


class Size(IntEnum):
    LARGE = 3


class Name(StrEnum):
    ADA = "ada"


@dataclass(frozen=True, slots=True)
class Line:
    price: Decimal
    colour: Colour


Point = namedtuple("Point", "x y")  # noqa: PYI024 - as people write them


class Order(pydantic.BaseModel):
    placed_at: datetime = pydantic.Field(alias="placedAt")
    lines: list[Line] = []
    length: timedelta = timedelta(hours=1)


AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone(timedelta(hours=2)))
NAIVE = datetime(2026, 1, 2)  # noqa: DTZ001 - that is the point


def test_each_type_that_events_are_made_of_has_a_form():
    payload = {
        "datetime": AT,
        "date": date(2026, 1, 2),
        "uuid": UUID(int=1),
        "decimal": Decimal("12.50"),
        "enums": [Colour.RED, Size.LARGE, Name.ADA, Colour.SINCE],
        "dataclass": Line(Decimal("0.1"), Colour.RED),
        "model": Order(placedAt=AT, lines=[Line(Decimal(1), Colour.RED)]),
        "tuple": (1, Point(2, 3)),
        "text": "grün\0",
    }
    assert json.loads(JSON.serialize(payload)) == {
        "datetime": "2026-01-02T03:04:05+02:00",
        "date": "2026-01-02",
        "uuid": "00000000-0000-0000-0000-000000000001",
        "decimal": "12.50",
        "enums": ["red", 3, "ada", "2026-01-02T00:00:00+00:00"],
        "dataclass": {"price": "0.1", "colour": "red"},
        "model": {
            "placedAt": "2026-01-02T03:04:05+02:00",
            "lines": [{"price": "1", "colour": "red"}],
            "length": "PT1H",
        },
        "tuple": [1, [2, 3]],
        "text": "grün\0",
    }


def test_a_model_can_be_read_back_by_itself():
    order = Order(placedAt=AT)
    assert Order.model_validate_json(JSON.serialize(order)) == order


@dataclass
class Stamped:
    at: datetime


class Deep(pydantic.BaseModel):
    stamped: list[tuple[Stamped, ...]] = []
    by: dict[str, Any] = {}


@pytest.mark.parametrize(
    "payload",
    [
        NAIVE,
        [NAIVE],
        {"at": NAIVE},
        Stamped(NAIVE),
        Order(placedAt=NAIVE),
        {"deep": Deep(stamped=[(Stamped(NAIVE),)])},
        Deep(by={"x": [{"y": NAIVE}]}),
        Deep(by={"x": {NAIVE}}),
    ],
)
def test_a_naive_datetime_is_refused_however_deep_it_lies(payload: Any):
    with pytest.raises(WriteError, match="is naive"):
        encoded(payload, JSON, 1000)


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        (float("nan"), "Out of range float"),
        ([float("inf")], "Out of range float"),
        (Decimal("NaN"), "no number that JSON has"),
        ({1, 2}, "JSON has no form for set"),
        ([b"bytes"], "JSON has no form for bytes"),
        (object(), "JSON has no form for object"),
        (Stamped, "JSON has no form for type"),
        (Order, "JSON has no form for ModelMetaclass"),
        ({(1, 2): 3}, "keys must be str"),
        (["\ud800"], "surrogates not allowed"),
        ("\ud800", "surrogates not allowed"),
    ],
)
def test_what_json_cannot_say_is_refused_in_words(payload: Any, words: str):
    with pytest.raises(WriteError, match=words):
        encoded(payload, JSON, 1000)


def test_a_payload_that_holds_itself_is_refused():
    circle: list[Any] = []
    circle.append(circle)
    with pytest.raises(WriteError, match="Circular"):
        encoded(circle, JSON, 1000)


@pytest.mark.parametrize(
    ("payload", "content", "content_type"),
    [
        (None, None, "application/json"),
        (b"\0\xff", b"\0\xff", "application/octet-stream"),
        (bytearray(b"a"), b"a", "application/octet-stream"),
        (memoryview(b"a"), b"a", "application/octet-stream"),
        ("grün", "grün".encode(), "text/plain; charset=utf-8"),
        ("", b"", "text/plain; charset=utf-8"),
        ({}, b"{}", "application/json"),
        (0, b"0", "application/json"),
        (False, b"false", "application/json"),
    ],
)
def test_the_content_type_follows_from_the_payload(payload: Any, content: bytes | None, content_type: str):
    assert encoded(payload, JSON, 1000) == (content, content_type)


@pytest.mark.parametrize("payload", [b"12345", "123é", [123]])
def test_the_limit_counts_bytes_and_is_itself_allowed(payload: Any):
    content, _ = encoded(payload, JSON, 5)
    assert content is not None and len(content) == 5
    with pytest.raises(WriteError, match="has 5 bytes and the limit is 4"):
        encoded(payload, JSON, 4)


class Reversed:
    content_type = "text/reversed"

    def serialize(self, payload: Any) -> Any:
        return payload["as"][::-1]


def test_a_serializer_of_the_users_own():
    assert encoded({"as": b"abc"}, Reversed(), 10) == (b"cba", "text/reversed")
    with pytest.raises(WriteError, match="cannot be serialised: 'as'"):
        encoded({}, Reversed(), 10)
    with pytest.raises(WriteError, match="returned str instead of bytes"):
        encoded({"as": "abc"}, Reversed(), 10)
