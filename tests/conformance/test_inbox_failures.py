"""Handlers that fail, take too long, or do what they must not: what is rolled back, tried again, and stopped."""

import threading
from dataclasses import dataclass, replace
from datetime import timedelta

import pytest
from databases import rows, wait_until
from inbox_road import TOPIC, Road, effect, message, on, running
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from inbox import Delivery, Inbox, Reject, Retry
from outbox.errors import Permanent
from outbox.retry import RetryPolicy
from relay.logs.partition import partition_of

AT_ONCE = RetryPolicy(first_seconds=0)


@pytest.fixture
def road(database_url: str) -> Road:
    return Road(database_url)


@pytest.fixture(params=["def", "async def"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def key_of(partition: int) -> str:
    """A key whose messages go to this of four partitions."""
    return next(key for key in map(str, range(1000)) if partition_of(key, message("").id, 4) == partition)


def test_a_handler_that_fails_in_the_middle_of_a_batch_costs_no_other_message(road: Road, kind: str) -> None:
    """The batch is rolled back and is no attempt; its messages are handled one by one."""
    inbox = Inbox("billing")
    calls: list[tuple[str, int, bool]] = []

    def fails_once(delivery: Delivery[str], session: Session) -> None:
        calls.append((delivery.data, delivery.attempt, delivery.redelivered))
        effect(delivery, session)
        if delivery.data == "two" and calls.count(("two", 1, True)) == 1 and delivery.attempt == 1:
            raise RuntimeError("fails in the batch, and once more alone")
        if delivery.data == "two" and not delivery.redelivered:
            raise RuntimeError("fails in the batch")

    on(inbox, kind, fails_once, retry=AT_ONCE)
    road.write("one", "two", "three")
    inbox.run(road.database, road.log, once=True)
    assert road.effects == ["one", "two", "three"]
    assert calls == [
        ("one", 1, False),
        ("two", 1, False),
        ("one", 1, True),
        ("two", 1, True),
        ("two", 2, True),
        ("three", 1, True),
    ]
    assert [row[0] for row in rows(road.database, "select attempt from effects order by number")] == [1, 2, 1]
    assert road.counts() == (3, 0, 0)


def test_a_message_out_of_attempts_stops_its_partition_and_no_other(
    road: Road, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    inbox = Inbox("billing")
    attempts: list[int] = []

    def refuses(delivery: Delivery[str], session: Session) -> None:
        effect(delivery, session)
        if delivery.data == "bad":
            attempts.append(delivery.attempt)
            raise RuntimeError("no such customer")

    on(inbox, kind, refuses, retry=RetryPolicy(attempts=3, first_seconds=0))
    road.put(message("before", key=key_of(0)))
    bad = message("bad", key=key_of(0))
    road.put(bad, message("after", key=key_of(0)), message("other", key=key_of(1)))
    with pytest.raises(Permanent) as raised:
        inbox.run(road.database, road.log, once=True)
    assert sorted(road.effects) == ["before", "other"]
    assert attempts == [1, 1, 2, 3]  # the first in the batch, which was no attempt
    for words in (str(bad.id), "topic orders", "partition 0", "offset 1", "failed 3 times", "no such customer"):
        assert words in str(raised.value)
        assert words in caplog.text
    assert road.counts() == (2, 0, 0)


def test_a_restart_begins_again_at_attempt_1_and_goes_on_where_it_stopped(road: Road) -> None:
    inbox = Inbox("billing")
    attempts: list[int] = []
    mended = threading.Event()

    def handle(delivery: Delivery[str], session: Session) -> None:
        effect(delivery, session)
        if delivery.data == "bad":
            attempts.append(delivery.attempt)
            if not mended.is_set():
                raise RuntimeError("not mended")

    on(inbox, "def", handle, retry=RetryPolicy(attempts=2, first_seconds=0), batch=False)
    road.write("one", "bad", "three")
    with pytest.raises(Permanent):
        inbox.run(road.database, road.log, once=True)
    mended.set()
    inbox.run(road.database, road.log, once=True)
    assert attempts == [1, 2, 1]
    assert road.effects == ["one", "bad", "three"]


def test_a_rejected_message_is_not_tried_again(road: Road, kind: str) -> None:
    inbox = Inbox("billing")
    calls: list[str] = []

    def rejects(delivery: Delivery[str], session: Session) -> None:
        calls.append(delivery.data)
        effect(delivery, session)
        raise Reject("the order has no lines")

    on(inbox, kind, rejects, retry=AT_ONCE)
    road.write("one")
    with pytest.raises(Permanent, match=r"was rejected \(Reject: the order has no lines\)"):
        inbox.run(road.database, road.log, once=True)
    assert calls == ["one"]
    assert road.effects == []
    assert road.ids() == 0


@dataclass(frozen=True)
class Placed:
    id: int


@pytest.mark.parametrize(
    ("payload", "content_type", "words"),
    [
        (b"{", "application/json", "not application/json"),
        (b"\xff", "text/plain; charset=utf-8", "not text/plain"),
        (b'{"id": "x"}', "application/json", "id: expected int, got a text"),
        (b"{}", "application/json", "id missing"),
        (None, "application/json", "expected an object, got null"),
    ],
)
def test_a_payload_that_does_not_decode_is_the_messages_fault(
    sqlite_url: str, payload: bytes, content_type: str, words: str
) -> None:
    road = Road(sqlite_url)
    inbox = Inbox("billing")

    @inbox.handler("orders", retry=AT_ONCE)
    def handle(delivery: Delivery[Placed], session: Session) -> None:
        raise AssertionError("the handler must not see it")

    road.put(replace(message(""), payload=payload, content_type=content_type))
    with pytest.raises(Permanent, match="was rejected") as raised:
        inbox.run(road.database, road.log, once=True)
    assert words in str(raised.value)


def test_a_payload_that_is_decoded_by_the_handler_is_the_messages_fault_too(sqlite_url: str) -> None:
    road = Road(sqlite_url)
    inbox = Inbox("billing")
    on(inbox, "def", effect, retry=AT_ONCE)
    road.put(message("{", content_type="application/json"))
    with pytest.raises(Permanent, match="was rejected"):
        inbox.run(road.database, road.log, once=True)


def test_retries_keep_the_order_of_their_partition_while_others_flow(road: Road, kind: str) -> None:
    inbox = Inbox("billing")
    others_done = threading.Event()

    def handle(delivery: Delivery[str], session: Session) -> None:
        if delivery.data == "slow" and not others_done.is_set():
            raise Retry("the others first", after=timedelta(seconds=0.01))
        effect(delivery, session)

    on(inbox, kind, handle, retry=RetryPolicy(attempts=10_000))
    road.put(*(message(one, key=key_of(0)) for one in ("slow", "after slow")))
    with running(inbox.run, road.database, road.log):
        wait_until(lambda: road.open_log().committed("billing") is not None, "it runs")
        road.put(*(message(f"other {number}", key=key_of(1)) for number in range(3)))
        wait_until(lambda: len(road.effects) == 3, "the other partition flows")
        others_done.set()
        wait_until(lambda: len(road.effects) == 5, "the retry is handled")
    assert road.effects == ["other 0", "other 1", "other 2", "slow", "after slow"]


def test_messages_of_a_handler_without_batch_have_a_transaction_each(road: Road, kind: str) -> None:
    inbox = Inbox("billing")
    on(inbox, kind, effect, batch=False, type="Alone")

    @inbox.handler(TOPIC, type="Placed") if kind == "def" else (lambda function: function)
    def together(delivery: Delivery[str], session: Session) -> None:
        effect(delivery, session)

    if kind == "async def":

        @inbox.handler(TOPIC, type="Placed")
        async def together_async(delivery: Delivery[str], session: AsyncSession) -> None:
            await session.run_sync(lambda inner: effect(delivery, inner))

    types = ["Placed", "Placed", "Alone", "Alone", "Placed", "Placed"]
    road.put(*(message(str(number), type=type_) for number, type_ in enumerate(types)))
    inbox.run(road.database, road.log, once=True)
    assert road.effects == ["0", "1", "2", "3", "4", "5"]
    steps = rows(
        road.database,
        "select begin_offset, end_offset from inbox_offset where step > 0 and partition >= 0 order by step",
    )
    assert [tuple(row) for row in steps] == [(0, 2), (2, 3), (3, 4), (4, 6)]
