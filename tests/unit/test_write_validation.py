import subprocess
import sys
import uuid
from typing import Any

import pytest
import uuid_utils
from sqlalchemy import MetaData, create_engine
from sqlalchemy.orm import Session

from outbox import ConfigurationError, Outbox, WriteError, correlate, current_correlation
from outbox.cloudevents import RESERVED, TAKEN, is_reserved


@pytest.fixture
def session():
    """A session that has nothing to connect to: what is refused here is refused before anything is sent."""
    engine = create_engine("sqlite:////nowhere/at/all.db")
    with Session(engine) as session:
        yield session
    engine.dispose()


outbox = Outbox()


def write(session: Session, **given: Any):
    return outbox.write(session, **{"topic": "orders", "payload": b"", **given})


@pytest.mark.parametrize(
    "topic", ["", ".", "..", "a b", "a\n", "a\0", "ä", "a/b", "a" * 250, "a\x1b[0m", None, 7, b"orders"]
)
def test_a_topic_that_is_not_well_formed_is_refused(session: Session, topic: Any):
    with pytest.raises(WriteError, match="not well-formed"):
        write(session, topic=topic)


@pytest.mark.parametrize("topic", ["a", "a" * 249, "...", "Orders.v1_2-3"])
def test_a_well_formed_topic_is_taken(session: Session, topic: str):
    assert write(session, topic=topic).type == topic


def test_a_topic_that_is_not_declared_is_refused(session: Session):
    declared = Outbox(topics=["orders", "payments"])
    declared.write(session, topic="orders", payload=b"")
    with pytest.raises(WriteError, match="'order' is not declared"):
        declared.write(session, topic="order", payload=b"")
    with pytest.raises(WriteError, match="not declared"):
        Outbox(topics=[]).write(session, topic="orders", payload=b"")


@pytest.mark.parametrize("name", ["key", "type"])
@pytest.mark.parametrize("value", ["a\0b", "\ud800", 42, b"key", uuid.UUID(int=0)])
def test_text_that_postgresql_cannot_store_is_refused(session: Session, name: str, value: Any):
    with pytest.raises(WriteError, match=f"the {name} is"):
        write(session, **{name: value})


@pytest.mark.parametrize(
    "headers",
    [
        {"a": "\0"},
        {"\0": "a"},
        {"a": "\udfff"},
        {"\udfff": "a"},
        {"a": 1},
        {1: "a"},
        {"a": None},
        {"": "a"},
        ["a"],
        "a",
    ],
)
def test_headers_that_cannot_be_stored_are_refused(session: Session, headers: Any):
    with pytest.raises(WriteError, match="header"):
        write(session, headers=headers)


OTHERWISE_SPELT = ["CE_ID", "Content-Type", "TraceParent", "ce_anything", "cloudEvents:id"]


@pytest.mark.parametrize("name", [*sorted(RESERVED), *OTHERWISE_SPELT])
def test_a_reserved_header_is_refused_in_any_case(session: Session, name: str):
    assert is_reserved(name)
    with pytest.raises(WriteError, match="reserved"):
        write(session, headers={name: "x"})


@pytest.mark.parametrize("name", ["ce", "tracestate", "x-ce_id", "content-length", "é"])
def test_other_headers_are_the_users(session: Session, name: str):
    assert write(session, headers={name: "x"}).headers == {name: "x"}


def test_the_headers_that_are_taken_are_reserved():
    assert set(TAKEN) < RESERVED


def test_headers_are_copied(session: Session):
    headers = {"a": "b"}
    message = write(session, headers=headers)
    headers["a"] = "changed"
    assert message.headers == {"a": "b"}


def test_ids_are_uuids_of_the_standard_library(session: Session):
    given = uuid_utils.uuid7()
    message = write(session, id=given)
    assert type(message.id) is uuid.UUID and str(message.id) == str(given)
    assert write(session, id=message.id).id == message.id
    assert write(session).id.version == 7
    with pytest.raises(WriteError, match=r"uuid\.UUID"):
        write(session, id=str(given))


def test_later_ids_sort_behind_earlier_ones(session: Session):
    ids = [write(session).id for _ in range(1000)]
    assert ids == sorted(ids)


def test_correlation_and_causation_come_from_the_context(session: Session):
    story = uuid.UUID(int=1)
    with correlate(correlation_id=story), correlate(causation_id="cause") as inner:
        assert current_correlation() is inner
        message = write(session, headers={"a": "b"})
    assert message.headers == {"a": "b", "ce_correlationid": str(story), "ce_causationid": "cause"}
    assert write(session).headers == {}


def test_a_correlation_id_that_cannot_be_stored_is_refused():
    with pytest.raises(WriteError, match="the correlation id"), correlate(correlation_id="\0"):
        pytest.fail("it was taken")


def test_traceparent_comes_from_the_current_span(session: Session):
    from opentelemetry import trace  # noqa: PLC0415 - the one test that has a span

    span = trace.NonRecordingSpan(
        trace.SpanContext(trace_id=1, span_id=2, is_remote=False, trace_flags=trace.TraceFlags(1))
    )
    with trace.use_span(span):
        message = write(session)
    assert message.headers == {"traceparent": "00-00000000000000000000000000000001-0000000000000002-01"}


def test_what_is_refused_leaves_no_transaction_behind(session: Session):
    for wrong in ({"topic": ""}, {"payload": object()}, {"headers": {"ce_id": "x"}}, {"key": 1}):
        with pytest.raises(WriteError):
            write(session, **wrong)
    assert not session.in_transaction()


def test_objects_on_one_metadata_share_its_tables():
    metadata = MetaData(schema="mine")
    one, two = Outbox(metadata=metadata, prefix="p_"), Outbox(metadata=metadata, prefix="p_")
    assert one.tables.outbox is two.tables.outbox
    assert sorted(metadata.tables) == [
        "mine.p_outbox",
        "mine.p_outbox_installation",
        "mine.p_relay",
        "mine.p_relay_checkpoint",
    ]


@pytest.mark.parametrize(
    "wrong",
    [
        {"topics": "orders"},
        {"topics": ["a b"]},
        {"topics": [None]},
        {"source": ""},
        {"source": "\0"},
        {"max_payload_bytes": 0},
        {"bind": "sqlite://"},
    ],
)
def test_a_wrong_setting_is_a_configuration_error(wrong: dict[str, Any]):
    with pytest.raises(ConfigurationError):
        Outbox(**wrong)


def test_import_outbox_loads_no_driver_and_nothing_of_the_processes():
    program = """
import sys, outbox
names = set(sys.modules)
print(*sorted(name for name in names if name.startswith(("outbox.process", "relay", "inbox"))))
tops = {name.partition(".")[0] for name in names} - sys.stdlib_module_names
print(*sorted(tops & {"psycopg", "asyncpg", "aiosqlite", "pydantic", "typer", "rich", "apscheduler"}))
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == []
