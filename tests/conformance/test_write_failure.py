"""When the INSERT fails in the last moment: nothing is stored, and the pool's next user finds a clean connection."""

from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import Engine, event, insert
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session
from write_support import Base, Order, make_engine, orders, outbox, payloads, sent

from outbox import Outbox
from outbox.writing import hooks


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = make_engine(database_url)
    Base.metadata.create_all(engine)
    with engine.begin() as connection:
        connection.exec_driver_sql("alter table outbox rename to away")
    yield engine
    engine.dispose()


def bring_back(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql("alter table away rename to outbox")


def fail_in_a_session(engine: Engine) -> None:
    with Session(engine) as session:
        session.add(Order(id=1))
        outbox.write(session, topic="orders", payload="x")
        session.commit()


def fail_in_a_session_block(engine: Engine) -> None:
    with Session(engine) as session, session.begin():
        session.add(Order(id=1))
        outbox.write(session, topic="orders", payload="x")


def fail_on_a_connection(engine: Engine) -> None:
    with engine.connect() as connection:
        connection.execute(insert(Order).values(id=1))
        outbox.write(connection, topic="orders", payload="x")
        connection.commit()


def fail_in_an_engine_block(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(insert(Order).values(id=1))
        outbox.write(connection, topic="orders", payload="x")


FAIL = [fail_in_a_session, fail_in_a_session_block, fail_on_a_connection, fail_in_an_engine_block]


def the_next_user_of_the_pool_commits(engine: Engine) -> None:
    with Session(engine) as session:
        session.add(Order(id=2))
        session.commit()


@pytest.mark.parametrize("fail", FAIL)
def test_the_pools_next_user_does_not_commit_what_failed(engine: Engine, fail: Callable[[Engine], None]):
    with pytest.raises(DBAPIError) as caught:
        fail(engine)
    assert "1 message(s), the first of topic 'orders'" in caught.value.__notes__[0]
    the_next_user_of_the_pool_commits(engine)
    assert orders(engine) == [2]
    bring_back(engine)
    assert payloads(engine) == []


@pytest.mark.parametrize("fail", FAIL)
def test_a_program_that_is_interrupted_in_the_insert_leaves_nothing_behind(
    engine: Engine, fail: Callable[[Engine], None]
):
    def interrupt(_connection: object, _cursor: object, text: str, *_: object) -> None:
        if "outbox" in text:
            raise KeyboardInterrupt

    bring_back(engine)
    event.listen(engine, "before_cursor_execute", interrupt)
    with pytest.raises(KeyboardInterrupt):
        fail(engine)
    event.remove(engine, "before_cursor_execute", interrupt)
    the_next_user_of_the_pool_commits(engine)
    assert (orders(engine), payloads(engine)) == ([2], [])


def test_a_connection_that_cannot_be_rolled_back_is_thrown_away(engine: Engine, monkeypatch: pytest.MonkeyPatch):
    def broken(_connection: object) -> None:
        raise ConnectionError

    opened: list[object] = []
    event.listen(engine, "connect", lambda connection, _record: opened.append(connection))
    with monkeypatch.context() as patch:
        patch.setattr(engine.dialect, "do_rollback", broken)
        with pytest.raises(DBAPIError):
            fail_on_a_connection(engine)
    the_next_user_of_the_pool_commits(engine)
    assert (orders(engine), len(opened)) == ([2], 1)


def test_the_session_goes_on_after_a_rollback(engine: Engine):
    with Session(engine) as session:
        outbox.write(session, topic="t", payload="lost with its transaction")
        with pytest.raises(DBAPIError):
            session.commit()
        session.rollback()
        bring_back(engine)
        outbox.write(session, topic="t", payload="kept")
        session.commit()
    assert payloads(engine) == ["kept"]


def test_a_message_of_an_aborted_transaction_is_an_error_and_no_silent_rollback(postgresql_url: str):
    engine = make_engine(postgresql_url)
    Base.metadata.create_all(engine)
    with engine.connect() as connection:
        outbox.write(connection, topic="t", payload="x")
        with pytest.raises(DBAPIError):
            connection.exec_driver_sql("select 1/0")
        with pytest.raises(DBAPIError, match="aborted"):
            connection.commit()
    assert payloads(engine) == []
    engine.dispose()


@pytest.mark.parametrize("prepare", ["prepare", ""])
@pytest.mark.parametrize("by_session", ["session", ""])
def test_a_two_phase_transaction_whose_insert_fails_leaves_nothing_behind(
    postgresql_url: str, prepare: str, by_session: str
):
    engine = make_engine(postgresql_url)
    Base.metadata.create_all(engine)
    with engine.begin() as connection:
        connection.exec_driver_sql("alter table outbox rename to away")
    with pytest.raises(DBAPIError, match="does not exist"):
        _fail_in_two_phases(engine, prepare=bool(prepare), by_session=bool(by_session))
    the_next_user_of_the_pool_commits(engine)
    with engine.connect() as connection:
        assert connection.exec_driver_sql("select count(*) from pg_prepared_xacts").scalar() == 0
    assert orders(engine) == [2]
    engine.dispose()


def _fail_in_two_phases(engine: Engine, *, prepare: bool, by_session: bool) -> None:
    if by_session:
        with Session(engine, twophase=True) as session:
            session.execute(insert(Order).values(id=1))
            outbox.write(session, topic="t", payload="x")
            if prepare:
                session.prepare()
            session.commit()
    else:
        with engine.connect() as connection:
            transaction = connection.begin_twophase()
            connection.execute(insert(Order).values(id=1))
            outbox.write(connection, topic="t", payload="x")
            if prepare:
                transaction.prepare()
            transaction.commit()


def test_listeners_are_registered_once_however_many_outboxes_there_are(engine: Engine):
    """Two would insert every message twice, or find nothing left."""
    bring_back(engine)
    for _ in range(3):
        Outbox()
    with sent(engine) as statements, Session(engine) as session:
        outbox.write(session, topic="t", payload="x")
        session.commit()
    assert sum("outbox" in text for text, _ in statements) == 1
    assert hooks.listen.cache_info().currsize == 1
