"""From id to offset and back between runs; and what has to do with ids beside the handling."""

import asyncio
import logging
import uuid
from typing import Any, Literal

import pytest
from databases import rows, wait_until
from inbox_road import TOPIC, Road, effect, message, on
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from inbox import Delivery, Inbox, Reject
from inbox.forgetting import forget
from inbox.testing import Outcome, deliver, deliver_async
from outbox.errors import ConfigurationError, Permanent
from outbox.process.urls import parse_url, with_driver
from relay.logs.partition import partition_of

GROUP = "billing"
REFUSED = r"group 'billing' has run with deduplicate='id'.*delete from \"?inbox\"? where consumer_group = 'billing'"
WARNED = "group billing has handled messages and remembers the ids of none"


@pytest.fixture
def road(database_url: str) -> Road:
    return Road(database_url)


@pytest.fixture(params=["def", "async def"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def run(
    road: Road, deduplicate: Literal["id", "offset"], body: Any = effect, kind: str = "def", **options: Any
) -> None:
    inbox = Inbox(GROUP, deduplicate=deduplicate)
    on(inbox, kind, body)
    inbox.run(road.database, road.log, once=True, **options)


def delete_ids(road: Road) -> None:
    rows(road.database, f"delete from inbox where consumer_group = '{GROUP}'")


# From one to the other


def test_a_group_with_ids_does_not_begin_by_offset_until_they_are_gone(road: Road, kind: str) -> None:
    road.write("one")
    run(road, "id", kind=kind)
    road.write("two")
    with pytest.raises(ConfigurationError, match=REFUSED):
        run(road, "offset", kind=kind)
    assert road.effects == ["one"]
    delete_ids(road)
    run(road, "offset", kind=kind)
    assert road.effects == ["one", "two"]
    assert road.counts() == (2, 0, 0)
    assert road.ids() == 0


def test_the_ids_of_other_groups_do_not_count(road: Road) -> None:
    other = Inbox("other")
    on(other, "def", effect)
    road.write("one")
    other.run(road.database, road.log, once=True)
    run(road, "offset")
    assert road.effects == ["one", "one"]


def test_what_concurrency_handled_ahead_of_its_claims_is_not_handled_again_by_offset(postgresql_url: str) -> None:
    """INVARIANT I4: beyond the prefix that is done, messages are known by their ids alone.

    Were a group let on by offset because its claims are there, it would begin at the prefix and handle them again.
    """
    road = Road(postgresql_url)
    refusing = [True]

    def refuses_the_first(delivery: Delivery[str], session: Session) -> None:
        if delivery.data == "first" and refusing:
            raise Reject("not yet")
        effect(delivery, session)

    keys = [key for key in map(str, range(1000)) if partition_of(key, message("").id, 4) == 0][:2]
    with pytest.raises(Permanent):
        run_with_a_message_behind(road, refuses_the_first, keys)
    assert road.effects == ["ahead"]
    with pytest.raises(ConfigurationError, match=REFUSED):
        run(road, "offset")
    refusing.clear()
    run(road, "id", refuses_the_first)
    delete_ids(road)
    run(road, "offset")
    assert road.effects == ["ahead", "first"]


def run_with_a_message_behind(road: Road, body: Any, keys: list[str]) -> None:
    """Let the second of two messages be handled while the first is not: it is rejected when the second is done."""

    def in_turn(delivery: Delivery[str], session: Session) -> None:
        if delivery.data == "first":
            wait_until(lambda: road.effects == ["ahead"], "the message behind it is handled")
        body(delivery, session)

    road.put(message("first", key=keys[0]), message("ahead", key=keys[1]))
    run(road, "id", in_turn, concurrency=2)


def test_a_group_that_goes_back_to_ids_goes_on_at_its_claims_and_is_told_what_it_does_not_know(
    road: Road, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    one, two = message("one"), message("two")
    road.put(one)
    run(road, "offset", kind=kind)
    assert WARNED not in caplog.text
    road.put(two)
    run(road, "id", kind=kind)
    assert road.effects == ["one", "two"]
    assert caplog.text.count(WARNED) == 1
    road.put(two, one)
    run(road, "id", kind=kind)
    assert road.effects == ["one", "two", "one"], "handled by offset, it left no id"
    assert road.counts() == (3, 1, 0)
    assert caplog.text.count(WARNED) == 1


def test_a_new_group_by_id_is_told_nothing(road: Road, caplog: pytest.LogCaptureFixture) -> None:
    run(road, "id")
    road.write("one")
    run(road, "id")
    run(road, "id")
    assert WARNED not in caplog.text


# Beside the handling


@pytest.mark.parametrize("deduplicate", ["id", "offset"])
def test_there_is_no_retention_of_ids_by_offset(
    database_url: str, deduplicate: Literal["id", "offset"], caplog: pytest.LogCaptureFixture
) -> None:
    """The warning that ids go before the log's records would be wrong, and a walk through the table for nothing."""
    road = Road(database_url)
    rows(road.database, "insert into log_topic (name, incarnation, partitions, retain_seconds) values (?, ?, 1, ?)",
         TOPIC, uuid.uuid4().hex, 2_592_000)  # fmt: skip
    road.log = road.database
    with caplog.at_level(logging.DEBUG, "inbox"):
        run(road, deduplicate)
    assert ("the log keeps topic 'orders' for 30d, and ids" in caplog.text) is (deduplicate == "id")


def test_a_group_that_is_forgotten_begins_anew(road: Road) -> None:
    road.write("one")
    run(road, "offset")
    forget(road.database, road.log, GROUP)
    assert rows(road.database, "select count(*) from inbox_offset") == [(0,)]
    assert road.open_log().committed(GROUP) == {}
    run(road, "offset")
    assert road.effects == ["one", "one"]


def test_a_delivery_of_a_test_is_a_record_of_its_own(road: Road) -> None:
    inbox = Inbox(GROUP, deduplicate="offset")
    on(inbox, "def", effect)
    engine = create_engine(with_driver(parse_url(road.database)))
    one = message("one")
    with Session(engine) as session, session.begin():
        assert deliver(inbox, one, session=session) is Outcome.HANDLED
        assert deliver(inbox, one, session=session) is Outcome.HANDLED
    engine.dispose()
    assert road.effects == ["one", "one"]
    assert road.ids() == 0


def test_so_it_is_for_async_handlers(road: Road) -> None:
    inbox = Inbox(GROUP, deduplicate="offset")
    on(inbox, "async def", effect)

    async def twice() -> None:
        engine = create_async_engine(with_driver(parse_url(road.database), asynchronous=True))
        one = message("one")
        async with AsyncSession(engine) as session, session.begin():
            assert await deliver_async(inbox, one, session=session) is Outcome.HANDLED
            assert await deliver_async(inbox, one, session=session) is Outcome.HANDLED
        await engine.dispose()

    asyncio.run(twice())
    assert road.effects == ["one", "one"]
    assert road.ids() == 0
