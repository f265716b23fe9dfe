import json
from datetime import UTC, datetime
from decimal import Decimal
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from outbox import JSON, WriteError
from outbox.serializer import encoded

texts = st.text(st.characters(exclude_categories=["Cs"]))
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner) | st.dictionaries(texts, inner),
    max_leaves=20,
)


@given(json_values)
def test_json_comes_back_as_it_was(value):
    assert json.loads(JSON.serialize(value)) == value


@given(st.decimals(allow_nan=False, allow_infinity=False))
def test_no_digit_of_a_decimal_is_lost(value: Decimal):
    back = Decimal(json.loads(JSON.serialize(value)))
    assert back.as_tuple() == value.as_tuple()


@given(st.datetimes(timezones=st.timezones() | st.just(UTC)), st.uuids())
def test_moments_and_ids_come_back(at: datetime, number: UUID):
    at_back, number_back = json.loads(JSON.serialize([at, number]))
    # In UTC: by the rules of datetime an hour that comes twice equals nothing in another zone.
    assert (datetime.fromisoformat(at_back).astimezone(UTC), UUID(number_back)) == (at.astimezone(UTC), number)


@given(st.none() | st.binary() | st.text() | json_values | st.datetimes(), st.integers(0, 50))
def test_a_payload_is_within_the_limit_or_refused(payload, most_bytes: int):
    try:
        content, content_type = encoded(payload, JSON, most_bytes)
    except WriteError:
        return
    assert "/" in content_type
    assert (content is None) == (payload is None)
    assert content is None or len(content) <= most_bytes
