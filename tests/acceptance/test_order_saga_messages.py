"""The order saga's handlers, and what other versions, repeats and late comers do to them: nothing is lost by any."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest
from murder import plain
from psycopg import sql
from sqlalchemy import create_engine, select, text
from sqlalchemy.orm import Session

from examples.order_saga import orders, payments, shipping, stock
from examples.order_saga.saga import Saga
from examples.order_saga.settings import Settings
from examples.order_saga.stage import made
from inbox import Inbox
from inbox.data import Undecodable
from inbox.testing import Outcome, deliver
from outbox.testing import decoded, message
from tests.databases import rows, wait_until


@pytest.fixture
def open_session(postgresql_url: str) -> Iterator[Callable[[], Session]]:
    """Opens sessions on one database with the tables of all four services; their names differ."""
    engine = create_engine(postgresql_url.replace("postgresql://", "postgresql+psycopg://"))
    for service in (orders, payments, stock, shipping):
        service.Base.metadata.create_all(engine)
    with ExitStack() as stack:
        yield lambda: stack.enter_context(Session(engine))
    engine.dispose()


@pytest.fixture
def session(open_session: Callable[[], Session]) -> Session:
    session = open_session()
    session.add(payments.Card(customer=1, issued_with=10_000, balance=10_000))
    session.add(stock.Shelf(item="cup", filled_with=10, pieces=10))
    session.add(orders.Order(id=7, customer=1, item="cup", quantity=2, amount=1_700))
    session.commit()
    return session


WAITING = "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
PLACED = {"order_id": 7, "customer": 1, "item": "cup", "quantity": 2, "amount": 1_700}


def placed(inbox: Inbox, session: Session, **more: object) -> Outcome:
    payload = {name: value for name, value in {**PLACED, **more}.items() if value is not None}
    return deliver(inbox, session=session, topic="orders", key="7", type="OrderPlaced", payload=payload)


def event(inbox: Inbox, session: Session, kind: str) -> Outcome:
    """Deliver an event of order 7, in a message of its own."""
    topic = {"Payment": "payments", "Stock": "stock", "Cancel": "orders", "Order": "shipping"}
    return deliver(
        inbox,
        session=session,
        topic=next(name for begin, name in topic.items() if kind.startswith(begin)),
        key="7",
        type=kind,
        payload={"order_id": 7},
    )


def balance(session: Session) -> int:
    return session.get_one(payments.Card, 1).balance


def pieces(session: Session) -> int:
    return session.get_one(stock.Shelf, "cup").pieces


def test_fields_that_a_newer_version_sends_are_passed_over(session: Session):
    assert placed(payments.inbox, session, currency="EUR", lines=[{"item": "cup"}]) is Outcome.HANDLED
    assert placed(stock.inbox, session, currency="EUR", lines=[{"item": "cup"}]) is Outcome.HANDLED
    assert (balance(session), pieces(session)) == (8_300, 8)


def test_a_field_that_an_older_version_does_not_send_has_a_default(session: Session):
    placed(stock.inbox, session, quantity=None)
    assert pieces(session) == 9


def test_an_order_that_does_not_say_what_it_costs_is_turned_down_and_the_saga_ends(session: Session, outbox_record):
    recorded = outbox_record(payments.outbox)
    placed(payments.inbox, session, amount=None)
    session.commit()
    declined = recorded.one(topic="payments", type="PaymentDeclined")
    assert balance(session) == 10_000
    assert deliver(shipping.inbox, declined, session=session) is Outcome.HANDLED
    assert session.get_one(shipping.Shipment, 7).state == "cancelled"


def test_a_message_that_does_not_say_which_order_is_handed_to_nobody(session: Session):
    for service in (payments, stock):
        with pytest.raises(Undecodable, match="order_id"):
            placed(service.inbox, session, order_id=None)
    assert (balance(session), pieces(session)) == (10_000, 10)


def test_a_type_that_orders_does_not_know_is_set_aside_whole(session: Session):
    returned = message(topic="shipping", key="7", type="OrderReturned", payload={"order_id": 7, "why": "too small"})
    assert deliver(orders.inbox, returned, session=session) is Outcome.HANDLED
    (kept,) = session.scalars(select(orders.SetAside))
    assert (kept.id, kept.type, kept.key, kept.payload) == (str(returned.id), "OrderReturned", "7", returned.payload)


def test_a_type_that_the_others_do_not_know_is_passed_by(session: Session):
    for service in (payments, stock, shipping):
        assert event(service.inbox, session, "CancelAnnounced") is Outcome.IGNORED


def test_a_message_that_comes_twice_is_handled_once(session: Session):
    twice = message(topic="orders", key="7", type="OrderPlaced", payload=PLACED)
    for service in (payments, stock):
        outcomes = [deliver(service.inbox, twice, session=session) for _ in range(2)]
        assert outcomes == [Outcome.HANDLED, Outcome.DUPLICATE]
    assert (balance(session), pieces(session)) == (8_300, 8)


def test_shippings_word_told_twice_in_two_messages_pays_back_once(session: Session):
    for service in (payments, stock):
        placed(service.inbox, session)
        for _ in range(2):
            assert event(service.inbox, session, "OrderCancelled") is Outcome.HANDLED
    assert (balance(session), pieces(session)) == (10_000, 10)


def test_of_two_words_of_shippings_the_first_stands_in_orders(session: Session):
    event(orders.inbox, session, "OrderShipped")
    event(orders.inbox, session, "OrderCancelled")
    assert session.get_one(orders.Order, 7).state == "shipped"


def test_an_order_that_was_called_off_before_it_was_heard_of_takes_nothing(session: Session, outbox_record):
    recorded = outbox_record(payments.outbox)
    for service in (payments, stock):
        event(service.inbox, session, "OrderCancelled")
        placed(service.inbox, session)
    session.commit()
    assert (balance(session), pieces(session)) == (10_000, 10)
    recorded.none()


def test_answers_that_come_after_the_order_was_called_off_change_nothing(session: Session, outbox_record):
    recorded = outbox_record(shipping.outbox)
    for kind in ("CancelRequested", "PaymentCaptured", "StockReserved", "StockMissing"):
        event(shipping.inbox, session, kind)
    session.commit()
    assert session.get_one(shipping.Shipment, 7).state == "cancelled"
    assert decoded(recorded.one()) == {"order_id": 7, "reason": "the customer's wish"}


def test_a_wish_to_cancel_that_comes_after_the_parcel_was_sent_changes_nothing(session: Session, outbox_record):
    recorded = outbox_record(shipping.outbox)
    packed(session)
    assert shipping.send(session) == 1
    event(shipping.inbox, session, "CancelRequested")
    session.commit()
    assert recorded.one().type == "OrderShipped"


def packed(session: Session) -> None:
    event(shipping.inbox, session, "PaymentCaptured")
    event(shipping.inbox, session, "StockReserved")
    shipment = session.get_one(shipping.Shipment, 7)
    assert shipment.state == "packing"
    shipment.packing_since = orders.datetime(2020, 1, 1)
    session.commit()


def test_while_a_parcel_is_being_cancelled_it_is_not_sent(
    session: Session, open_session: Callable[[], Session], outbox_record
):
    recorded = outbox_record(shipping.outbox)
    packed(session)
    warehouse = open_session()
    event(shipping.inbox, session, "CancelRequested")
    assert shipping.send(warehouse) == 0
    session.commit()
    assert shipping.send(warehouse) == 0
    warehouse.commit()
    assert recorded.one().type == "OrderCancelled"


def test_while_a_parcel_is_being_sent_a_cancellation_waits_and_comes_too_late(
    session: Session, open_session: Callable[[], Session], outbox_record
):
    recorded = outbox_record(shipping.outbox)
    packed(session)
    warehouse, watcher = open_session(), open_session()
    assert shipping.send(warehouse) == 1
    warehouse.flush()
    thread = threading.Thread(target=lambda: (event(shipping.inbox, session, "CancelRequested"), session.commit()))
    thread.start()

    def is_waiting() -> bool:
        # In one transaction the server would go on giving its first answer.
        with watcher.begin():
            return watcher.scalar(text(WAITING)) > 0

    wait_until(is_waiting, "the cancellation waits for the parcel's row")
    warehouse.commit()
    thread.join(30)
    assert recorded.one().type == "OrderShipped"


@pytest.fixture
def saga(postgresql_server_url: str, postgresql_url: str, tmp_path: Path) -> Iterator[Saga]:
    """The saga on its embedded stage, with nothing started."""
    settings = Settings(postgresql=postgresql_server_url)
    with made(settings) as stage:
        saga = Saga(stage, settings, tmp_path)
        yield saga
        saga.stop()


def place(saga: Saga, count: int = 1) -> None:
    engine = create_engine(saga.stage.database("orders"))
    with Session(engine) as session, session.begin():
        for _ in range(count):
            orders.place(session, 1, "cup", 1)
    engine.dispose()


def booked(saga: Saga) -> int:
    return int(rows(plain(saga.stage.database("payments")), "select count(*) from bookings")[0][0])


def test_services_that_are_started_before_their_log_exists_wait_for_it(saga: Saga):
    saga.prepare()
    log = plain(saga.stage.log)
    server, _, name = log.rpartition("/")
    moved = "alter database {} rename to {}"
    with psycopg.connect(f"{server}/postgres", autocommit=True) as connection:
        names = [sql.Identifier(name), sql.Identifier(f"{name}_to_be")]
        connection.execute(sql.SQL(moved).format(*names))
        for process in ("orders relay", "payments inbox"):
            saga.start(process)
        place(saga)
        for process in ("orders relay", "payments inbox"):
            wait_until(lambda process=process: "waiting for" in saga.words(process), f"{process} waits")
        connection.execute(sql.SQL(moved).format(*reversed(names)))
    wait_until(lambda: booked(saga) == 1, f"the order is paid\n{saga.words('payments inbox')}")
    saga.complain_if_one_failed()


NEXT = """
from examples.order_saga import payments
from inbox import Delivery, Inbox
from sqlalchemy import text

inbox = Inbox("payments", metadata=payments.Base.metadata)


@inbox.handler("orders", type="OrderPlaced")
def charge(delivery, session):
    if "order_id" not in delivery.data:
        values = {"id": str(delivery.message.id), "payload": delivery.message.payload}
        session.execute(text("insert into set_aside (id, payload) values (:id, :payload)"), values)
        return
    payments.charge(Delivery(delivery.message, decoder=lambda _: payments.OrderPlaced(**known(delivery.data))), session)


def known(data):
    return {name: data[name] for name in ("order_id", "customer", "amount")}
"""


def test_what_no_handler_can_read_stops_its_partition_until_a_version_comes_that_can(saga: Saga, tmp_path: Path):
    """INVARIANT I7: the message and those behind it wait, and it is said; the other partitions go on."""
    saga.prepare()
    place(saga, 40)
    database = plain(saga.stage.database("orders"))
    poison = (
        "insert into outbox (topic, key, type, payload) values ('orders', '1', 'OrderPlaced', convert_to(?, 'UTF8'))"
    )
    rows(database, poison, '{"customer": 1, "amount": 850}')
    for process in ("orders relay", "payments inbox"):
        saga.start(process)
    wait_until(lambda: booked(saga) == 40, f"the others are paid\n{saga.words('payments inbox')}")
    wait_until(lambda: "order_id missing" in saga.words("payments inbox"), "it is said")
    place(saga, 40)
    wait_until(lambda: booked(saga) > 60, f"other partitions go on\n{saga.words('payments inbox')}")
    saga.stop()
    (tmp_path / "payments_next.py").write_text(NEXT)
    payments_database = plain(saga.stage.database("payments"))
    rows(payments_database, "create table set_aside (id text, payload bytea)")
    new = NextSaga(saga.stage, saga.settings, tmp_path)
    new.run([*new.command("payments", "inbox"), "--once"], "payments")
    assert booked(saga) == 80
    assert len(rows(payments_database, "select * from set_aside")) == 1


class NextSaga(Saga):
    """With payments' next version."""

    def command(self, service: str, does: str) -> list[str]:
        *command, _ = super().command(service, does)
        return [*command, "payments_next:inbox"]

    def environment(self, service: str) -> dict[str, str]:
        return {**super().environment(service), "PYTHONPATH": str(self.folder)}
