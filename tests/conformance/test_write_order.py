"""INVARIANT I3, at its root: the position of a message is drawn after the lock on the row that it tells of.

ORM writers change the same rows from several threads. A trigger numbers the changes of each row, which is their true
order, since it runs under the row's lock. Messages of one row, by position, have to be in that order.
"""

import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import Engine, create_engine, select, text, update
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from uuid_utils.compat import uuid7
from write_support import url_for

from outbox import Outbox

WRITERS = 8
TRANSACTIONS = 40


class Base(DeclarativeBase):
    pass


class Row:
    id: Mapped[int] = mapped_column(primary_key=True)
    change: Mapped[str] = mapped_column(default="")
    version: Mapped[int] = mapped_column(default=0)


class Account(Row, Base):
    """Flushed before the mapped entity of the outbox, by its name."""

    __tablename__ = "account"


class Zone(Row, Base):
    """Flushed after it."""

    __tablename__ = "zone"


outbox = Outbox(metadata=Base.metadata)


class Entry(Base):
    """The naive way: the outbox as a mapped entity."""

    __table__ = outbox.tables.outbox


TRIGGER = """
create table history (key text, version int, change text primary key);
create function numbered() returns trigger language plpgsql as $$
begin
    new.version := old.version + 1;
    insert into history values (tg_table_name || new.id, new.version, new.change);
    return new;
end $$;
create trigger numbered before update on account for each row execute function numbered();
create trigger numbered before update on zone for each row execute function numbered();
"""

INVERSIONS = """
select count(*) from (
    select history.version, lag(history.version) over (partition by outbox.key order by outbox.position) as earlier
    from outbox join history on history.change = convert_from(outbox.payload, 'UTF8') and history.key = outbox.key
) as told
where version < earlier
"""


@pytest.fixture
def engine(postgresql_url: str) -> Iterator[Engine]:
    engine = create_engine(url_for(postgresql_url), pool_size=WRITERS)
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add_all([Account(id=1), Zone(id=1)])
        session.execute(text(TRIGGER))
        session.commit()
    yield engine
    engine.dispose()


Write = Callable[[Session, str, str], None]


def by_write(session: Session, key: str, change: str) -> None:
    outbox.write(session, topic="changes", key=key, payload=change)


def by_add(session: Session, key: str, change: str) -> None:
    session.add(Entry(id=uuid7(), topic="changes", key=key, payload=change.encode()))


class Writer:
    """Changes one row in each transaction, in one of the ways in which people do."""

    def __init__(self, engine: Engine, write: Write, number: int) -> None:
        self.engine = engine
        self.write = write
        self.number = number
        self.random = random.Random(number)

    def run(self, start: threading.Barrier) -> None:
        start.wait()
        for count in range(TRANSACTIONS):
            model = self.random.choice([Account, Zone])
            way = self.random.choice([self.before, self.after_autoflush, self.before_a_bulk_update, self.twice])
            with Session(self.engine) as session:
                way(session, model, f"{model.__tablename__}1", f"{self.number}/{count}")
                if self.random.random() < 0.1:
                    session.rollback()
                else:
                    session.commit()

    def pause(self, session: Session) -> None:
        session.execute(text("select pg_sleep(:seconds)"), {"seconds": self.random.choice([0, 0, 0.002])})

    def before(self, session: Session, model: type[Row], key: str, change: str) -> None:
        row = session.get_one(model, 1)
        self.write(session, key, change)
        row.change = change

    def after_autoflush(self, session: Session, model: type[Row], key: str, change: str) -> None:
        session.get_one(model, 1).change = change
        session.scalars(select(model)).all()
        self.write(session, key, change)
        self.pause(session)

    def before_a_bulk_update(self, session: Session, model: type[Row], key: str, change: str) -> None:
        self.write(session, key, change)
        self.pause(session)
        session.execute(update(model).values(change=change))

    def twice(self, session: Session, model: type[Row], key: str, change: str) -> None:
        self.write(session, key, change + "a")
        session.get_one(model, 1).change = change + "a"
        self.pause(session)
        session.execute(update(model).values(change=change + "b"))
        self.write(session, key, change + "b")


def told_out_of_order(engine: Engine, write: Write) -> int:
    start = threading.Barrier(WRITERS)
    with ThreadPoolExecutor(WRITERS) as pool:
        for done in [pool.submit(Writer(engine, write, number).run, start) for number in range(WRITERS)]:
            done.result()
    with engine.connect() as connection:
        changes = set(connection.scalars(text("select change from history")))
        told = list(connection.scalars(text("select convert_from(payload, 'UTF8') from outbox")))
        assert len(changes) > WRITERS * TRANSACTIONS / 2
        assert sorted(told) == sorted(changes)
        return int(connection.scalar(text(INVERSIONS)) or 0)


def test_messages_are_in_the_order_in_which_their_row_changed(engine: Engine):
    """INVARIANT I3: breaks as soon as the INSERT is sent with a flush, or before the last row lock is granted."""
    assert told_out_of_order(engine, by_write) == 0


def test_a_mapped_entity_that_is_added_to_the_session_is_out_of_order(engine: Engine):
    """The proof that the test above can fail: what most outboxes do."""
    assert told_out_of_order(engine, by_add) > 0
