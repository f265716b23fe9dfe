"""Handling on both databases, by `def` and by `async def`: what a user of the inbox sees when all goes well."""

import asyncio
import json
import threading
from dataclasses import dataclass
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import pytest
from databases import rows, wait_until
from inbox_road import INSERT, Road, effect, message, on, running
from sqlalchemy import Connection, Identity, Integer, create_engine, select, text
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine
from sqlalchemy.ext.asyncio import AsyncSession as AnAsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from inbox import Delivery, Inbox
from inbox.status import status
from outbox import Outbox
from outbox.errors import ConfigurationError, Unreachable
from outbox.process.urls import parse_url, with_driver


@pytest.fixture
def road(database_url: str) -> Road:
    return Road(database_url)


@pytest.fixture(params=["def", "async def"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_each_message_is_handled_once_and_in_order(road: Road, kind: str) -> None:
    inbox = Inbox("billing")
    on(inbox, kind, effect)
    road.write(*map(str, range(200)))
    inbox.run(road.database, road.log, once=True)
    inbox.run(road.database, road.log, once=True)
    assert road.effects == [str(number) for number in range(200)]
    assert road.counts() == (200, 0, 0)
    assert road.ids() == 200


def test_a_message_twice_in_one_batch_has_one_effect(road: Road, kind: str) -> None:
    """Insert-first alone lets both through: the second is as new to the statement as the first."""
    inbox = Inbox("billing")
    on(inbox, kind, effect)
    one, two = message("one"), message("two")
    road.put(one, two, one, two, one)
    inbox.run(road.database, road.log, once=True)
    assert road.effects == ["one", "two"]
    assert road.counts() == (2, 3, 0)


def test_a_message_twice_in_two_batches_has_one_effect(road: Road, kind: str) -> None:
    inbox = Inbox("billing")
    on(inbox, kind, effect)
    one, two = message("one"), message("two")
    road.put(one)
    inbox.run(road.database, road.log, once=True)
    road.put(one, two)
    inbox.run(road.database, road.log, once=True)
    road.put(two, one)
    inbox.run(road.database, road.log, once=True)
    assert road.effects == ["one", "two"]
    assert road.counts() == (2, 3, 0)


def test_one_id_from_two_sources_is_two_messages(road: Road) -> None:
    inbox = Inbox("billing")
    on(inbox, "def", effect)
    shared = uuid4()
    road.put(message("shop", id=shared, source="/shop"), message("bank", id=shared, source="/bank"))
    inbox.run(road.database, road.log, once=True)
    assert road.effects == ["shop", "bank"]


def test_groups_are_independent(road: Road) -> None:
    for group in ("billing", "shipping"):
        inbox = Inbox(group)
        on(inbox, "def", effect)
        if group == "billing":
            road.write("one")
        inbox.run(road.database, road.log, once=True)
    assert road.effects == ["one", "one"]


def test_a_type_without_a_handler_is_ignored_and_counted(road: Road, kind: str) -> None:
    inbox = Inbox("billing")
    on(inbox, kind, effect, type="Placed")
    road.put(message("one"), message("no", type="Cancelled"), message("two"))
    inbox.run(road.database, road.log, once=True)
    assert road.effects == ["one", "two"]
    assert road.counts() == (2, 0, 1)
    assert road.ids() == 2


def test_the_handler_of_a_type_beats_the_one_for_all_types(road: Road) -> None:
    inbox = Inbox("billing")
    seen: list[tuple[str, str]] = []

    @inbox.handler("orders")
    def others(delivery: Delivery[str]) -> None:
        seen.append(("others", delivery.data))

    @inbox.handler("orders", type="Placed")
    def placed(delivery: Delivery[str]) -> None:
        seen.append(("placed", delivery.data))

    road.put(message("one"), message("two", type="Cancelled"))
    inbox.run(road.database, road.log, once=True)
    assert seen == [("placed", "one"), ("others", "two")]


def test_a_handler_gets_what_it_asks_for_by_annotation(road: Road) -> None:
    inbox = Inbox("billing")

    @inbox.handler("orders")
    def handle(connection: Connection, session: Session, delivery: Delivery[str]) -> None:
        connection.execute(text(INSERT), {"body": "core", "attempt": delivery.partition})
        session.execute(text(INSERT), {"body": "orm", "attempt": delivery.offset})
        assert session.connection() is connection

    road.write("one")
    inbox.run(road.database, road.log, once=True)
    assert road.effects == ["core", "orm"]


def test_an_async_handler_gets_an_async_session_and_connection(road: Road) -> None:
    inbox = Inbox("billing")

    @inbox.handler("orders")
    async def handle(session: AnAsyncSession, connection: AsyncConnection, delivery: Delivery[str]) -> None:
        await connection.execute(text(INSERT), {"body": "core", "attempt": delivery.partition})
        await session.execute(text(INSERT), {"body": "orm", "attempt": delivery.offset})

    road.write("one")
    asyncio.run(inbox.run_async(road.database, road.log, once=True))
    assert road.effects == ["core", "orm"]


def test_without_annotations_it_is_the_delivery_and_then_the_session(road: Road, kind: str) -> None:
    inbox = Inbox("billing")
    if kind == "def":

        @inbox.handler("orders")
        def handle(delivery, session):
            effect(delivery, session)

    else:

        @inbox.handler("orders")
        async def handle_async(delivery, session):
            await session.execute(text(INSERT), {"body": delivery.data, "attempt": 1})

    road.write("one")
    inbox.run(road.database, road.log, once=True)
    assert road.effects == ["one"]


def test_what_a_handler_leaves_in_its_session_is_its_own(road: Road) -> None:
    """One session serves the whole batch: what one handler loaded or changed must not be there for the next."""

    class Base(DeclarativeBase):
        pass

    class Effect(Base):
        __tablename__ = "effects"
        number: Mapped[int] = mapped_column(Integer, Identity(), primary_key=True)
        body: Mapped[str]

    inbox = Inbox("billing")
    identities: list[int] = []
    kept: list[Any] = []

    @inbox.handler("orders")
    def handle(delivery: Delivery[str], session: Session) -> None:
        identities.append(len(session.identity_map) + len(session.new))
        with session.begin_nested():
            session.add(Effect(body=delivery.data))
        kept.append(session.scalars(select(Effect)).all())

    road.write("one", "two", "three")
    inbox.run(road.database, road.log, once=True)
    assert identities == [0, 0, 0]
    assert [len(found) for found in kept] == [1, 2, 3]
    assert road.effects == ["one", "two", "three"]


@dataclass(frozen=True)
class Placed:
    id: UUID
    price: Decimal
    note: str | None = None


def test_the_payload_comes_as_the_dataclass_that_the_handler_names(road: Road) -> None:
    inbox = Inbox("billing")
    seen: list[Any] = []

    @inbox.handler("orders")
    def handle(delivery: Delivery[Placed]) -> None:
        seen.append(delivery.data)

    number = UUID("0198a1f0-0000-7000-8000-000000000001")
    road.put(message(f'{{"id": "{number}", "price": "1.50", "more": 1}}', content_type="application/json"))
    inbox.run(road.database, road.log, once=True)
    assert seen == [Placed(number, Decimal("1.50"))]


def test_what_a_handler_writes_to_the_outbox_goes_with_its_transaction_and_names_its_cause(
    road: Road, kind: str
) -> None:
    inbox, outbox = Inbox("billing"), Outbox()
    failed: list[str] = []

    def invoice(delivery: Delivery[str], session: Session) -> None:
        outbox.write(session, topic="invoices", payload=delivery.data)
        effect(delivery, session)
        if delivery.data == "two" and not failed:
            failed.append("two")
            raise RuntimeError("not this time")

    on(inbox, kind, invoice)
    first, second = message("one"), message("two", headers={"ce_correlationid": "story"})
    road.put(first, second)
    inbox.run(road.database, road.log, once=True)
    written = rows(road.database, "select payload, headers from outbox order by position")
    found = [(bytes(row[0]).decode(), row[1] if isinstance(row[1], dict) else json.loads(row[1])) for row in written]
    assert found == [
        ("one", {"ce_correlationid": str(first.id), "ce_causationid": str(first.id)}),
        ("two", {"ce_correlationid": "story", "ce_causationid": str(second.id)}),
    ]
    assert road.effects == ["one", "two"]


def test_the_trace_of_the_message_goes_on_in_what_its_handler_writes(road: Road) -> None:
    inbox, outbox = Inbox("billing"), Outbox()

    @inbox.handler("orders")
    def handle(delivery: Delivery[str], session: Session) -> None:
        outbox.write(session, topic="invoices", payload=delivery.data)

    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    road.put(message("one", headers={"traceparent": parent}), message("two"))
    inbox.run(road.database, road.log, once=True)
    headers = [str(row[0]) for row in rows(road.database, "select headers from outbox order by position")]
    assert "0af7651916cd43dd8448eb211c80319c" in headers[0]
    assert "traceparent" not in headers[1]


def test_it_runs_until_it_is_told_to_stop_and_reads_topics_that_appear_later(road: Road, kind: str) -> None:
    inbox = Inbox("billing")
    on(inbox, kind, effect)
    with running(inbox.run, road.database, road.log):
        road.write("one")
        wait_until(lambda: road.effects == ["one"], "the first message is handled")
        road.write("two", "three")
        wait_until(lambda: road.effects == ["one", "two", "three"], "later messages are handled")


def test_latest_begins_at_the_end_of_what_was_there_and_at_the_start_of_what_appears_later(road: Road) -> None:
    inbox = Inbox("billing")
    on(inbox, "def", effect)

    @inbox.handler("refunds")
    def refund(delivery: Delivery[str], session: Session) -> None:
        effect(delivery, session)

    road.write("old")
    inbox.run(road.database, road.log, once=True, start="latest")
    assert road.effects == []
    road.write("new")
    road.put(message("refund", topic="refunds"))
    inbox.run(road.database, road.log, once=True, start="latest")
    assert sorted(road.effects) == ["new", "refund"]


def test_latest_on_an_empty_log_reads_the_first_topic_from_its_first_record(road: Road) -> None:
    inbox = Inbox("billing")
    on(inbox, "def", effect)
    inbox.run(road.database, road.log, once=True, start="latest")
    road.write("first")
    inbox.run(road.database, road.log, once=True, start="latest")
    assert road.effects == ["first"]


def test_a_topic_that_does_not_exist_is_a_notice(road: Road, caplog: pytest.LogCaptureFixture) -> None:
    inbox = Inbox("billing")
    on(inbox, "def", effect)
    inbox.run(road.database, road.log, once=True)
    assert "topic orders does not exist yet" in caplog.text


def test_once_leaves_the_partitions_of_a_live_member_alone(road: Road) -> None:
    inbox = Inbox("billing")
    on(inbox, "def", effect)
    road.write("one")
    held = road.open_log().consumer("billing", ["orders"], Nobody())
    held.poll(0)
    inbox.run(road.database, road.log, once=True)
    assert road.effects == []
    held.close()
    inbox.run(road.database, road.log, once=True)
    assert road.effects == ["one"]


class Nobody:
    def assigned(self, partitions: Any) -> Any:
        return dict.fromkeys(partitions, 0)

    def revoked(self, partitions: Any) -> None:
        pass


def test_one_group_does_not_run_twice_in_one_process(road: Road) -> None:
    inbox = Inbox("billing")
    on(inbox, "def", effect)
    road.write("one")
    with running(inbox.run, road.database, road.log):
        wait_until(lambda: road.effects == ["one"], "the first runs")
        with pytest.raises(ConfigurationError, match="'billing' runs in this process already"):
            inbox.run(road.database, road.log, once=True)
        inbox.run(road.database, road.log, once=True, group="another")


def test_first_time_says_it_once(road: Road) -> None:
    inbox = Inbox("billing")
    engine = create_engine(with_driver(parse_url(road.database)))
    known = uuid4()
    with Session(engine) as session, session.begin():
        assert inbox.first_time(session, known, "/shop") is True
        assert inbox.first_time(session, known, "/shop") is False
        assert inbox.first_time(session, str(known), "/bank") is True
        assert inbox.first_time(session, "order-7") is True
    with engine.begin() as connection:
        assert inbox.first_time(connection, str(known), "/shop") is False
        assert inbox.first_time(connection, "order-7") is False
        assert Inbox("shipping").first_time(connection, known, "/shop") is True
        connection.rollback()
    engine.dispose()
    assert road.ids("shipping") == 0

    async def ask() -> list[bool]:
        made = create_async_engine(with_driver(parse_url(road.database), asynchronous=True))
        async with AnAsyncSession(made) as session, session.begin():
            found = [await inbox.first_time(session, known, "/shop"), await inbox.first_time(session, uuid4())]
        await made.dispose()
        return found

    assert asyncio.run(ask()) == [False, True]


def test_status_says_what_was_handled_and_how_far_behind_each_partition_is(road: Road) -> None:
    inbox = Inbox("billing")
    on(inbox, "def", effect, type="Placed")
    one = message("one")
    road.put(one, one, message("no", type="Cancelled"))
    inbox.run(road.database, road.log, once=True)
    road.write("two", "three")
    (found,) = status(road.database, log=road.log)
    assert (found.group, found.handled, found.duplicates, found.ignored, found.dead_letters) == ("billing", 1, 1, 1, 0)
    assert found.lag_messages is not None
    assert set(found.lag_messages) == {"orders"}
    assert sorted(found.lag_messages["orders"]) == [0, 1, 2, 3]
    assert sum(found.lag_messages["orders"].values()) == 2
    (without,) = status(road.database)
    assert without.lag_messages is None


def test_tables_that_are_missing_are_an_error_in_words(sqlite_url: str, tmp_path: Any) -> None:
    (tmp_path / "app.db").touch()
    inbox = Inbox("billing")
    on(inbox, "def", effect)
    with pytest.raises(ConfigurationError, match="outbox init"):
        inbox.run(sqlite_url, "memory://nothing", once=True)


def test_once_gives_up_on_a_database_that_is_away(caplog: pytest.LogCaptureFixture, kind: str) -> None:
    inbox = Inbox("billing")
    on(inbox, kind, effect)
    with pytest.raises(Unreachable) as raised:
        inbox.run("postgresql://x:secret@127.0.0.1:1/x", "memory://nothing", once=True, wait=0.3)
    assert "secret" not in str(raised.value) + caplog.text
    assert "waiting for the database" in caplog.text


def test_a_process_that_waits_for_its_database_can_be_stopped() -> None:
    inbox = Inbox("billing")
    on(inbox, "def", effect)
    stop = threading.Event()
    threading.Timer(0.3, stop.set).start()
    inbox.run("postgresql://x:secret@127.0.0.1:1/x", "memory://nothing", stop=stop)
    assert stop.is_set()


def test_a_task_that_is_cancelled_finishes_what_is_in_hand(road: Road) -> None:
    inbox = Inbox("billing")

    async def main() -> None:
        begun, go_on = asyncio.Event(), asyncio.Event()

        @inbox.handler("orders")
        async def handle(delivery: Delivery[str], session: AnAsyncSession) -> None:
            begun.set()
            await go_on.wait()
            await session.execute(text(INSERT), {"body": delivery.data, "attempt": 1})

        task = asyncio.create_task(inbox.run_async(road.database, road.log))
        await begun.wait()
        task.cancel()
        asyncio.get_running_loop().call_later(0.1, go_on.set)
        with pytest.raises(asyncio.CancelledError):
            await task

    road.write("one")
    asyncio.run(main())
    assert road.effects == ["one"]
