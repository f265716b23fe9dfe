"""`write` on a Core Connection, in savepoints, in two phases, and where it is refused."""

import gc
from collections.abc import Iterator

import pytest
from databases import drop_database, make_database
from sqlalchemy import Connection, Engine, create_engine, insert
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.orm import Session
from sqlalchemy.pool import StaticPool
from write_support import Base, Order, make_engine, orders, outbox, payloads, sent

from outbox import WriteError


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = make_engine(database_url)
    Base.metadata.create_all(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def postgresql(postgresql_url: str) -> Iterator[Engine]:
    engine = make_engine(postgresql_url)
    Base.metadata.create_all(engine)
    yield engine
    engine.dispose()


def test_the_insert_is_the_last_statement_before_commit(engine: Engine):
    with sent(engine) as statements, engine.begin() as connection:
        outbox.write(connection, topic="t", payload="1")
        connection.execute(insert(Order).values(id=1))
        outbox.write(connection, topic="t", payload="2")
        connection.execute(insert(Order).values(id=2))
    assert [text.split()[:3][-1].lower() for text, _ in statements[-2:]] == ["outbox", "commit"]
    assert payloads(engine) == ["1", "2"]


def test_writing_begins_a_transaction_as_execute_would(engine: Engine):
    with engine.connect() as connection:
        outbox.write(connection, topic="t", payload="kept")
        with pytest.raises(InvalidRequestError, match="already initialized"):
            connection.begin()
        connection.commit()
        outbox.write(connection, topic="t", payload="never committed")
    assert payloads(engine) == ["kept"]


def test_nothing_outlives_its_transaction_in_the_pool(engine: Engine):
    with engine.connect() as connection:
        outbox.write(connection, topic="t", payload="rolled back")
        connection.rollback()
        connection.execute(insert(Order).values(id=1))
        connection.commit()
        outbox.write(connection, topic="t", payload="closed")
    connection = engine.connect()
    outbox.write(connection, topic="t", payload="forgotten")
    driver = connection.connection.driver_connection
    connection.detach()
    del connection
    gc.collect()
    driver.close()
    with engine.begin() as connection:
        connection.execute(insert(Order).values(id=2))
    assert (orders(engine), payloads(engine)) == ([1, 2], [])


def test_a_message_is_dropped_with_its_savepoint_and_with_no_other(engine: Engine):
    with engine.begin() as connection:
        outbox.write(connection, topic="t", payload="before")
        outer = connection.begin_nested()
        outbox.write(connection, topic="t", payload="in the outer")
        with connection.begin_nested():
            outbox.write(connection, topic="t", payload="released into the outer")
        outer.rollback()
        outbox.write(connection, topic="t", payload="after")
        inner = connection.begin_nested()
        outbox.write(connection, topic="t", payload="rolled back")
        inner.rollback()
        with connection.begin_nested():
            outbox.write(connection, topic="t", payload="released")
    assert payloads(engine) == ["before", "after", "released"]


@pytest.mark.filterwarnings("ignore:nested transaction already deassociated")
def test_savepoints_rolled_back_out_of_order_drop_the_inner_ones_too(engine: Engine):
    with engine.begin() as connection:
        outer = connection.begin_nested()
        connection.begin_nested()
        outbox.write(connection, topic="t", payload="in the inner")
        outer.rollback()
        outbox.write(connection, topic="t", payload="after both")
    assert payloads(engine) == ["after both"]


def test_a_savepoint_open_at_commit_is_released(engine: Engine):
    with engine.connect() as connection:
        connection.begin_nested()
        outbox.write(connection, topic="t", payload="inside")
        connection.commit()
    assert payloads(engine) == ["inside"]


def test_two_sessions_on_one_connection_share_its_commit(engine: Engine):
    with engine.connect() as connection:
        connection.begin()
        first = Session(connection, join_transaction_mode="create_savepoint")
        second = Session(connection, join_transaction_mode="create_savepoint")
        outbox.write(first, topic="t", payload="first")
        outbox.write(second, topic="t", payload="second, rolled back")
        outbox.write(connection, topic="t", payload="connection")
        outbox.write(first, topic="t", payload="first again")
        second.rollback()
        with sent(engine) as statements:
            first.commit()
        assert not any("outbox" in text for text, _ in statements)
        connection.commit()
    assert payloads(engine) == ["first", "connection", "first again"]


def test_an_outbox_bound_to_the_engine_uses_the_connection_that_a_session_joined(engine: Engine):
    bound = type(outbox)(metadata=Base.metadata, bind=engine)
    with engine.begin() as connection, Session(connection) as session:
        bound.write(session, topic="t", payload="x")
        session.execute(insert(Order).values(id=1))
        session.commit()
    assert (payloads(engine), orders(engine)) == (["x"], [1])


def test_a_session_left_behind_by_its_connection_is_told_so(engine: Engine):
    with engine.connect() as connection, Session(connection) as session:
        session.execute(insert(Order).values(id=1))
        connection.commit()
        with pytest.raises(WriteError, match="behind its back"):
            outbox.write(session, topic="t", payload="x")


def test_a_connection_that_is_closed_failed_or_over_refuses(engine: Engine):
    with engine.connect() as connection, connection.begin() as transaction:
        transaction.rollback()
        with pytest.raises(WriteError, match="closed transaction inside context"):
            outbox.write(connection, topic="t", payload="after its end")
    with pytest.raises(WriteError, match="closed"):
        outbox.write(connection, topic="t", payload="closed")
    with engine.connect() as connection:
        outbox.write(connection, topic="t", payload="x")
        connection.invalidate()
        with pytest.raises(WriteError, match="rolled back"):
            outbox.write(connection, topic="t", payload="invalidated")
    assert payloads(engine) == []


@pytest.mark.parametrize("wrong", [None, "sqlite://", object(), Session])
def test_what_is_no_session_is_refused(wrong: object):
    with pytest.raises(WriteError, match="write takes a Session"):
        outbox.write(wrong, topic="t", payload="x")


def test_an_engine_is_no_connection(engine: Engine):
    with pytest.raises(WriteError, match="not Engine"):
        outbox.write(engine, topic="t", payload="x")


def autocommit_engine(url: str) -> Connection:
    return make_engine(url, recipe=False, isolation_level="AUTOCOMMIT").connect()


def autocommit_engine_option(url: str) -> Connection:
    return make_engine(url).execution_options(isolation_level="AUTOCOMMIT").connect()


def autocommit_option_at_creation(url: str) -> Connection:
    return make_engine(url, execution_options={"isolation_level": "AUTOCOMMIT"}).connect()


def autocommit_connection_option(url: str) -> Connection:
    return make_engine(url).connect().execution_options(isolation_level="AUTOCOMMIT")


def autocommit_of_the_driver(url: str) -> Connection:
    sqlite = url.startswith("sqlite")
    arguments = {"isolation_level": None} if sqlite else {"autocommit": True}
    return make_engine(url, recipe=False, connect_args=arguments).connect()


AUTOCOMMIT = [
    autocommit_engine,
    autocommit_engine_option,
    autocommit_option_at_creation,
    autocommit_connection_option,
    autocommit_of_the_driver,
]


@pytest.mark.parametrize("connect", AUTOCOMMIT)
def test_autocommit_is_refused_at_write(database_url: str, connect):
    engine = make_engine(database_url)
    Base.metadata.create_all(engine)
    with connect(database_url) as connection:
        with pytest.raises(WriteError, match="AUTOCOMMIT"):
            outbox.write(connection, topic="t", payload="x")
        with Session(connection) as session, pytest.raises(WriteError, match="AUTOCOMMIT"):
            outbox.write(session, topic="t", payload="x")
        connection.rollback()
        used = connection.engine
    assert payloads(engine) == []
    used.dispose()
    engine.dispose()


@pytest.mark.parametrize("connect", AUTOCOMMIT[:3])
def test_a_session_on_an_autocommit_engine_is_refused_before_it_connects(database_url: str, connect):
    with connect(database_url) as connection, Session(connection.engine) as session:
        with pytest.raises(WriteError, match="AUTOCOMMIT"):
            outbox.write(session, topic="t", payload="x")
        assert not session.in_transaction()
        used = connection.engine
    used.dispose()


def test_autocommit_that_comes_after_the_write_is_refused_too(engine: Engine):
    with Session(engine) as session:
        outbox.write(session, topic="t", payload="x")
        with pytest.raises(WriteError, match="AUTOCOMMIT"):
            session.connection(execution_options={"isolation_level": "AUTOCOMMIT"})
        with pytest.raises(WriteError, match="AUTOCOMMIT"):
            session.commit()
    with engine.connect() as connection:
        outbox.write(connection, topic="t", payload="x")
        with pytest.raises(InvalidRequestError):
            connection.execution_options(isolation_level="AUTOCOMMIT")
    assert payloads(engine) == []


def test_the_driver_of_a_session_in_autocommit_is_found_out_when_it_connects(database_url: str):
    with autocommit_of_the_driver(database_url) as connection:
        engine = connection.engine
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        outbox.write(session, topic="t", payload="x")
        with pytest.raises(WriteError, match="AUTOCOMMIT"):
            session.commit()
    assert payloads(engine) == []
    engine.dispose()


def test_sqlite_without_the_recipe_and_in_memory_works_as_well():
    engine = create_engine("sqlite://", poolclass=StaticPool)
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        outbox.write(session, topic="t", payload="x")
        session.commit()
        outbox.write(session, topic="t", payload="y")
        session.rollback()
    assert payloads(engine) == ["x"]
    engine.dispose()


def test_two_phases_insert_before_prepare(postgresql: Engine):
    with postgresql.connect() as connection:
        transaction = connection.begin_twophase("one")
        connection.execute(insert(Order).values(id=1))
        outbox.write(connection, topic="t", payload="x")
        transaction.prepare()
        with pytest.raises(WriteError, match="prepared"):
            outbox.write(connection, topic="t", payload="too late")
        transaction.commit()
    assert (orders(postgresql), payloads(postgresql)) == ([1], ["x"])


def test_two_phases_without_prepare_insert_before_commit(postgresql: Engine):
    with postgresql.connect() as connection:
        transaction = connection.begin_twophase("two")
        outbox.write(connection, topic="t", payload="x")
        transaction.commit()
    assert payloads(postgresql) == ["x"]


def test_a_prepared_transaction_that_rolls_back_leaves_no_ghost(postgresql: Engine):
    with postgresql.connect() as connection:
        transaction = connection.begin_twophase("three")
        outbox.write(connection, topic="t", payload="x")
        transaction.prepare()
        transaction.rollback()
    assert payloads(postgresql) == []


def test_a_prepared_transaction_is_committed_by_another_connection(postgresql: Engine):
    with postgresql.connect() as connection:
        transaction = connection.begin_twophase("four")
        outbox.write(connection, topic="t", payload="x")
        transaction.prepare()
        connection.invalidate()
    with postgresql.connect() as connection:
        connection.execution_options(isolation_level="AUTOCOMMIT").exec_driver_sql("commit prepared 'four'")
    assert payloads(postgresql) == ["x"]


def test_a_session_of_two_databases_in_two_phases(postgresql: Engine, postgresql_server_url: str):
    other_url = make_database(postgresql_server_url)
    other = make_engine(other_url)
    Base.metadata.create_all(other)
    with Session(other, binds={outbox.tables.outbox: postgresql}, twophase=True) as session:
        session.add(Order(id=1))
        outbox.write(session, topic="t", payload="x")
        session.prepare()
        with pytest.raises(WriteError, match="prepared"):
            outbox.write(session, topic="t", payload="too late")
        session.commit()
    assert (orders(other), payloads(postgresql), payloads(other)) == ([1], ["x"], [])
    other.dispose()
    drop_database(other_url)
