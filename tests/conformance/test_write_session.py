"""`write` in a Session: one INSERT, the last statement before COMMIT, and none without a COMMIT."""

import gc
import uuid
from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, MetaData, event, insert, update
from sqlalchemy.exc import IntegrityError, InvalidRequestError
from sqlalchemy.orm import Session, scoped_session, sessionmaker
from write_support import Base, Order, make_engine, orders, outbox, payloads, sent, table, written

from outbox import Outbox, WriteError
from outbox.writing import pending


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = make_engine(database_url)
    Base.metadata.create_all(engine)
    yield engine
    engine.dispose()


def test_one_message_becomes_the_row_that_the_relay_expects(engine: Engine):
    sender = Outbox(metadata=Base.metadata, source="/orders")
    with Session(engine) as session, session.begin():
        message = sender.write(
            session, topic="orders", key="7", type="OrderPlaced", payload={"id": 7}, headers={"a": "é"}
        )
    (row,) = written(engine)
    assert (row.id, row.source, row.topic, row.key, row.type) == (message.id, "/orders", "orders", "7", "OrderPlaced")
    assert (bytes(row.payload), row.content_type, row.headers) == (b'{"id":7}', "application/json", {"a": "é"})
    assert row.created_at is not None
    assert message.id.version == 7 and type(message.id) is uuid.UUID


def test_several_messages_become_the_same_rows_as_one_by_one(engine: Engine):
    payloads_given = [None, b"", b"\0\xff", "", "text", {"a": 1}]
    for together in (True, False):
        with Session(engine) as session:
            for payload in payloads_given:
                outbox.write(session, topic="t", payload=payload)
                outbox.write(session, topic="t", key="", type="T", payload=payload, headers={"x": '"\\'})
                if not together:
                    session.commit()
            session.commit()
    rows = [row._asdict() for row in written(engine)]
    for row in rows:
        for drawn in ("position", "transaction_id", "id", "created_at"):
            del row[drawn]
    half = len(rows) // 2
    assert half == 2 * len(payloads_given)
    assert rows[:half] == rows[half:]
    assert rows[0] == {
        "source": None,
        "topic": "t",
        "key": None,
        "type": "t",
        "payload": None,
        "content_type": "application/json",
        "headers": None,
    }


def test_headers_are_sql_null_when_there_are_none(engine: Engine):
    with Session(engine) as session:
        outbox.write(session, topic="t", payload=b"")
        session.commit()
        for _ in range(2):
            outbox.write(session, topic="t", payload=b"")
        session.commit()
    with engine.connect() as connection:
        count = connection.exec_driver_sql("select count(*) from outbox where headers is null").scalar()
    assert count == 3


def test_five_thousand_messages_are_one_statement_in_their_order(engine: Engine):
    with sent(engine) as statements, Session(engine) as session:
        for number in range(5000):
            outbox.write(session, topic="t", payload=str(number))
        session.commit()
    inserts = [many for text, many in statements if text.lower().startswith("insert into outbox")]
    assert inserts == [engine.dialect.name == "sqlite"]
    assert payloads(engine) == [str(number) for number in range(5000)]


def test_the_insert_is_the_last_statement_before_commit(engine: Engine):
    with sent(engine) as statements, Session(engine) as session:
        outbox.write(session, topic="t", payload="first of all")
        session.add(Order(id=1))
        session.flush()
        outbox.write(session, topic="t", payload="before a bulk update")
        session.execute(update(Order).values(state="paid"))
        session.add(Order(id=2))
        session.commit()
    words = [text.split()[:3] for text, _ in statements]
    assert [" ".join(word).lower() for word in words[-2:]] == ["insert into outbox", "commit"]
    assert sum("outbox" in text for text, _ in statements) == 1
    assert len(written(engine)) == 2


def test_a_rollback_leaves_no_ghost(engine: Engine):
    with Session(engine) as session:
        outbox.write(session, topic="t", payload="gone")
        session.add(Order(id=1))
        session.flush()
        outbox.write(session, topic="t", payload="gone too")
        session.rollback()
        outbox.write(session, topic="t", payload="kept")
        session.commit()
    assert payloads(engine) == ["kept"]


def test_a_session_that_is_closed_or_forgotten_sends_nothing(engine: Engine):
    with Session(engine) as session:
        outbox.write(session, topic="t", payload="closed before it connected")
    with Session(engine) as session:
        session.execute(insert(Order).values(id=1))
        outbox.write(session, topic="t", payload="closed")
    session = Session(engine)
    outbox.write(session, topic="t", payload="forgotten")
    del session
    gc.collect()
    with Session(engine) as session:
        session.add(Order(id=2))
        session.commit()
    assert (payloads(engine), orders(engine)) == ([], [2])


def test_nothing_is_remembered_once_a_transaction_is_over(engine: Engine):
    gc.collect()
    before = len(pending.sessions), len(pending.connections)
    for end in (Session.commit, Session.rollback, Session.close):
        with Session(engine) as session:
            outbox.write(session, topic="t", payload="x")
            session.execute(insert(Order).values(id=len(orders_of(session)) + 1))
            outbox.write(session, topic="t", payload="y")
            end(session)
    del session
    gc.collect()
    assert (len(pending.sessions), len(pending.connections)) == before


def orders_of(session: Session) -> list[Order]:
    return list(session.query(Order))


def test_a_session_that_only_writes_messages_connects_at_commit(engine: Engine):
    with Session(engine) as session:
        outbox.write(session, topic="t", payload="alone")
        assert engine.pool.checkedout() == 0
        session.commit()
    assert payloads(engine) == ["alone"]


def test_writing_begins_a_transaction_as_execute_would(engine: Engine):
    with Session(engine) as session:
        outbox.write(session, topic="t", payload="x")
        assert session.in_transaction()
        with pytest.raises(InvalidRequestError, match="already begun"):
            session.begin()


def test_a_scoped_session_and_a_sessionmaker_write(engine: Engine):
    registry = scoped_session(sessionmaker(engine))
    outbox.write(registry, topic="t", payload="scoped")
    registry.commit()
    registry.remove()
    with sessionmaker(engine).begin() as session:
        outbox.write(session, topic="t", payload="made")
    assert payloads(engine) == ["scoped", "made"]


class Late:
    """Writes a message from the first event of that name."""

    def __init__(self, session: Session, name: str) -> None:
        self.session = session
        self.done = False
        event.listen(session, name, self)

    def __call__(self, *_: object) -> None:
        if not self.done:
            self.done = True
            outbox.write(self.session, topic="t", payload="late")


@pytest.mark.parametrize("with_changes", ["flushing", ""])
@pytest.mark.parametrize("first", ["first", ""])
def test_a_message_written_by_a_users_before_commit_is_not_lost(engine: Engine, with_changes: str, first: str):
    with Session(engine) as session:
        Late(session, "before_commit")
        if with_changes:
            session.add(Order(id=1))
        if first:
            outbox.write(session, topic="t", payload="first")
        session.commit()
    assert payloads(engine) == (["first", "late"] if first else ["late"])


@pytest.mark.parametrize("name", ["before_flush", "after_flush", "after_flush_postexec"])
def test_a_message_written_by_a_flush_event_is_not_lost(engine: Engine, name: str):
    with Session(engine) as session:
        Late(session, name)
        session.add(Order(id=1))
        session.commit()
    assert payloads(engine) == ["late"]


@pytest.mark.parametrize("name", ["before_insert", "after_insert"])
def test_a_message_written_by_a_mapper_event_is_not_lost(engine: Engine, name: str):
    def listener(_mapper: object, connection: object, order: Order) -> None:
        outbox.write(connection, topic="t", payload="by connection")
        outbox.write(session, topic="t", payload="by session")

    event.listen(Order, name, listener)
    try:
        with Session(engine) as session:
            session.add(Order(id=1))
            session.commit()
    finally:
        event.remove(Order, name, listener)
    assert payloads(engine) == ["by connection", "by session"]


def test_a_message_written_in_a_flush_of_another_database_is_not_lost(engine: Engine, tmp_path):
    other = make_engine(f"sqlite:///{tmp_path / 'other.db'}")
    Base.metadata.create_all(other)
    with Session(binds={Order: other, table: engine}) as session:
        Late(session, "after_flush")
        session.add(Order(id=1))
        session.commit()
    assert (payloads(engine), orders(other), payloads(other)) == (["late"], [1], [])
    other.dispose()


def test_a_failed_before_commit_leaves_a_session_that_can_still_write(engine: Engine):
    class NotToday(Exception):
        pass

    def refuse(_session: Session) -> None:
        raise NotToday

    with Session(engine) as session:
        event.listen(session, "before_commit", refuse)
        outbox.write(session, topic="t", payload="first")
        with pytest.raises(NotToday):
            session.commit()
        event.remove(session, "before_commit", refuse)
        outbox.write(session, topic="t", payload="second")
        session.commit()
    assert payloads(engine) == ["first", "second"]


def test_a_commit_of_the_root_with_a_savepoint_open_loses_nothing(engine: Engine):
    with Session(engine) as session:
        root = session.begin()
        outbox.write(session, topic="t", payload="outer")
        session.begin_nested()
        outbox.write(session, topic="t", payload="inner")
        Late(session, "before_commit")
        root.commit()
    assert payloads(engine) == ["outer", "inner", "late"]


def test_an_event_after_the_insert_cannot_write_any_more(engine: Engine):
    refused: list[str] = []

    def too_late(*arguments: object) -> None:
        with pytest.raises(WriteError) as caught:
            outbox.write(arguments[0], topic="t", payload="too late")
        refused.append(str(caught.value))

    with Session(engine) as session:
        event.listen(engine, "commit", too_late)
        event.listen(session, "after_commit", too_late)
        outbox.write(session, topic="t", payload="in time")
        session.commit()
        session.execute(insert(Order).values(id=1))
        session.commit()
    event.remove(engine, "commit", too_late)
    assert len(refused) == 4
    assert payloads(engine) == ["in time"]


def test_a_session_that_has_failed_prepared_or_ended_refuses(engine: Engine):
    with Session(engine) as session:
        session.execute(insert(Order).values(id=1))
        session.add(Order(id=1))
        with pytest.raises(IntegrityError):
            session.flush()
        with pytest.raises(WriteError, match="failed"):
            outbox.write(session, topic="t", payload="into a failed one")
        session.rollback()
        with session.begin():
            session.rollback()
            with pytest.raises(WriteError, match="closed transaction inside context"):
                outbox.write(session, topic="t", payload="after the end of its block")
        with session.begin_nested() as savepoint:
            savepoint.rollback()
            with pytest.raises(WriteError, match="closed transaction inside context"):
                outbox.write(session, topic="t", payload="after the end of its savepoint")
        outbox.write(session, topic="t", payload="afterwards")
        session.commit()
    gone = Session(engine, close_resets_only=False)
    gone.close()
    with pytest.raises(WriteError, match="permanently closed"):
        outbox.write(gone, topic="t", payload="into a closed one")
    assert payloads(engine) == ["afterwards"]


def test_without_autobegin_a_transaction_has_to_be_begun(engine: Engine):
    with Session(engine, autobegin=False) as session:
        with pytest.raises(WriteError, match=r"session\.begin\(\) first"):
            outbox.write(session, topic="t", payload="too early")
        with session.begin():
            outbox.write(session, topic="t", payload="begun")
    assert payloads(engine) == ["begun"]


def test_an_unbound_session_is_told_what_to_do(engine: Engine):
    with Session() as session:
        with pytest.raises(WriteError, match=r"no bind for the table 'outbox'.*Outbox\(bind=engine\)"):
            outbox.write(session, topic="t", payload="nowhere")
        assert not session.in_transaction()
        bound = Outbox(metadata=Base.metadata, bind=engine)
        bound.write(session, topic="t", payload="by the outbox's bind")
        session.commit()
    assert payloads(engine) == ["by the outbox's bind"]


def test_a_session_of_several_databases_sends_to_the_outboxs(engine: Engine, tmp_path):
    other = make_engine(f"sqlite:///{tmp_path / 'other.db'}")
    Base.metadata.create_all(other)
    with Session(other, binds={table: engine}) as session:
        session.add(Order(id=1))
        outbox.write(session, topic="t", payload="by the session's binds")
        session.commit()
    bound = Outbox(metadata=Base.metadata, bind=engine)
    with Session(other) as session:
        session.add(Order(id=2))
        bound.write(session, topic="t", payload="by the outbox's bind")
        session.commit()
    assert (orders(other), payloads(other)) == ([1, 2], [])
    assert payloads(engine) == ["by the session's binds", "by the outbox's bind"]
    other.dispose()


def test_a_session_that_connects_elsewhere_says_so_and_loses_nothing_silently(engine: Engine, tmp_path):
    other = make_engine(f"sqlite:///{tmp_path / 'other.db'}")

    class Stubborn(Session):
        def connection(self, bind_arguments=None, execution_options=None):
            return super().connection({"bind": other})

    with Stubborn(engine) as session:
        outbox.write(session, topic="t", payload="x")
        with pytest.raises(WriteError, match="no connection to be inserted on"):
            session.commit()
    other.dispose()


def test_several_outboxes_on_one_transaction_get_one_insert_each(engine: Engine):
    metadata = MetaData()
    billing = Outbox(metadata=metadata, prefix="billing_")
    twin = Outbox(metadata=metadata, prefix="billing_")
    metadata.create_all(engine)
    with sent(engine) as statements, Session(engine) as session:
        for number in range(3):
            outbox.write(session, topic="t", payload=f"orders {number}")
            billing.write(session, topic="t", payload=f"billing {number}")
            twin.write(session, topic="t", payload=f"twin {number}")
        session.commit()
    assert sum("insert into" in text.lower() for text, _ in statements) == 2
    assert payloads(engine) == ["orders 0", "orders 1", "orders 2"]
    assert payloads(engine, billing.tables.outbox) == [
        f"{who} {number}" for number in range(3) for who in ("billing", "twin")
    ]


def test_tables_in_a_schema_of_their_own_or_a_translated_one(postgresql_url: str):
    engine = make_engine(postgresql_url)
    metadata = MetaData()
    elsewhere = Outbox(metadata=metadata, schema="messages", prefix="my_")
    with engine.begin() as connection:
        connection.exec_driver_sql("create schema messages")
        connection.exec_driver_sql("create schema tenant")
        metadata.create_all(connection)
    translated = engine.execution_options(schema_translate_map={"messages": "tenant"})
    metadata.create_all(translated)
    for many in (1, 2):
        for target in (engine, translated):
            with Session(target) as session:
                for _ in range(many):
                    elsewhere.write(session, topic="t", payload="x")
                session.commit()
    with engine.connect() as connection:
        for schema in ("messages", "tenant"):
            assert connection.exec_driver_sql(f"select count(*) from {schema}.my_outbox").scalar() == 3
    engine.dispose()


def test_another_database_than_ours_is_refused_at_write():
    engine = make_engine("sqlite://")
    engine.dialect.name = "mysql"
    with Session(engine) as session, pytest.raises(WriteError, match="not on mysql"):
        outbox.write(session, topic="t", payload="x")
    engine.dispose()


def test_plain_sql_writers_need_only_topic_and_payload(engine: Engine):
    with engine.begin() as connection:
        connection.exec_driver_sql("insert into outbox (topic, payload) values ('orders', '{}')")
    (row,) = written(engine)
    assert (row.topic, row.type, row.content_type, row.key, row.headers) == (
        "orders",
        "",
        "application/json",
        None,
        None,
    )
    assert isinstance(row.id, uuid.UUID)
