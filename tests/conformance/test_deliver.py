"""`deliver` and `deliver_async`: a handler's own code, lent the test's transaction, and the product's deduplication."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from uuid import UUID

import pytest
from databases import rows
from sqlalchemy import Connection, Engine, create_engine, func, make_url, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from inbox import Delivery, Inbox, Reject
from inbox.lending import TransactionEnded
from inbox.testing import Outcome, deliver, deliver_async
from outbox import ConfigurationError, MessageAtFault, WriteError
from outbox.testing import RecordingOutbox, message
from relay.logs.contract import Offset, Partition, Record


class Base(DeclarativeBase): ...


class Charge(Base):
    __tablename__ = "charge"
    id: Mapped[int] = mapped_column(primary_key=True)
    cents: Mapped[int]


@dataclass
class Placed:
    id: int
    cents: int = 100


def _driver(url: str, driver: str) -> str:
    return make_url(url).set(drivername=driver).render_as_string(hide_password=False)


@pytest.fixture
def inbox() -> Inbox:
    return Inbox("billing", metadata=Base.metadata)


@pytest.fixture
def engine(database_url: str, inbox: Inbox) -> Iterator[Engine]:
    engine = create_engine(_driver(database_url, "sqlite" if "sqlite" in database_url else "postgresql+psycopg"))
    Base.metadata.create_all(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def session(engine: Engine) -> Iterator[Session]:
    with Session(engine) as session:
        yield session


PLACED = {"topic": "orders", "type": "OrderPlaced"}


def test_a_message_is_handled_once_in_the_tests_transaction(inbox: Inbox, session: Session, database_url: str):
    @inbox.handler("orders", type="OrderPlaced")
    def charge(delivery: Delivery[Placed], lent: Session) -> None:
        lent.add(Charge(id=delivery.data.id, cents=delivery.data.cents))

    placed = message(**PLACED, payload={"id": 1, "cents": 7})
    assert deliver(inbox, placed, session=session) is Outcome.HANDLED
    assert deliver(inbox, placed, session=session) is Outcome.DUPLICATE
    assert deliver(inbox, session=session, **PLACED, payload={"id": 2}) is Outcome.HANDLED
    assert deliver(inbox, session=session, topic="orders", type="OrderSeen", payload={}) is Outcome.IGNORED
    assert [one.cents for one in session.scalars(select(Charge).order_by(Charge.id))] == [7, 100]
    session.rollback()
    assert rows(database_url, "select count(*) from charge") == [(0,)]
    assert deliver(inbox, placed, session=session) is Outcome.HANDLED
    session.commit()
    assert rows(database_url, "select cents from charge") == [(7,)]
    assert rows(database_url, "select consumer_group from inbox") == [("billing",)]


def test_what_a_handler_did_before_it_raised_is_rolled_back_and_the_rest_is_kept(inbox: Inbox, session: Session):
    failing = [True]

    @inbox.handler("orders")
    def charge(delivery: Delivery, lent: Session) -> None:
        lent.add(Charge(id=2, cents=1))
        lent.flush()
        if failing:
            raise Reject("no")

    session.add(Charge(id=1, cents=1))
    placed = message(**PLACED, payload={})
    with pytest.raises(Reject, match="no"):
        deliver(inbox, placed, session=session)
    assert [one.id for one in session.scalars(select(Charge))] == [1]
    failing.clear()
    assert deliver(inbox, placed, session=session, attempt=2) is Outcome.HANDLED
    assert session.scalar(select(func.count(Charge.id))) == 2


def test_an_error_of_the_database_in_a_handler_leaves_the_tests_transaction_usable(inbox: Inbox, session: Session):
    @inbox.handler("orders")
    def charge(delivery: Delivery, lent: Session) -> None:
        lent.add(Charge(id=1, cents=1))

    session.add(Charge(id=1, cents=1))
    with pytest.raises(IntegrityError):
        deliver(inbox, session=session, **PLACED, payload={})
    assert session.scalar(select(func.count(Charge.id))) == 1


def test_objects_of_the_test_show_what_the_handler_changed(inbox: Inbox, session: Session):
    @inbox.handler("orders")
    def charge(delivery: Delivery, lent: Session) -> None:
        lent.get_one(Charge, 1).cents += 1

    mine = Charge(id=1, cents=1)
    session.add(mine)
    deliver(inbox, session=session, **PLACED, payload={})
    assert mine.cents == 2


@pytest.mark.parametrize("end", ["commit", "rollback", "close"])
def test_a_handler_that_ends_its_session_is_told_so(inbox: Inbox, session: Session, end: str):
    @inbox.handler("orders")
    def charge(delivery: Delivery, lent: Session) -> None:
        getattr(lent, end)()

    with pytest.raises(TransactionEnded):
        deliver(inbox, session=session, **PLACED, payload={})


def test_a_handler_that_asks_for_the_connection_and_a_test_that_has_one(inbox: Inbox, engine: Engine):
    seen = []

    @inbox.handler("orders")
    def charge(delivery: Delivery, connection: Connection) -> None:
        seen.append(connection)

    with engine.connect() as connection:
        assert deliver(inbox, session=connection, **PLACED, payload={}) is Outcome.HANDLED
        assert seen == [connection]
        connection.rollback()
        assert connection.scalar(select(func.count()).select_from(Base.metadata.tables["inbox"])) == 0


def test_what_the_handler_is_told_of_the_message(inbox: Inbox, session: Session):
    seen: list[Delivery[object]] = []

    @inbox.handler("orders")
    def look(delivery: Delivery) -> None:
        seen.append(delivery)

    deliver(inbox, session=session, **PLACED, payload="hello", key="7", headers={"a": "b"}, attempt=3, redelivered=True)
    [one] = seen
    assert (one.data, one.attempt, one.redelivered, one.message.key) == ("hello", 3, True, "7")
    assert dict(one.message.headers) == {"a": "b"}
    assert one.message.source is not None
    assert one.message.time is not None
    assert one.message.time.tzinfo is not None
    record = Record(Partition("orders", "x", 5), Offset(17), message(topic="orders", payload=b"", source="/s"), {})
    deliver(inbox, record, session=session)
    assert (seen[1].partition, seen[1].offset) == (5, 17)


def test_what_the_handler_writes_names_its_cause(inbox: Inbox, session: Session):
    outbox = RecordingOutbox()

    @inbox.handler("orders")
    def bill(delivery: Delivery, lent: Session) -> None:
        outbox.write(lent, topic="bills", payload={})

    placed = message(**PLACED, payload={}, id=UUID(int=5))
    deliver(inbox, placed, session=session)
    outbox.none()
    session.commit()
    assert outbox.one(topic="bills").headers["ce_causationid"] == str(placed.id)


def test_mistakes_of_the_test_are_errors_in_words(inbox: Inbox, session: Session):
    @inbox.handler("orders")
    def charge(delivery: Delivery[Placed]) -> None: ...

    with pytest.raises(ConfigurationError, match=r"no handler reads topic 'order': group 'billing' reads orders"):
        deliver(inbox, session=session, topic="order", payload={})
    with pytest.raises(ConfigurationError, match="a message is given, and topic besides"):
        deliver(inbox, message(**PLACED, payload={}), session=session, topic="orders")
    with pytest.raises(WriteError, match="reserved"):
        deliver(inbox, session=session, **PLACED, payload={}, headers={"ce_id": "1"})
    with pytest.raises(MessageAtFault, match="id missing"):
        deliver(inbox, session=session, **PLACED, payload={})
    with pytest.raises(ConfigurationError, match=r"call deliver\("):
        asyncio.run(deliver_async(inbox, session=AsyncSession(), **PLACED, payload={}))


async def _in_session(url: str, test: Callable[[AsyncSession], Awaitable[None]]) -> None:
    engine = create_async_engine(url)
    async with AsyncSession(engine, expire_on_commit=False) as session:
        await test(session)
    await engine.dispose()


@pytest.mark.parametrize(
    "drivers", [("sqlite+aiosqlite", "postgresql+asyncpg"), ("sqlite+aiosqlite", "postgresql+psycopg")]
)
def test_an_asynchronous_handler(inbox: Inbox, engine: Engine, database_url: str, drivers: tuple[str, str]):
    @inbox.handler("orders")
    async def charge(delivery: Delivery[Placed], lent: AsyncSession) -> None:
        lent.add(Charge(id=delivery.data.id, cents=1))
        await lent.flush()
        if delivery.data.id > 1:
            raise Reject("too many")

    async def handled_once(session: AsyncSession) -> None:
        placed = message(**PLACED, payload={"id": 1})
        assert await deliver_async(inbox, placed, session=session) is Outcome.HANDLED
        assert await deliver_async(inbox, placed, session=session) is Outcome.DUPLICATE
        with pytest.raises(Reject):
            await deliver_async(inbox, session=session, **PLACED, payload={"id": 2})
        assert (await session.scalars(select(Charge.id))).all() == [1]
        with pytest.raises(ConfigurationError, match="await deliver_async"):
            deliver(inbox, placed, session=session.sync_session)
        await session.commit()

    asyncio.run(_in_session(_driver(database_url, drivers["sqlite" not in database_url]), handled_once))
    assert rows(database_url, "select id from charge") == [(1,)]
