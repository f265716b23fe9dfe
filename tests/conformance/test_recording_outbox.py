"""The recording outbox tells the truth of the transaction: what committed, in order, and nothing else."""

import asyncio
from collections.abc import Iterator

import pytest
from databases import install, rows
from sqlalchemy import Column, Engine, ForeignKey, Integer, MetaData, Table, create_engine, event, insert, make_url
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from outbox import Outbox, WriteError
from outbox.testing import RecordingOutbox, decoded, message, recording

METADATA = MetaData()
PARENT = Table("parent", METADATA, Column("id", Integer, primary_key=True))
DEFERRED = ForeignKey("parent.id", deferrable=True, initially="DEFERRED")
CHILD = Table("child", METADATA, Column("id", Integer, primary_key=True), Column("parent", Integer, DEFERRED))


def _driver(url: str, driver: str) -> str:
    return make_url(url).set(drivername=driver).render_as_string(hide_password=False)


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    sqlite = database_url.startswith("sqlite")
    engine = create_engine(_driver(database_url, "sqlite" if sqlite else "postgresql+psycopg"))
    if sqlite:
        event.listen(engine, "connect", lambda driver, _: driver.execute("pragma foreign_keys = on"))
    METADATA.create_all(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def outbox() -> RecordingOutbox:
    return RecordingOutbox(source="/tests", topics=["orders"])


def _keys(outbox: RecordingOutbox) -> list[str | None]:
    return [one.key for one in outbox.messages]


def test_messages_are_there_when_their_transaction_has_committed_and_not_before(
    engine: Engine, outbox: RecordingOutbox
):
    with Session(engine) as session:
        outbox.write(session, topic="orders", payload={"n": 1}, key="1")
        session.flush()
        assert outbox.messages == []
        session.commit()
        outbox.write(session, topic="orders", payload={"n": 2}, key="2")
        session.rollback()
        outbox.write(session, topic="orders", payload={"n": 3}, key="3")
        session.commit()
    assert _keys(outbox) == ["1", "3"]
    assert [decoded(one) for one in outbox.messages] == [{"n": 1}, {"n": 3}]


def test_a_savepoint_takes_its_messages_with_it(engine: Engine, outbox: RecordingOutbox):
    with Session(engine) as session, session.begin():
        outbox.write(session, topic="orders", payload=b"", key="1")
        savepoint = session.begin_nested()
        outbox.write(session, topic="orders", payload=b"", key="2")
        savepoint.rollback()
        with session.begin_nested():
            outbox.write(session, topic="orders", payload=b"", key="3")
    assert _keys(outbox) == ["1", "3"]


def test_a_commit_that_the_database_refuses_records_nothing(engine: Engine, outbox: RecordingOutbox):
    with engine.connect() as connection:
        connection.execute(insert(CHILD).values(id=1, parent=7))
        outbox.write(connection, topic="orders", payload=b"", key="1")
        with pytest.raises(IntegrityError):
            connection.commit()
        assert outbox.messages == []
        connection.rollback()
        assert outbox.messages == []
    with engine.connect() as connection:
        outbox.write(connection, topic="orders", payload=b"", key="2")
        connection.commit()
    assert _keys(outbox) == ["2"]


def test_a_session_whose_commit_fails_records_nothing_and_can_go_on(engine: Engine, outbox: RecordingOutbox):
    with Session(engine) as session:
        session.execute(insert(CHILD).values(id=1, parent=7))
        outbox.write(session, topic="orders", payload=b"", key="1")
        with pytest.raises(IntegrityError):
            session.commit()
        session.rollback()
        outbox.write(session, topic="orders", payload=b"", key="2")
        session.commit()
    assert _keys(outbox) == ["2"]


def test_a_prepared_transaction_counts_when_it_is_committed(postgresql_url: str, outbox: RecordingOutbox):
    engine = create_engine(_driver(postgresql_url, "postgresql+psycopg"))
    with engine.connect() as connection:
        for key, end in (("1", "rollback"), ("2", "commit")):
            transaction = connection.begin_twophase()
            outbox.write(connection, topic="orders", payload=b"", key=key)
            transaction.prepare()
            assert outbox.messages == []
            getattr(transaction, end)()
    engine.dispose()
    assert _keys(outbox) == ["2"]


def test_sessions_and_connections_of_every_kind(engine: Engine, outbox: RecordingOutbox):
    registry = scoped_session(sessionmaker(engine))
    outbox.write(registry, topic="orders", payload=b"", key="scoped")
    registry.commit()
    registry.remove()
    with engine.begin() as connection:
        outbox.write(connection, topic="orders", payload=b"", key="connection")
    assert _keys(outbox) == ["scoped", "connection"]


async def _write_asynchronously(url: str, outbox: RecordingOutbox) -> None:
    engine = create_async_engine(url)
    async with AsyncSession(engine) as session:
        outbox.write(session, topic="orders", payload=b"", key="session")
        await session.commit()
        outbox.write(session, topic="orders", payload=b"", key="rolled back")
        await session.rollback()
    async with engine.begin() as connection:
        outbox.write(connection, topic="orders", payload=b"", key="connection")
    await engine.dispose()


def test_asynchronous_sessions_and_connections(database_url: str, outbox: RecordingOutbox):
    driver = "sqlite+aiosqlite" if database_url.startswith("sqlite") else "postgresql+asyncpg"
    asyncio.run(_write_asynchronously(_driver(database_url, driver), outbox))
    assert _keys(outbox) == ["session", "connection"]


def test_it_refuses_what_an_outbox_refuses(outbox: RecordingOutbox):
    engine = create_engine("sqlite://")
    with Session(engine) as session:
        for wrong in (
            {"topic": "payments", "payload": b""},
            {"topic": "no topic", "payload": b""},
            {"topic": "orders", "payload": object()},
            {"topic": "orders", "payload": b" " * 900_001},
            {"topic": "orders", "payload": b"", "headers": {"ce_id": "7"}},
        ):
            with pytest.raises(WriteError):
                outbox.write(session, **wrong)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection, pytest.raises(WriteError):
        outbox.write(connection, topic="orders", payload=b"")
    engine.dispose()
    assert outbox.messages == []


def test_an_applications_outbox_is_recorded_in_a_block_and_itself_again_after_it(database_url: str):
    install(database_url)
    sqlite = database_url.startswith("sqlite")
    engine = create_engine(_driver(database_url, "sqlite" if sqlite else "postgresql+psycopg"))
    metadata = MetaData()
    application, other = Outbox(metadata=metadata), Outbox(metadata=metadata)
    with Session(engine) as session:
        with recording(application) as recorded:
            application.write(session, topic="orders", payload=b"", key="recorded")
            other.write(session, topic="orders", payload=b"", key="inserted")  # the same table, and the same COMMIT
            session.commit()
        application.write(session, topic="orders", payload=b"", key="after")
        session.commit()
        with recording(application, insert=True) as both:
            application.write(session, topic="orders", payload=b"", key="both")
            session.commit()
    engine.dispose()
    assert [one.key for one in recorded.messages] == ["recorded"]
    assert [one.key for one in both.messages] == ["both"]
    assert rows(database_url, "select key from outbox order by position") == [("inserted",), ("after",), ("both",)]


def test_questions_select_and_their_failures_say_what_was_there(outbox: RecordingOutbox):
    engine = create_engine("sqlite://")
    with pytest.raises(AssertionError, match="Nothing is recorded: was the transaction committed"):
        outbox.one()
    with Session(engine) as session:
        for number, kind in enumerate(["Placed", "Paid", "Placed"]):
            outbox.write(session, topic="orders", type=kind, key=str(number), payload={"n": number})
        session.commit()
    engine.dispose()
    assert [one.key for one in outbox.of(type="Placed")] == ["0", "2"]
    assert outbox.one(topic="orders", type="Paid").key == "1"
    outbox.none(type="Cancelled")
    with pytest.raises(
        AssertionError, match=r"(?s)one message of type 'Placed', found 2.*2\. topic='orders' type='Paid'"
    ):
        outbox.one(type="Placed")
    with pytest.raises(AssertionError, match="expected no message, found 3"):
        outbox.none()
    outbox.clear()
    outbox.none()


def test_a_message_made_for_a_test_is_what_write_would_store(outbox: RecordingOutbox):
    engine = create_engine("sqlite://")
    with Session(engine) as session:
        written = outbox.write(session, topic="orders", type="Placed", key="1", payload={"n": 1}, headers={"a": "b"})
        session.commit()
    engine.dispose()
    made = message(
        topic="orders", type="Placed", key="1", payload={"n": 1}, headers={"a": "b"}, id=written.id, source="/tests"
    )
    assert [made] == [written] == outbox.messages
