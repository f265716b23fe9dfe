"""`write` under asyncio: it awaits nothing, and everything else holds as well."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, event, insert
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import (
    AsyncConnection,
    AsyncEngine,
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.pool import AsyncAdaptedQueuePool
from write_support import Base, Order, begin_explicitly, make_engine, orders, outbox, payloads, url_for

from outbox import Outbox, WriteError

DRIVERS = {"aiosqlite": "sqlite_url", "asyncpg": "postgresql_url", "psycopg": "postgresql_url"}


class Database:
    """A database, seen by a plain engine and by an async one."""

    def __init__(self, url: str, driver: str) -> None:
        self.driver = driver
        self.url = url_for(url, driver)
        self.plain: Engine = make_engine(url)
        Base.metadata.create_all(self.plain)

    def run(self, work: Callable[[AsyncEngine], Coroutine[Any, Any, None]], *, recipe: bool = True) -> None:
        async def main() -> None:
            engine = create_async_engine(
                self.url, poolclass=AsyncAdaptedQueuePool, pool_size=1, max_overflow=0, pool_timeout=2
            )
            if recipe:
                begin_explicitly(engine.sync_engine)
            try:
                await work(engine)
            finally:
                await engine.dispose()

        asyncio.run(main())


@pytest.fixture(params=DRIVERS)
def database(request: pytest.FixtureRequest) -> Iterator[Database]:
    database = Database(request.getfixturevalue(DRIVERS[request.param]), request.param)
    yield database
    database.plain.dispose()


def test_an_async_session_sends_at_commit_and_drops_what_rolled_back(database: Database):
    async def work(engine: AsyncEngine) -> None:
        async with AsyncSession(engine) as session:
            outbox.write(session, topic="t", payload="alone")
            await session.commit()
            outbox.write(session, topic="t", payload="rolled back")
            await session.rollback()
            outbox.write(session, topic="t", payload="outer")
            async with session.begin_nested():
                session.add(Order(id=1))
                outbox.write(session, topic="t", payload="inner", headers={"a": "b"})
            savepoint = await session.begin_nested()
            outbox.write(session, topic="t", payload="dropped")
            await savepoint.rollback()
            await session.commit()
            outbox.write(session, topic="t", payload="closed")
        async with async_sessionmaker(engine).begin() as session:
            outbox.write(session, topic="t", payload=None)

    database.run(work)
    assert orders(database.plain) == [1]
    with database.plain.begin() as connection:
        deleted = connection.exec_driver_sql("delete from outbox where payload is null").rowcount
    assert (payloads(database.plain), deleted) == (["alone", "outer", "inner"], 1)


def test_an_async_scoped_session_writes(database: Database):
    async def work(engine: AsyncEngine) -> None:
        registry = async_scoped_session(async_sessionmaker(engine), scopefunc=asyncio.current_task)
        outbox.write(registry, topic="t", payload="scoped")
        await registry.commit()
        await registry.remove()

    database.run(work)
    assert payloads(database.plain) == ["scoped"]


def test_an_async_connection_sends_before_its_commit(database: Database):
    async def work(engine: AsyncEngine) -> None:
        async with engine.begin() as connection:
            outbox.write(connection, topic="t", payload="kept")
            savepoint = await connection.begin_nested()
            outbox.write(connection, topic="t", payload="dropped")
            await savepoint.rollback()
            outbox.write(connection, topic="t", payload="kept too")
        async with engine.connect() as connection:
            await connection.begin()
            outbox.write(connection, topic="t", payload="closed")
        with pytest.raises(WriteError, match="is closed"):
            outbox.write(connection, topic="t", payload="x")
        with pytest.raises(WriteError, match="was not started"):
            outbox.write(engine.connect(), topic="t", payload="x")

    database.run(work)
    assert payloads(database.plain) == ["kept", "kept too"]


def test_an_async_connection_begins_where_that_takes_no_await(database: Database):
    async def work(engine: AsyncEngine) -> None:
        async with engine.connect() as connection:
            outbox.write(connection, topic="t", payload="begun")
            await connection.commit()

    database.run(work, recipe=False)
    assert payloads(database.plain) == ["begun"]


def test_an_async_connection_that_has_to_be_begun_by_its_owner_says_so_and_is_not_harmed(sqlite_url: str):
    database = Database(sqlite_url, "aiosqlite")

    async def work(engine: AsyncEngine) -> None:
        async with engine.connect() as connection:
            with pytest.raises(WriteError, match="begin first"):
                outbox.write(connection, topic="t", payload="x")
            await connection.execute(insert(Order).values(id=1))
            outbox.write(connection, topic="t", payload="rolled back")
            await connection.rollback()
            await connection.run_sync(lambda plain: outbox.write(plain, topic="t", payload="inside"))
            await connection.commit()

    database.run(work)
    assert (orders(database.plain), payloads(database.plain)) == ([], ["inside"])
    database.plain.dispose()


@pytest.mark.parametrize("mode", ["conditional_savepoint", "rollback_only", "control_fully", "create_savepoint"])
def test_an_async_session_that_joined_a_connection_leaves_the_sending_to_it(database: Database, mode: str):
    async def work(engine: AsyncEngine) -> None:
        async with engine.connect() as connection:
            await connection.begin()
            async with AsyncSession(bind=connection, join_transaction_mode=mode) as session:
                outbox.write(session, topic="t", payload="joined")
                outbox.write(connection, topic="t", payload="connection")
                await session.commit()
            if connection.in_transaction():
                await connection.commit()

    database.run(work)
    assert payloads(database.plain) == ["joined", "connection"]


def test_positions_follow_the_order_of_writing_also_where_a_session_joins_late(sqlite_url: str):
    database = Database(sqlite_url, "aiosqlite")

    async def work(engine: AsyncEngine) -> None:
        async with engine.connect() as connection, AsyncSession(bind=connection) as session:
            outbox.write(session, topic="t", payload="1, waits for a transaction")
            await connection.begin()
            outbox.write(connection, topic="t", payload="2")
            await session.commit()
            await connection.commit()

    database.run(work)
    assert payloads(database.plain) == ["1, waits for a transaction", "2"]
    database.plain.dispose()


def test_late_messages_of_an_async_session_are_not_lost(database: Database):
    async def work(engine: AsyncEngine) -> None:
        async with AsyncSession(engine) as session:

            @event.listens_for(session.sync_session, "before_commit")
            def late(sync_session: Any) -> None:
                outbox.write(sync_session, topic="t", payload="late")

            await session.commit()

    database.run(work)
    assert payloads(database.plain) == ["late"]


def test_after_a_failed_commit_an_async_session_still_takes_messages(database: Database):
    async def work(engine: AsyncEngine) -> None:
        async with AsyncSession(engine) as session:

            def refuse(_session: Any) -> None:
                raise LookupError

            event.listen(session.sync_session, "before_commit", refuse)
            with pytest.raises(LookupError):
                await session.commit()
            event.remove(session.sync_session, "before_commit", refuse)
            outbox.write(session, topic="t", payload="afterwards")
            await session.commit()

    database.run(work)
    assert payloads(database.plain) == ["afterwards"]


async def fail_in_a_session(engine: AsyncEngine) -> None:
    async with AsyncSession(engine) as session:
        session.add(Order(id=1))
        outbox.write(session, topic="t", payload="x")
        await session.commit()


async def fail_on_a_connection(engine: AsyncEngine) -> None:
    async with engine.connect() as connection:
        await connection.execute(insert(Order).values(id=1))
        outbox.write(connection, topic="t", payload="x")
        await connection.commit()


FAIL = [fail_in_a_session, fail_on_a_connection]
Fail = Callable[[AsyncEngine], Awaitable[None]]


async def the_next_user_commits(engine: AsyncEngine) -> None:
    async with AsyncSession(engine) as session:
        session.add(Order(id=2))
        await session.commit()


@pytest.mark.parametrize("fail", FAIL)
def test_the_pools_next_user_does_not_commit_what_failed(database: Database, fail: Fail):
    async def work(engine: AsyncEngine) -> None:
        async with engine.begin() as connection:
            await connection.exec_driver_sql("alter table outbox rename to away")
        with pytest.raises(DBAPIError):
            await fail(engine)
        await the_next_user_commits(engine)

    database.run(work)
    assert orders(database.plain) == [2]


@pytest.mark.parametrize("fail", FAIL)
@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
def test_a_task_that_is_cancelled_in_the_insert_leaves_nothing_behind(postgresql_url: str, driver: str, fail: Fail):
    database = Database(postgresql_url, driver)

    async def work(engine: AsyncEngine) -> None:
        # The INSERT waits for this lock, so that the cancellation finds the task inside of it.
        with database.plain.begin() as holder:
            holder.exec_driver_sql("lock table outbox in exclusive mode")
            task = asyncio.ensure_future(fail(engine))
            waiting = "select count(*) from pg_locks where not granted"
            with make_engine(postgresql_url, isolation_level="AUTOCOMMIT").connect() as watcher:
                async with asyncio.timeout(10):
                    while not watcher.exec_driver_sql(waiting).scalar():  # noqa: ASYNC110 - a server has no Event
                        await asyncio.sleep(0.01)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            watcher.engine.dispose()
        await the_next_user_commits(engine)

    database.run(work)
    assert (orders(database.plain), payloads(database.plain)) == ([2], [])
    database.plain.dispose()


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
def test_five_thousand_messages_are_one_statement(postgresql_url: str, driver: str):
    database = Database(postgresql_url, driver)
    statements: list[tuple[str, bool]] = []

    async def work(engine: AsyncEngine) -> None:
        @event.listens_for(engine.sync_engine, "before_cursor_execute")
        def statement(_connection: Any, _cursor: Any, text: str, _parameters: Any, _context: Any, many: Any) -> None:
            statements.append((text, many))

        async with AsyncSession(engine) as session:
            for number in range(5000):
                headers = {"n": str(number)} if number % 2 else None
                outbox.write(session, topic="t", key=str(number), payload=str(number), headers=headers)
            await session.commit()

    database.run(work)
    assert [many for text, many in statements if "outbox" in text] == [False]
    assert payloads(database.plain) == [str(number) for number in range(5000)]
    database.plain.dispose()


def test_an_outbox_bound_to_an_async_engine(database: Database):
    async def work(engine: AsyncEngine) -> None:
        bound = Outbox(metadata=Base.metadata, bind=engine)
        async with AsyncSession() as session:
            bound.write(session, topic="t", payload="x")
            await session.commit()

    database.run(work)
    assert payloads(database.plain) == ["x"]


def test_autocommit_is_refused_under_asyncio_too(database: Database):
    async def work(engine: AsyncEngine) -> None:
        by_itself = engine.execution_options(isolation_level="AUTOCOMMIT")
        async with AsyncSession(by_itself) as session:
            with pytest.raises(WriteError, match="AUTOCOMMIT"):
                outbox.write(session, topic="t", payload="x")
        connection: AsyncConnection
        async with by_itself.connect() as connection:
            with pytest.raises(WriteError, match="AUTOCOMMIT"):
                outbox.write(connection, topic="t", payload="x")

    database.run(work, recipe=False)
    assert payloads(database.plain) == []
