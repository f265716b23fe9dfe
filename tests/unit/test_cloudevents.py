from datetime import UTC, datetime, timedelta, timezone
from types import MappingProxyType
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbox.message import Epoch, Message, Offset, Position
from relay.logs.cloudevents import are_texts, foreign_id, is_reserved, message_id, resolved, wire_headers

ID = UUID("0190a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a5b")
INSTALLATION = UUID("11111111-2222-4333-8444-555555555555")
BARE = Message(ID, "orders", None, "", b"x", "application/json")


def test_a_full_message_has_every_header_of_the_contract():
    message = Message(
        ID,
        "orders",
        "42",
        "OrderPlaced",
        b"{}",
        "application/json",
        headers={
            "tenant": "a",
            "traceparent": "00-1-2-01",
            "ce_correlationid": "c",
            "ce_causationid": "b",
        },
        source="/shop",
        time=datetime(2025, 3, 1, 12, 0, 0, 250000, tzinfo=timezone(timedelta(hours=2))),
        sequence=Position(7),
    )
    assert wire_headers(message, Epoch(3)) == {
        "ce_specversion": "1.0",
        "ce_id": "0190a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a5b",
        "ce_source": "/shop",
        "ce_type": "OrderPlaced",
        "ce_time": "2025-03-01T10:00:00.250000Z",
        "content-type": "application/json",
        "ce_sequence": "0000000000000000007",
        "ce_relayepoch": "3",
        "ce_partitionkey": "42",
        "ce_correlationid": "c",
        "ce_causationid": "b",
        "traceparent": "00-1-2-01",
        "tenant": "a",
    }


def test_what_a_message_does_not_have_is_no_header():
    headers = wire_headers(resolved(BARE, INSTALLATION), Epoch(1))
    assert headers == {
        "ce_specversion": "1.0",
        "ce_id": str(ID),
        "ce_source": f"/outbox/{INSTALLATION}",
        "ce_type": "orders",
        "content-type": "application/json",
        "ce_relayepoch": "1",
    }


def test_the_largest_position_still_sorts_as_text():
    largest = Message(ID, "t", None, "", None, "", sequence=Position(2**63 - 1))
    assert wire_headers(largest, Epoch(1))["ce_sequence"] == "9223372036854775807"


def test_a_source_that_is_given_is_kept_even_when_empty():
    assert resolved(Message(ID, "t", None, "", None, "", source=""), INSTALLATION).source == ""


@pytest.mark.parametrize(
    "name",
    [
        "ce_id",
        "ce_anything",
        "CE_ID",
        "cloudEvents:id",
        "cloudEvents_id",
        "Content-Type",
        "content-type",
        "TraceParent",
    ],
)
def test_reserved_names_of_a_plain_sql_row_are_dropped(name: str):
    assert is_reserved(name)
    forged = Message(ID, "t", None, "", None, "text/plain", headers={name: "forged", "own": "kept"})
    for headers in (
        resolved(forged, INSTALLATION).headers,
        wire_headers(resolved(forged, INSTALLATION), Epoch(1)),
        wire_headers(forged, Epoch(1)),
    ):
        assert "forged" not in headers.values()
        assert headers["own"] == "kept"


@pytest.mark.parametrize("name", ["traceparent", "ce_correlationid", "ce_causationid"])
def test_the_context_of_a_plain_sql_row_is_kept(name: str):
    message = Message(ID, "t", None, "", None, "", headers={name: "x"})
    assert resolved(message, INSTALLATION).headers == {name: "x"}
    assert wire_headers(message, Epoch(1))[name] == "x"


@pytest.mark.parametrize("name", ["tenant", "trace", "content-types", "x-ce_id", "ce", "cloudevents", "x-traceparent"])
def test_other_names_are_the_users(name: str):
    assert not is_reserved(name)


@pytest.mark.parametrize("headers", [None, "text", 3, [], ["a"], {"a": 1}, {"a": None}, {"a": {"b": "c"}}, {1: "a"}])
def test_headers_that_are_no_object_of_texts_are_recognised(headers: object):
    assert not are_texts(headers)


def test_an_object_of_texts_is_one_whatever_its_class():
    assert are_texts({})
    assert are_texts(MappingProxyType({"a": "ключ"}))


@given(st.uuids())
def test_a_canonical_uuid_is_kept(value: UUID):
    assert message_id(str(value)) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "42",
        "заказ-42",
        str(ID).upper(),
        str(ID).replace("-", ""),
        "{" + str(ID) + "}",
        "urn:uuid:" + str(ID),
        str(ID) + "\n",
        " " + str(ID),
    ],
)
def test_any_other_id_becomes_one_of_its_own(text: str):
    found = message_id(text)
    assert found.version == 5
    assert found == message_id(text)
    assert found != ID


@given(st.lists(st.text(), unique=True, min_size=2))
def test_two_ids_are_never_one_message(texts: list[str]):
    assert len({message_id(text) for text in texts}) == len(texts)


def test_the_namespace_is_the_one_that_inboxes_remember():
    assert message_id("42") == UUID("799f0906-8b58-5faa-9ba8-379f6dcb0136")
    assert foreign_id(3, Offset(17)) == UUID("8e6b01ab-b79a-5311-9024-c47095ec9f92") == message_id("3/17")


@given(st.datetimes(timezones=st.just(UTC)))
def test_times_are_rfc_3339_in_utc(value: datetime):
    text = wire_headers(Message(ID, "t", None, "", None, "", time=value), Epoch(1))["ce_time"]
    assert text.endswith("Z")
    assert datetime.fromisoformat(text) == value
