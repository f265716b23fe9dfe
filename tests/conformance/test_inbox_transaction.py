"""The transaction is the inbox's: what a handler does that would end it, and what it may do inside."""

import contextlib
from typing import Any

import pytest
from databases import rows
from inbox_road import INSERT, Road, effect, on
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from inbox import Delivery, Inbox
from outbox.errors import Permanent
from outbox.retry import RetryPolicy


@pytest.fixture
def road(database_url: str) -> Road:
    return Road(database_url)


@pytest.fixture(params=["def", "async def"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# A handler that ends the transaction it was lent


def commit_session(session: Session) -> None:
    session.commit()


def roll_session_back(session: Session) -> None:
    session.rollback()


def close_session(session: Session) -> None:
    session.close()


def commit_connection(session: Session) -> None:
    session.connection().commit()


def commit_connection_and_go_on(session: Session) -> None:
    connection = session.connection()
    try:
        connection.commit()
    except Exception:
        connection.rollback()
    connection.execute(text(INSERT), {"body": "behind its back", "attempt": 0})
    connection.commit()


def roll_connection_back(session: Session) -> None:
    session.connection().rollback()


def begin_and_commit(session: Session) -> None:
    with session.begin() if not session.in_transaction() else session.get_transaction():
        session.execute(text(INSERT), {"body": "inside", "attempt": 0})


@pytest.mark.parametrize(
    "misdeed",
    [
        commit_session,
        roll_session_back,
        close_session,
        commit_connection,
        commit_connection_and_go_on,
        roll_connection_back,
        begin_and_commit,
    ],
)
def test_a_handler_that_ends_its_transaction_is_told_so_and_nothing_is_kept(
    road: Road, kind: str, misdeed: Any
) -> None:
    inbox = Inbox("billing")

    def handle(delivery: Delivery[str], session: Session) -> None:
        effect(delivery, session)
        misdeed(session)

    on(inbox, kind, handle, retry=RetryPolicy(attempts=2, first_seconds=0))
    road.write("one")
    words = "failed 2 times" if misdeed is commit_connection_and_go_on else "the transaction is the inbox's"
    with pytest.raises(Permanent, match=words):
        inbox.run(road.database, road.log, once=True)
    assert road.effects == []
    assert road.ids() == 0
    assert road.counts() == (0, 0, 0)


def test_an_error_of_the_database_that_the_handler_caught_is_not_committed_around(
    postgresql_url: str, kind: str
) -> None:
    """PostgreSQL answers COMMIT with ROLLBACK then, and the driver says nothing: the message would count as handled."""
    road = Road(postgresql_url)
    inbox = Inbox("billing")

    def swallows(delivery: Delivery[str], session: Session) -> None:
        effect(delivery, session)
        with contextlib.suppress(DBAPIError):
            session.connection().execute(text("select 1 / 0"))

    on(inbox, kind, swallows, retry=RetryPolicy(attempts=2, first_seconds=0))
    road.write("one", "two")
    with pytest.raises(Permanent, match="caught an error of the database"):
        inbox.run(road.database, road.log, once=True)
    assert road.effects == []
    assert road.counts() == (0, 0, 0)


def test_a_savepoint_of_the_handlers_own_may_fail(road: Road, kind: str) -> None:
    inbox = Inbox("billing")

    def tries(delivery: Delivery[str], session: Session) -> None:
        with pytest.raises(IntegrityError), session.begin_nested():
            again = "select consumer_group, source, message_id from inbox"
            session.execute(text(f"insert into inbox (consumer_group, source, message_id) {again}"))
        effect(delivery, session)

    on(inbox, kind, tries)
    road.write("one", "two")
    inbox.run(road.database, road.log, once=True)
    assert road.effects == ["one", "two"]


def test_a_commit_that_a_deferred_constraint_refuses_is_an_attempt(postgresql_url: str, kind: str) -> None:
    road = Road(postgresql_url)
    reference = "integer references parent (id) deferrable initially deferred"
    rows(road.database, "create table parent (id integer primary key)")
    rows(road.database, f"create table child (id {reference})")
    inbox = Inbox("billing")
    calls: list[int] = []

    def orphan(delivery: Delivery[str], session: Session) -> None:
        calls.append(delivery.attempt)
        session.execute(text("insert into child values (1)"))

    on(inbox, kind, orphan, retry=RetryPolicy(attempts=2, first_seconds=0))
    road.write("one")
    with pytest.raises(Permanent, match=r"(?i)failed 2 times.*foreign key"):
        inbox.run(road.database, road.log, once=True)
    assert calls == [1, 2]


class Base(DeclarativeBase):
    """A model of the user's, whose flush can fail."""


class Strict(Base):
    """Refuses what has no number."""

    __tablename__ = "strict"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    number: Mapped[int]


def test_a_flush_that_fails_costs_an_attempt_and_not_the_connection(
    road: Road, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The session has rolled back then: to do it again warned, and where warnings are errors cost the connection."""
    rows(road.database, "create table strict (id int primary key, number int not null)")
    inbox = Inbox("billing")

    def adds(delivery: Delivery[str], session: Session) -> None:
        session.add(Strict(id=1))

    on(inbox, kind, adds, retry=RetryPolicy(attempts=2, first_seconds=0))
    road.write("one", "two")
    with caplog.at_level("DEBUG", "inbox"), pytest.raises(Permanent, match="IntegrityError"):
        inbox.run(road.database, road.log, once=True)
    assert "rolling back failed" not in caplog.text
    assert rows(road.database, "select count(*) from strict") == [(0,)]
    assert road.counts() == (0, 0, 0)
